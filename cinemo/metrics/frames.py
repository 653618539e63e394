"""Metrics of one clip's pixels: fidelity to the photo, colour drift, smoothness of the change.

Every function takes uint8 (N, H, W, 3), RGB.
"""

import numpy as np
from skimage.color import deltaE_cie76, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.transform import downscale_local_mean

SMOOTH_ROWS = 8
ROUNDING = 0.5  # grey levels: difference between neighbours of a still clip that rounding alone can cause


def first_frame_fidelity(frames: np.ndarray, image: np.ndarray) -> tuple[float, float]:
    """PSNR in dB and SSIM between frame 0 and the photo, uint8 (H, W, 3).

    Computed by scikit-image, data range 255 (SSIM over RGB, 7 x 7 window). An exact copy has a PSNR of infinity.
    Raises ValueError when the sizes differ.
    """
    if frames.shape[1:] != image.shape:
        raise ValueError(f"the frames are {frames.shape[1:]} and the image is {image.shape}; fit the image to them")
    with np.errstate(divide="ignore"):
        ratio = float(peak_signal_noise_ratio(image, frames[0], data_range=255))
    return ratio, float(structural_similarity(image, frames[0], channel_axis=-1, data_range=255))


def neighbour_difference(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of every frame from the next, in levels: float64 (N - 1,)."""
    return np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))


def abruptness(frames: np.ndarray) -> float:
    """The largest of the neighbouring-frame differences over their median: 1 is even motion, more is a jump (Fig. 5).

    The median counts as at least half a level, so that rounding does not make a nearly still clip abrupt.
    """
    differences = neighbour_difference(frames)
    return float(max(differences.max(), ROUNDING) / max(np.median(differences), ROUNDING))


def smoothness(frames: np.ndarray) -> float:
    """1 when the picture changes evenly, 0 when each change is undone by the next: 1 - |x' - x''| / (|x'| + |x''|).

    x' and x'' are consecutive changes of a pixel, summed over pixels and frames. Frames are first averaged to 8 rows of
    blocks, where content that moves evenly changes pixels evenly. A still clip is smooth (1). N >= 3.
    """
    block = max(1, frames.shape[1] // SMOOTH_ROWS)
    changes = np.diff(downscale_local_mean(frames.astype(np.float64), (1, block, block, 1)), axis=0)
    before, after, bends = (np.abs(part).sum() for part in (changes[:-1], changes[1:], np.diff(changes, axis=0)))
    return float(1 - bends / (before + after)) if before + after else 1.0


def colour_drift(frames: np.ndarray) -> np.ndarray:
    """Mean CIE Lab distance (CIE76) of each frame's pixels from those of the first frame: float64 (N,), 0 first.

    Motion raises it too: compare only clips of similar motion, or use mean_colour_drift.
    """
    lab = rgb2lab(frames)
    return np.array([deltaE_cie76(lab[0], frame).mean() for frame in lab])


def mean_colour_drift(frames: np.ndarray) -> np.ndarray:
    """CIE Lab distance of each frame's mean colour from the first's: float64 (N,). Motion hardly matters; 2.3 is
    just noticeable."""
    means = rgb2lab(frames).mean(axis=(1, 2))
    return np.linalg.norm(means - means[0], axis=-1)
