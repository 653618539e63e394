"""Clips -> features of the networks that published metrics use: I3D, C3D, Inception, CLIP, LPIPS.

Weights come from a path, or from the hub as hf://OWNER/NAME/FILE (CLIP: a directory or OWNER/NAME). A loader tries the
network before it returns, so that weights of another network are refused. Each returns a function of one clip, uint8
(N, H, W, 3), RGB.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cinemo.errors import first_line

Features = Callable[[np.ndarray], np.ndarray]
I3D_WIDTH, C3D_WIDTH, INCEPTION_WIDTH = 400, 101, 2048
INCEPTION_SIDE = 299
LEAST_FRAMES = 10  # that I3D's temporal pooling needs


def find(weights: str) -> str:
    """Local path of a weights file; hf://OWNER/NAME/FILE is downloaded. Raises ValueError if there is none."""
    if weights.startswith("hf://"):
        from huggingface_hub import hf_hub_download

        owner, name, file = [*weights.removeprefix("hf://").split("/", 2), "", ""][:3]
        try:
            return hf_hub_download(f"{owner}/{name}", file)
        except Exception as error:  # the hub's own errors are of many kinds
            raise ValueError(
                f"{weights} cannot be fetched: {first_line(error)}; download it and pass the path"
            ) from error
    if not os.path.isfile(weights):
        raise ValueError(f"{weights} does not exist; pass a TorchScript file, or hf://OWNER/NAME/FILE")
    return weights


def load_script(weights: str, name: str, device: str) -> Any:
    """Load a TorchScript file. Raises ValueError if it is missing or not TorchScript."""
    path = find(weights)
    try:
        return torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{weights} is not a TorchScript file, which {name} needs: {first_line(error)}") from error


def as_batch(frames: np.ndarray, device: str) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (1, 3, N, H, W) in 0..255."""
    return torch.tensor(frames, device=device).permute(3, 0, 1, 2)[None].float()


def checked(features: Features, weights: str, name: str, frames: int, width: int) -> Features:
    """Return `features` if it gives `width` numbers for a clip of `frames` frames; else raise ValueError."""
    blank = np.zeros((frames, 64, 64, 3), np.uint8)
    try:
        shape = features(blank).shape
    except Exception as error:  # another network may raise anything at this input
        first = (str(error).strip() or type(error).__name__).split("\n")[-1]
        raise ValueError(f"{weights} is not {name}: it does not take its input ({first})") from error
    if shape[-1] != width:
        raise ValueError(f"{weights} is not {name}: it gives {shape[-1]} numbers for a clip, {name} gives {width}")
    return features


def load_i3d(weights: str, device: str = "cpu") -> Features:
    """Load FVD's network: a clip -> its I3D logits over Kinetics-400, float32 (400,).

    The TorchScript of Unterthiner et al.'s I3D that StyleGAN-V published (i3d_torchscript.pt), with its preprocessing:
    bilinear to 224 x 224, values to [-1, 1] (rescale, resize), before the softmax (return_features). At least 10
    frames.
    """
    script = load_script(weights, "I3D", device)

    @torch.no_grad()
    def features(frames: np.ndarray) -> np.ndarray:
        if len(frames) < LEAST_FRAMES:
            raise ValueError(f"FVD needs clips of at least {LEAST_FRAMES} frames, got {len(frames)}")
        return script(as_batch(frames, device), rescale=True, resize=True, return_features=True)[0].cpu().numpy()

    return checked(features, weights, "I3D", 16, I3D_WIDTH)


def load_c3d(weights: str, device: str = "cpu") -> Features:
    """Load the video inception score's network: a clip -> probabilities of UCF-101's classes, float32 (101,).

    The TorchScript of Saito et al.'s C3D, fine-tuned on UCF-101, that StyleGAN-V published (c3d_ucf101.pt). It scales
    to its own 112 x 112 and subtracts its mean. Takes 16 frames: longer clips are cut, shorter ones refused.
    """
    script = load_script(weights, "C3D", device)

    @torch.no_grad()
    def features(frames: np.ndarray) -> np.ndarray:
        if len(frames) < 16:
            raise ValueError(f"IS needs clips of at least 16 frames, got {len(frames)}")
        out = script(as_batch(frames[:16], device))[0].float()
        is_probability = bool((out >= 0).all()) and abs(float(out.sum()) - 1) < 1e-3
        return (out if is_probability else out.softmax(-1)).cpu().numpy()

    return checked(features, weights, "C3D", 16, C3D_WIDTH)


def load_inception(weights: str, device: str = "cpu") -> Features:
    """Load FID's network: a clip -> Inception-v3 pool features of every frame, float32 (N, 2048).

    The TorchScript inception-2015-12-05.pt that StyleGAN2-ada published. Frames are resized as in clean-fid (Parmar et
    al., 2022): each channel in float32 by PIL's antialiased bicubic filter to 299 x 299, then (x - 128) / 128; the
    script's own resizing is bypassed.
    """
    script = load_script(weights, "Inception", device)

    @torch.no_grad()
    def features(frames: np.ndarray) -> np.ndarray:
        resized = torch.from_numpy(np.stack([clean_resize(frame) for frame in frames])).to(device)
        return script.layers((resized - 128) / 128).flatten(1).cpu().numpy()

    return checked(features, weights, "Inception", 1, INCEPTION_WIDTH)


def clean_resize(frame: np.ndarray, side: int = INCEPTION_SIDE) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (3, side, side), as clean-fid: PIL bicubic in float32, no rounding."""
    channels = (Image.fromarray(frame[..., c].astype(np.float32)) for c in range(3))
    return np.stack([np.asarray(c.resize((side, side), Image.Resampling.BICUBIC)) for c in channels])


