"""Ids of jobs, which begin with the time of creation."""

import re
import time
import uuid

FIRST_TIME = 1_700_000_000.0  # no job is older


def new_id(created_at: float) -> str:
    """Make the id of a job. It starts with the time, so that a listing can continue after a deleted job."""
    return f"video_{round(created_at * 1000):012x}{uuid.uuid4().hex[12:]}"


def time_of(job_id: str) -> float:
    """Time of creation in an id, in seconds since 1970. Raises KeyError for other texts."""
    seconds = int(job_id[6:18], 16) / 1000 if re.fullmatch("video_[0-9a-f]{32}", job_id) else 0
    if not FIRST_TIME < seconds < time.time() + 3600:  # ids of earlier versions were random
        raise KeyError(job_id)
    return seconds
