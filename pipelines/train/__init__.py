"""The train job: config.py is its flags, job.py its driver, trainer.py the training loop of each worker.

data.py (a dataset, or a stream of videos) and stream.py (clips of videos) serve both sides; workers load the other
modules. Importing config.py, data.py or job.py loads neither torch nor DeepSpeed.
"""
