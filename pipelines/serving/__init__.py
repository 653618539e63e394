"""The HTTP service: animations are queued in a database, made by replicas, and downloaded when they are done.

The way of a request: api.py checks it (schema.py, http/), store.py keeps it as a job (jobs/), dispatch.py sends the
job's id to a replica, replica.py makes and writes the video (videos/); then any ingress can serve it. deploy.py
connects these to Ray Serve. webhooks.py reports that jobs have ended; batch/ makes the videos of a file of requests.
"""

import logging
import traceback

from cinemo.errors import redact


def _redact(record: logging.LogRecord) -> bool:
    """Filter that removes passwords and tokens from a log record, including its traceback."""
    text = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        text += "\n" + "".join(traceback.format_exception(*record.exc_info))
    record.msg, record.args, record.exc_info = redact(text), (), None
    return True


logging.getLogger("ray.serve").addFilter(_redact)
