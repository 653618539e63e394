"""What the evaluation job is made of, from a video of a dataset to a row of numbers and a table of models."""
