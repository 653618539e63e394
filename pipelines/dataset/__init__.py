"""The dataset, which prepare writes and train reads: list of videos, schemas and ids, Parquet files, clips in order."""
