"""What every job stands on: storage, models, tracking, child processes, progress, hashes. Knows no job."""
