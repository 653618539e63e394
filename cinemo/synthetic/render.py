"""Render plans to frames, by sampling canvases along a camera's path."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from cinemo.synthetic.images import CANVAS_SIZE, canvas, veil
from cinemo.synthetic.plan import Plan

VEIL_GREY = 235.0


@lru_cache(maxsize=4096)
def _canvas_tensor(index: int, held_out: bool) -> torch.Tensor:
    """A canvas as uint8 (3, 288, 432)."""
    return torch.tensor(canvas(index, held_out)).permute(2, 0, 1).contiguous()


def render(plan: Plan, size: tuple[int, int] = (128, 192), num_frames: int = 16, frame_step: float = 1.0) -> np.ndarray:
    """Render the frames of a plan: uint8 (N, H, W, 3).

    frame_step: time from one frame to the next; 1/6 makes a video in which every sixth frame is a frame of the clip.
    """
    height, width = size
    time = torch.arange(num_frames, dtype=torch.float32) * frame_step
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5 - height / 2) / height,
        (torch.arange(width) + 0.5 - width / 2) / height,
        indexing="ij",
    )
    pixels = _sample(_canvas_tensor(plan.scene, plan.held_out).float(), *camera_view(plan, time, x, y), plan)
    if plan.object_scene >= 0:
        pixels = _draw_object(pixels, plan, time, x, y)
    if plan.veil >= 0:
        pixels = _draw_veil(pixels, plan, time, x, y)
    amplitude, speed, phase = plan.flicker
    gain = 1 + amplitude * (torch.sin(time * speed + phase) - np.sin(phase))
    if amplitude or not np.array_equal(plan.colour, np.eye(3)):
        matrix = torch.tensor(plan.colour, dtype=torch.float32)
        pixels = torch.einsum("oc,cnhw->onhw", matrix, pixels) * gain[:, None, None]
    return pixels.clamp(0, 255).round().byte().permute(1, 2, 3, 0).contiguous().numpy()


def camera_view(plan: Plan, time: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Canvas position of each output pixel: x and y (N, H, W) in window heights from the window's first centre.

    time: (N,), in frames at full speed. x, y: (H, W), the pixel's position in the window, in the same unit.
    """
    t = time[:, None, None]
    amplitude, number, speed, phase = plan.wave
    if amplitude:
        along = torch.hypot(x, y) if plan.radial else y
        # Less the wave at time 0, so that the first frame is the undisturbed picture, as for every other kind.
        swing = torch.sin(2 * np.pi * number * along - speed * t - phase)
        swing = amplitude * (swing - torch.sin(2 * np.pi * number * along - phase))
        radius = along.clamp(min=0.05)
        return (x + swing * x / radius, y + swing * y / radius) if plan.radial else (x + swing, y.expand_as(swing))
    if plan.shake:
        amplitude, *turns = plan.shake
        speeds, phases = torch.tensor(turns).view(2, 2, 2, 1, 1, 1)  # axis, wave
        swing = amplitude * (torch.sin(speeds * t + phases) - torch.sin(phases)).sum(dim=1) / 2  # 0 at time 0
        return x + swing[0], y + swing[1]
    scale = torch.exp(-plan.zoom * t)
    # The content turns by +angle, so the lookup turns by -angle.
    cos, sin = torch.cos(plan.rotation * t) * scale, torch.sin(plan.rotation * t) * scale
    x = x * torch.exp(-plan.stretch * t)
    return cos * x + sin * y + plan.velocity[0] * t, cos * y - sin * x + plan.velocity[1] * t


def _sample(scene: torch.Tensor, x: torch.Tensor, y: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Bilinear samples (3, N, H, W) of a canvas at window coordinates; mirrored beyond its border."""
    across = CANVAS_SIZE[0] / CANVAS_SIZE[1]
    u = 2 * plan.centre[0] - 1 + x * (2 * plan.height * across)
    v = 2 * plan.centre[1] - 1 + y * (2 * plan.height)
    grid = torch.stack((-u if plan.flip else u, v), dim=-1)
    frames, height, width, _ = grid.shape
    flat = grid.view(1, frames * height, width, 2)
    return F.grid_sample(scene[None], flat, padding_mode="reflection", align_corners=False)[0].view(
        3, frames, height, width
    )


def _draw_object(
    pixels: torch.Tensor, plan: Plan, time: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Draw the moving shape over pixels (3, N, H, W); its edge is as soft as one pixel of a 128-pixel window."""
    t = time[:, None, None]
    dx = x - plan.object_start[0] - plan.object_velocity[0] * t
    dy = y - plan.object_start[1] - plan.object_velocity[1] * t
    half_width, half_height, power = plan.object_size
    inside = (dx / half_width).abs() ** power + (dy / half_height).abs() ** power
    alpha = ((1 - inside) * (64 * min(half_width, half_height) / power)).clamp(-0.5, 0.5) + 0.5
    texture = _canvas_tensor(plan.object_scene, plan.held_out).float()
    return pixels + alpha * (_sample(texture, dx, dy, plan) - pixels)


def _draw_veil(pixels: torch.Tensor, plan: Plan, time: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Draw snow, rain, bubbles or clouds over pixels (3, N, H, W). A veil is one window high and periodic."""
    t = time[:, None, None]
    across = CANVAS_SIZE[1] / CANVAS_SIZE[0]
    u = (x - plan.veil_velocity[0] * t) / across
    v = y - plan.veil_velocity[1] * t
    grid = torch.stack((u, v), dim=-1) % 1 * 2 - 1
    frames, height, width, _ = grid.shape
    alpha = torch.tensor(veil(plan.kind, plan.veil)).float() / 255
    flat = grid.view(1, frames * height, width, 2)
    alpha = F.grid_sample(alpha[None, None], flat, align_corners=False)[0, 0].view(frames, height, width)
    return pixels + alpha * (VEIL_GREY - pixels)
