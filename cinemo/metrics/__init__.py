"""Metrics of animations, each with its reference and its exact preprocessing.

frames.py and flow.py measure one clip's pixels, networks.py turns clips into features of published networks, and
statistics.py compares sets of numbers.
"""

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pictures or clips, in dB; 100 at most, and for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return min(100.0, 10 * float(np.log10(255**2 / error))) if error else 100.0
