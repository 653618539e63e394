"""The animate job, rows of a catalog to videos: config.py has its flags, job.py its driver, flow.py the dataflow."""
