"""The `cinemo` command: animate, score, info, demo.

Knows flags, text and exit codes: 0 done, 1 failed, 2 bad usage or input with one sentence on stderr. The work is done
by the modules it calls, which are imported inside the commands so that `cinemo --help` answers at once.
"""

import json
import logging
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from cinemo.pipeline import CinemoPipeline

app = typer.Typer(
    help="Animate still images with motion residual diffusion.", no_args_is_help=True, pretty_exceptions_enable=False
)


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Vae(StrEnum):
    auto = "auto"
    temporal = "temporal"
    frame = "frame"


EXAMPLE_PHOTO = "chelsea.png"  # one of scikit-image's, which the built-in model never saw
ModelOption = Annotated[str, typer.Option(help="builtin:tiny, a model directory, or a hub id")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto")]


@app.command()
def animate(
    image: Annotated[Path, typer.Argument(help="the photo: JPEG, PNG, WebP, ...")],
    prompt: Annotated[str, typer.Option(help="what should happen; may be empty")],
    output: Annotated[Path, typer.Option(help="the video to write: .mp4, .gif or .webp")] = Path("out.mp4"),
    model: ModelOption = "builtin:tiny",
    motion_bucket: Annotated[int, typer.Option(help="motion intensity: 0 (still) to 19")] = 10,
    seed: Annotated[int, typer.Option(help="the same seed gives the same video")] = 0,
    steps: Annotated[int | None, typer.Option(help="denoising steps (DDIM); default: the model's, or 50")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="how strongly the prompt acts; 1 or less is off; default: the model's, or 7.5")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="what should not happen")] = "",
    num_frames: Annotated[int, typer.Option(help="frames, the photo included")] = 16,
    height: Annotated[int | None, typer.Option(help="pixels; default: the model's")] = None,
    width: Annotated[int | None, typer.Option(help="pixels; default: the model's")] = None,
    fps: Annotated[float, typer.Option(help="frames a second of the video")] = 8,
    dct_init: Annotated[bool, typer.Option(help="refine the initial noise with the photo (DCTInit)")] = True,
    dct_cutoff: Annotated[float, typer.Option(help="share of low frequencies taken from the photo, 0..1")] = 0.23,
    dct_timestep: Annotated[int, typer.Option(help="noise level of the photo in DCTInit, 0..999")] = 975,
    vae: Annotated[Vae, typer.Option(help="which VAE, where a model has two")] = Vae.auto,
    device: DeviceOption = "auto",
    dtype: Annotated[Dtype, typer.Option(help="precision")] = Dtype.float32,
) -> None:
    """Animate one photo and write a video."""
    from cinemo.image import read_image
    from cinemo.motion import motion_bucket as measure_bucket
    from cinemo.motion import motion_score
    from cinemo.video import check_output, write_video

    check_output(output, fps)
    photo = read_image(image)
    pipe = load(model, device, dtype.value, vae.value)
    began = time.perf_counter()
    frames = pipe(
        photo,
        prompt,
        negative_prompt=negative_prompt,
        motion_bucket=motion_bucket,
        num_frames=num_frames,
        height=height,
        width=width,
        num_inference_steps=pipe.card.steps if steps is None else steps,
        guidance_scale=pipe.card.guidance if guidance_scale is None else guidance_scale,
        seed=seed,
        dct_init=dct_init,
        dct_cutoff=dct_cutoff,
        dct_timestep=dct_timestep,
    ).frames[0]
    write_video(output, frames, fps)
    score = motion_score(frames)
    count, tall, wide = frames.shape[:3]
    typer.echo(
        f"{output}: {count} frames of {tall} x {wide} in {time.perf_counter() - began:.1f} s; "
        f"measured motion bucket {measure_bucket(score)} (SSIM {score:.3f}), asked for {motion_bucket}"
    )


