"""The evaluation job, from the videos of a dataset to a table of models: config.py is its flags, job.py its driver."""
