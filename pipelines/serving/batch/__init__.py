"""Batches: files of requests for videos, in the shape of OpenAI's Batch and Files APIs."""
