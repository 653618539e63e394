"""Shared by all jobs: storage, models, tracking, child processes, progress, hashes."""
