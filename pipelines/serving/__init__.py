"""The HTTP service: animations that are queued in a database, made by replicas, and fetched when they are done.

A request: api.py checks it (schema.py, body.py), store.py keeps it, dispatch.py hands its id to a replica, replica.py
makes the video and results.py writes it; then any ingress answers for it. deploy.py binds all that to Ray Serve.
"""
