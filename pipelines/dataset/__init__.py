"""What the prepare job writes and training reads: list of videos, schemas and ids, Parquet files, clips in order."""
