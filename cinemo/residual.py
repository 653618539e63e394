"""Motion residuals and the training loss (paper, Algorithm 1 and Eq. 3).

The caller draws timesteps and noise, and so decides which seeds they derive from.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def motion_residuals(latents: Tensor) -> Tensor:
    """Subtract the first frame from every later one (Algorithm 1, line 5): (B, C, N, h, w) -> (B, C, N - 1, h, w)."""
    return latents[:, :, 1:] - latents[:, :, :1]


def join(image: Tensor, residuals: Tensor) -> Tensor:
    """Join image latents (B, C, 1, h, w) and residuals (B, C, F, h, w) to a clip's (B, C, F + 1, h, w) (line 9)."""
    return torch.cat((image, image + residuals), dim=2)


def add_noise(residuals: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Add noise to residuals: M_t (line 8). residuals, noise: (B, C, F, h, w); alpha_bar: (B,)."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1, 1)
    return alpha_bar.sqrt() * residuals + (1 - alpha_bar).sqrt() * noise


def prediction_target(residuals: Tensor, noise: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """Target of the U-Net's prediction: the noise ("epsilon", Eq. 3), the velocity ("v_prediction", Salimans and Ho) or
    the residuals themselves ("sample").

    Shapes as in add_noise. Raises ValueError for another prediction_type.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return residuals
    if prediction_type == "v_prediction":
        alpha_bar = alpha_bar.view(-1, 1, 1, 1, 1)
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * residuals
    raise ValueError(f"prediction_type {prediction_type!r} is unknown; use 'epsilon', 'v_prediction' or 'sample'")


def min_snr_weights(alpha_bar: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Weights of the squared error at noise levels alpha_bar (Hang et al. 2023, "min-SNR-gamma"); both (B,).

    With SNR = alpha_bar / (1 - alpha_bar), a network that predicts residuals ("sample") gets min(SNR, gamma); one that
    predicts noise or velocity, whose error already counts SNR or SNR + 1 times that of the residuals, gets
    min(SNR, gamma) / SNR ("epsilon") or min(SNR, gamma) / (SNR + 1) ("v_prediction"). Without signal (SNR 0) these are
    0, 1 and 0.
    """
    snr = alpha_bar / (1 - alpha_bar)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    clamped = snr.clamp(max=gamma)
    return clamped if prediction_type == "sample" else clamped / (snr + 1)


def training_loss(
    unet: Callable[..., Any],
    latents: Tensor,
    text: Tensor,
    motion_bucket: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: str = "epsilon",
    reduction: str = "mean",
    channel_weights: Tensor | None = None,
    min_snr_gamma: float = 0.0,
) -> Tensor:
    """Training loss of one batch of clips (Eq. 3).

    unet: CinemoUNet or anything called like it (a DeepSpeed engine). latents: (B, C, N, h, w), scaled, frame 0 the
    image. text: (B, T, D). motion_bucket: (B,), as the U-Net sees it. timesteps: int64 (B,). noise:
    (B, C, N - 1, h, w). alphas_cumprod: (T,), of the noise schedule. channel_weights: (C,), factors of the squared
    errors; 1 when None. min_snr_gamma: weights clips by their noise (min_snr_weights); 0: all count the same, as in
    Eq. 3.
    Returns the mean over all elements, in float32; with reduction "none", one mean per clip (B,), and with "frames",
    one per clip and motion frame (B, N - 1).
    Raises ValueError for an unknown prediction_type.
    """
    residuals = motion_residuals(latents)
    alpha_bar = alphas_cumprod.to(latents.device, latents.dtype)[timesteps]
    noisy = add_noise(residuals, noise, alpha_bar)
    predicted = unet(noisy, timesteps, text, latents[:, :, :1], motion_bucket).sample
    target = prediction_target(residuals, noise, alpha_bar, prediction_type)
    squared = F.mse_loss(predicted.float(), target.float(), reduction="none")
    if channel_weights is not None:
        squared = squared * channel_weights.view(1, -1, 1, 1, 1)
    per_frame = squared.mean(dim=(1, 3, 4))
    if min_snr_gamma:
        per_frame = per_frame * min_snr_weights(alpha_bar.float(), min_snr_gamma, prediction_type)[:, None]
    return {"frames": per_frame, "none": per_frame.mean(dim=1), "mean": per_frame.mean()}[reduction]
