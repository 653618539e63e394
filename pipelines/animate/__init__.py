"""The catalog job, rows of a catalog to videos: config.py is its flags, job.py its driver, flow.py the dataflow."""