@app.command()
def score(
    videos: Annotated[list[Path], typer.Argument(help="video files")],
    start: Annotated[int, typer.Option(help="first frame")] = 0,
    interval: Annotated[int, typer.Option(help="distance between sampled frames; less where a video is short")] = 3,
    num_frames: Annotated[int, typer.Option(help="sampled frames")] = 16,
    height: Annotated[int, typer.Option(help="pixels that frames are scaled to before scoring")] = 320,
    width: Annotated[int, typer.Option(help="likewise")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Measure motion: mean SSIM of neighbouring frames (1 is still) and the motion bucket (0 is still, 19 the most)."""
    from cinemo.motion import motion_bucket, motion_score
    from cinemo.video import probe, sample_clip

    if num_frames < 2 or min(height, width) < 7:
        raise ValueError(f"num_frames {num_frames} at {height} x {width}: SSIM needs 2 frames and 7 x 7 pixels or more")
    failed = 0
    for path in videos:
        try:
            longest = max(1, (probe(path).num_frames - 1 - start) // (num_frames - 1))
            step = min(interval, longest)
            value = motion_score(sample_clip(path, start, step, num_frames, (height, width)))
        except ValueError as error:
            failed += 1
            typer.echo(f"error: {error}", err=True)
            continue
        row = {"video": str(path), "score": value, "bucket": motion_bucket(value), "start": start,
               "interval": step, "frames": num_frames}  # fmt: skip
        last = start + step * (num_frames - 1)
        line = f"{path}  SSIM {value:.4f}  bucket {row['bucket']:2d}  frames {start}..{last} by {step}"
        typer.echo(json.dumps(row) if as_json else line)
    if failed:
        raise typer.Exit(2)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="builtin:tiny, a model directory, or a hub id")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Show what is in a model directory: parts, parameters, trained sizes, motion mapping, fingerprint, lineage."""
    from cinemo.checkpoint import describe, resolve

    facts = describe(resolve(model))
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            for key, inner in value.items():
                typer.echo(f"  {key:<22} {inner:,}" if isinstance(inner, int) else f"  {key:<22} {inner}")
        else:
            typer.echo(f"{name:<24} {value}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="the sheet to write (.png); the videos go beside it")] = Path("demo.png"),
    model: ModelOption = "builtin:tiny",
    image: Annotated[Path | None, typer.Option(help="a photo of yours; default: one that comes along")] = None,
    steps: Annotated[int, typer.Option(help="denoising steps (DDIM)")] = 10,
    guidance_scale: Annotated[float, typer.Option(help="how strongly the prompt acts; 1 or less is off")] = 2.0,
    seed: Annotated[int, typer.Option(help="the same seed gives the same videos")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Animate an example photo with three prompts at three motion buckets, and write a sheet of all nine."""
    from cinemo.image import read_image
    from cinemo.sheet import contact_sheet
    from cinemo.synthetic.images import photo as bundled_photo
    from cinemo.video import write_video

    if output.suffix.lower() != ".png":
        raise ValueError(f"output {output} must end in .png")
    photo = read_image(image) if image is not None else bundled_photo(EXAMPLE_PHOTO)
    pipe = load(model, device)
    prompts = ("the camera pans left", "the camera zooms in", "the camera pans up")
    buckets = (2, 8, 14)
    rows: list[tuple[str, np.ndarray]] = []
    for prompt in prompts:
        typer.echo(f"animating: {prompt}", err=True)
        wishes = {"motion_bucket": list(buckets), "num_inference_steps": steps, "guidance_scale": guidance_scale}
        clips = pipe([photo] * len(buckets), prompt, seed=seed, **wishes).frames
        for bucket, clip in zip(buckets, clips, strict=True):
            write_video(output.parent / f"{output.stem}-{prompt.replace(' ', '-')}-{bucket}.mp4", clip)
            rows.append((f"{prompt}, motion bucket {bucket}", clip))
    aside = output.with_name(f".{output.name}")
    contact_sheet(rows).save(aside, format="PNG")
    aside.replace(output)
    typer.echo(f"{output}: {len(rows)} animations of the photo on the left, six frames each; the videos are beside it")


def load(model: str, device: str, dtype: str = "float32", vae: str = "auto") -> "CinemoPipeline":
    import torch

    from cinemo.pipeline import CinemoPipeline

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device} is not there: torch sees no GPU; use --device cpu")
    try:
        torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device} is unknown; use cpu, cuda or auto") from None
    return CinemoPipeline.from_pretrained(model, getattr(torch, dtype), device, vae)


def quiet_libraries() -> None:
    """Warnings of ours as one line on stderr; those of libraries about themselves not at all."""
    import warnings

    warnings.filterwarnings("ignore")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.ERROR)
    logging.getLogger("cinemo").setLevel(logging.WARNING)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ValueError becomes one sentence and exit code 2, a failing disk one and exit code 1."""
    quiet_libraries()
    try:
        app(arguments)
    except ValueError as error:
        fail(error, 2)
    except OSError as error:
        fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(error: Any, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
