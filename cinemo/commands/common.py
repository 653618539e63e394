"""Shared by several commands: their common options, a model on a device, the motion of an animation.

Imports nothing large at module level, so that `cinemo --help` answers at once.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cinemo.garbage import without_collections

if TYPE_CHECKING:
    import numpy as np

    from cinemo.pipeline import CinemoPipeline

NOTE_GAP = 4  # buckets: a note is printed if the measured motion is lower by more than this

ModelOption = Annotated[str, typer.Option(help="builtin:tiny, a model directory, or a hub id")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto")]
OutputOption = Annotated[Path, typer.Option(help="the video to write: .mp4, .webm, .gif or .webp")]
StepsOption = Annotated[int | None, typer.Option(help="denoising steps; default: the model's, or 50")]
NegativeOption = Annotated[str, typer.Option(help="what should not happen")]
HeightOption = Annotated[int | None, typer.Option(help="pixels; default: that of the model's size nearest in aspect")]
WidthOption = Annotated[int | None, typer.Option(help="pixels; default: that of the model's size nearest in aspect")]
FpsOption = Annotated[float, typer.Option(help="frames a second of the video")]
CutoffOption = Annotated[float, typer.Option(help="share of low frequencies taken from the photo, 0..1")]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH[:weight]",
        help="LoRA adapter of the model: a folder that training wrote, a file or a hub id; may be given several times",
    ),
]
VaeOption = Annotated[Literal["auto", "temporal", "frame"], typer.Option(help="which VAE, where a model has two")]
DtypeOption = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="precision")]

LARGE_BYTES = 2**30  # of weights: with more, saving memory matters more than the time that allocating it takes


@without_collections()
def load(
    model: str, device: str, dtype: str = "float32", vae: str = "auto", loras: Sequence[str] | None = None
) -> "CinemoPipeline":
    """Load a pipeline on a device; "auto" is the GPU if there is one. Raises ValueError.

    loras: adapters that act together, PATH[:weight] each, as --lora has them.
    """
    import torch

    from cinemo.lora import parse_option
    from cinemo.machine import cores
    from cinemo.memory import give_back_freed_memory
    from cinemo.pipeline import CinemoPipeline

    adapters = [parse_option(text) for text in loras or []]
    if "OMP_NUM_THREADS" not in os.environ:  # torch counts the machine's cores, even if a container may use fewer
        torch.set_num_threads(min(torch.get_num_threads(), cores()))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device} is not there: torch sees no GPU; use --device cpu")
    try:
        torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device} is unknown; use cpu, cuda or auto") from None
    pipe = CinemoPipeline.from_pretrained(model, getattr(torch, dtype), device, vae)
    pipe.load_adapters(adapters)
    if device == "cpu" and pipe.unet.get_memory_footprint() > LARGE_BYTES:
        give_back_freed_memory()
    return pipe


def check_inputs_stay(outputs: Sequence[Path], inputs: Sequence[Path | None]) -> None:
    """Raise ValueError if writing one of the outputs would replace one of the inputs (None: not given)."""
    for output in outputs:
        for path in inputs:
            if path is not None and path.exists() and output.exists() and output.samefile(path):
                raise ValueError(f"{output} is an input, and would be replaced; give another --output")


def frame_size(pipe: "CinemoPipeline", height: int | None, width: int | None) -> tuple[int, int]:
    """Size (H, W) in pixels to animate at. Raises ValueError for one that the model does not take."""
    from cinemo.arguments import check_size
    from cinemo.checkpoint import vae_factor

    return check_size(height, width, vae_factor(pipe.vae.config), pipe.card.sizes)


def note_trigger_words(pipe: "CinemoPipeline", prompt: str) -> None:
    """Print a note for each adapter whose trigger words are not in the prompt."""
    for adapter in pipe.loras.values():
        words = adapter.card.trigger_words
        if words and words not in prompt:
            typer.echo(f"note: every prompt of the training of {adapter.path} has {words!r}", err=True)


def sentence(frames: "np.ndarray", asked: int, prompts: Sequence[str] | None = None) -> str:
    """Sentence with the measured and the requested motion of an animation, and a note if much less moves than that.

    prompts: examples that the model's card gives.
    """
    from cinemo.motion import motion_bucket, motion_score

    score = motion_score(frames)
    measured = motion_bucket(score)
    text = f"measured motion bucket {measured} (SSIM {score:.3f}), asked for {asked}"
    if prompts and asked - measured > NOTE_GAP:
        text += f"\nnote: little moves; this model follows prompts such as {', '.join(map(repr, prompts))}"
    return text
