"""What a training run is made of; pipelines/train.py is the run as the driver sees it.

On the driver: config.py (flags and what they refuse), data.py (what is trained on), stream.py (clips of videos). On
every worker: loop.py, and what it calls. Importing config.py or data.py loads neither torch nor DeepSpeed.
"""