def load_clip(weights: str, device: str = "cpu") -> Callable[[np.ndarray, str], tuple[float, float]]:
    """Load CLIP: a clip and its prompt -> CLIPSIM and CLIP consistency.

    CLIPSIM: mean cosine similarity of prompt and frames (Wu et al., GODIVA, use openai/clip-vit-base-patch32).
    Consistency: mean cosine similarity of neighbouring frames (Esser et al., 2023). transformers' CLIP with the image
    and text processing that its directory states. Raises ValueError when it cannot be loaded.
    """
    from transformers import CLIPModel, CLIPProcessor
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # hide its warning about image processing without torchvision
    try:
        model = CLIPModel.from_pretrained(weights).to(device).eval()
        processor = CLIPProcessor.from_pretrained(weights)
    except Exception as error:  # errors of the hub, safetensors or json
        raise ValueError(f"CLIP {weights} cannot be loaded: {first_line(error)}") from error
    finally:
        logging.set_verbosity(level)

    @torch.no_grad()
    def similarity(frames: np.ndarray, prompt: str) -> tuple[float, float]:
        inputs = processor(
            text=[prompt], images=list(frames), return_tensors="pt", padding=True, truncation=True
        ).to(device)  # fmt: skip
        out = model(**inputs)
        text, images = (e / e.norm(dim=-1, keepdim=True) for e in (out.text_embeds, out.image_embeds))
        return float((images @ text[0]).mean()), float((images[1:] * images[:-1]).sum(-1).mean())

    return similarity


def load_lpips(weights: str, device: str = "cpu") -> Callable[[np.ndarray, np.ndarray], float]:
    """Load LPIPS: two pictures, uint8 (H, W, 3) -> their distance, 0 if equal (Zhang et al., 2018).

    The TorchScript vgg16.pt of StyleGAN2-ada: the squared norm of the difference of its return_lpips features is the
    distance. Pictures are not resized; both sides need at least 32 pixels.
    """
    script = load_script(weights, "LPIPS", device)

    @torch.no_grad()
    def embed(frames: np.ndarray) -> np.ndarray:
        pixels = torch.tensor(frames, device=device).permute(0, 3, 1, 2).float()
        return script(pixels, resize_images=False, return_lpips=True).cpu().numpy()

    blank = np.zeros((2, 64, 64, 3), np.uint8)
    try:
        features = embed(blank)
    except Exception as error:
        raise ValueError(f"{weights} is not the VGG of LPIPS: it does not take return_lpips ({error})") from error
    if features.ndim != 2:
        raise ValueError(f"{weights} is not the VGG of LPIPS: it gives {features.shape} for two pictures")
    return lambda a, b: float(np.square(np.diff(embed(np.stack([a, b])), axis=0)).sum())
