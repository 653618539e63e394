"""The HTTP service: animations are queued in a database, made by replicas, and downloaded when they are done.

The way of a request: api.py checks it (schema.py, body.py), store.py keeps it as a job, dispatch.py sends the job's id
to a replica, replica.py makes the video, results.py writes it; then any ingress can serve it. deploy.py connects these
to Ray Serve.
"""
