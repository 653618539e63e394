"""Metrics of animations, each with its reference and its exact preprocessing.

frames.py and flow.py measure one clip's pixels, networks.py turns clips into features of published networks, and
statistics.py compares sets of numbers.
"""
