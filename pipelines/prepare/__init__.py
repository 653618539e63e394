"""The prepare job: config.py has its flags, job.py its driver, flow.py the dataflow, clips.py the work on one clip."""
