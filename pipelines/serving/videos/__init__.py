"""What a replica does for a job: read its inputs, make the frames, report progress, write the files."""
