"""The train job: config.py is its flags, job.py its driver, trainer.py what each worker does.

On the driver: data.py (what is trained on) and stream.py (clips of videos). On every worker: trainer.py, and what it
calls. Importing config.py or data.py loads neither torch nor DeepSpeed.
"""
