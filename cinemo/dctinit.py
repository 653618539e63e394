"""DCTInit: initial noise that carries the image's own low frequencies (paper, section 3.3).

The caller passes alpha_bar, the noise schedule's cumulative alpha at the timestep tau. The FFT variant of Fig. 3 is
here for comparison.
"""

import numpy as np
import scipy.fft
import torch
from torch import Tensor

AXES = (-3, -2, -1)  # frame, height, width


def dct_init(
    noise: Tensor, image_latents: Tensor, alpha_bar: float | Tensor, cutoff: float = 0.23, transform: str = "dct"
) -> Tensor:
    """Replace the noise's low spatial frequencies by those of the noised image: eps' = IDCT(D_z^L + D_eps^H).

    noise: (B, C, F, h, w). image_latents: (B, C, 1, h, w), scaled. alpha_bar: cumulative alpha at tau, 0..1.
    cutoff: share p of rows and columns taken from the image, 0..1: the corner int(h * p) x int(w * p), with every
    temporal frequency of that corner. transform: "dct" (orthonormal 3-D DCT-II) or "fft" (as many of the lowest
    frequencies of both signs). The arithmetic is float64; returns a tensor like `noise`.
    Raises ValueError for a cutoff outside 0..1, an unknown transform, or shapes that do not match.
    """
    if not 0.0 <= cutoff <= 1.0:
        raise ValueError(f"dct_cutoff {cutoff} is outside 0..1; 0 keeps the noise as it is, the paper uses 0.23")
    if image_latents.shape != (*noise.shape[:2], 1, *noise.shape[3:]):
        raise ValueError(
            f"image_latents are {tuple(image_latents.shape)} for noise {tuple(noise.shape)}; pass (B, C, 1, h, w)"
        )
    source = noise.detach().cpu().double().numpy()
    image = image_latents.detach().cpu().double().numpy()
    alpha = float(alpha_bar)
    noised = np.sqrt(alpha) * image + np.sqrt(1.0 - alpha) * source  # z_1^tau, with the SAME noise

    height, width = source.shape[-2:]
    rows, columns = int(height * cutoff), int(width * cutoff)
    if transform == "dct":
        mixed = scipy.fft.dctn(source, axes=AXES, norm="ortho")
        mixed[..., :rows, :columns] = scipy.fft.dctn(noised, axes=AXES, norm="ortho")[..., :rows, :columns]
        out = scipy.fft.idctn(mixed, axes=AXES, norm="ortho")
    elif transform == "fft":
        low = low_frequencies(height, rows)[:, None] & low_frequencies(width, columns)[None, :]
        mixed = np.where(low, np.fft.fftn(noised, axes=AXES), np.fft.fftn(source, axes=AXES))
        out = np.fft.ifftn(mixed, axes=AXES).real
    else:
        raise ValueError(f"transform {transform!r} is unknown; use 'dct' or 'fft'")
    return torch.from_numpy(np.ascontiguousarray(out)).to(noise.device, noise.dtype)


def low_frequencies(size: int, count: int) -> np.ndarray:
    """Mask of the `count` lowest frequencies of an FFT axis, both signs kept together so that the result stays real.

    bool (size,). An even count loses one, because frequency 0 has no partner.
    """
    return np.abs(np.fft.fftfreq(size, 1.0 / size)) < (count + 1) // 2 if count else np.zeros(size, bool)
