"""The `cinemo` command: animate and edit (cinemo.commands), score, info, demo.

Exit codes: 0 done, 1 failed, 2 bad usage or input, with one sentence on stderr. Modules that do the work are imported
inside the commands, so that `cinemo --help` answers at once.
"""

import gc
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cinemo.commands.animate import animate
from cinemo.commands.common import DeviceOption, ModelOption, check_inputs_stay, load
from cinemo.commands.edit import edit

if TYPE_CHECKING:
    import numpy as np


app = typer.Typer(
    help="Animate still images with motion residual diffusion.",
    epilog="The jobs (ray_jobs/*.py) and the service (make serve) run from a checkout, not from an installed package.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


EXAMPLE_PHOTO = "chelsea.png"  # from scikit-image; the built-in model was not trained on it

app.command()(animate)
app.command()(edit)


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
    from cinemo.video import load_clip

    if num_frames < 2 or min(height, width) < 7:
        raise ValueError(f"num_frames {num_frames} at {height} x {width}: SSIM needs 2 frames and 7 x 7 pixels or more")
    failed = 0
    for path in videos:
        try:
            clip = load_clip(path, start, interval, num_frames, (height, width), shorten=True)
            value = motion_score(clip.frames)
        except ValueError as error:
            failed += 1
            typer.echo(f"error: {error}", err=True)
            continue
        row = {"video": str(path), "score": value, "bucket": motion_bucket(value), "start": start,
               "interval": clip.interval, "frames": num_frames, **clip.traits._asdict()}  # fmt: skip
        last = start + clip.interval * (num_frames - 1)
        line = f"{path}  SSIM {value:.4f}  bucket {row['bucket']:2d}  frames {start}..{last} by {clip.interval}"
        line += f"  {clip.traits.describe()}"
        typer.echo(json.dumps(row) if as_json else line)
    if failed:
        raise typer.Exit(2)


@app.command()
def info(
    what: Annotated[
        str, typer.Argument(help="a model (builtin:tiny, directory, hub id), LoRA, dataset, or a job's video or .json")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show where a model, a LoRA, a video or a dataset came from; of a model, also its parts, sizes and fingerprint."""
    from cinemo import lineage
    from cinemo.checkpoint import describe, resolve

    chain = lineage.trace(what)
    facts = describe(resolve(what)) if chain.kind == "model" else {}
    if as_json:
        typer.echo(json.dumps({**facts, "chain": asdict(chain)}, indent=2))
        return
    for line in two_columns(facts):
        typer.echo(line)
    for line in lineage.lines(chain):
        typer.echo(line)


def two_columns(facts: dict[str, Any]) -> list[str]:
    """Format facts in two columns; the entries of a dictionary follow its name, indented."""
    lines = []
    for name, value in facts.items():
        if name == "lineage":  # the chain shows more
            continue
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines += [
                f"  {key:<22} {inner:,}" if isinstance(inner, int) else f"  {key:<22} {inner}"
                for key, inner in value.items()
            ]
        else:
            lines.append(f"{name:<24} {value}")
    return lines


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="the sheet to write (.png); the videos go beside it")] = Path("demo.png"),
    model: ModelOption = "builtin:tiny",
    image: Annotated[Path | None, typer.Option(help="a photo of yours; default: one that comes along")] = None,
    steps: Annotated[int | None, typer.Option(help="denoising steps (DDIM); default: the model's, or 50")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="how strongly the prompt acts; 1 or less is off; default: the model's, or 7.5")
    ] = None,
    seed: Annotated[int, typer.Option(help="the same seed gives the same videos")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Animate an example photo with three prompts at three motion buckets, and write a sheet of all nine."""
    from cinemo.image import read_image
    from cinemo.sheet import contact_sheet, write_sheet
    from cinemo.synthetic.images import photo as bundled_photo
    from cinemo.video import write_video

    if output.suffix.lower() != ".png":
        raise ValueError(f"output {output} must end in .png")
    check_inputs_stay([output], [image])
    photo = read_image(image) if image is not None else bundled_photo(EXAMPLE_PHOTO)
    pipe = load(model, device)
    prompts = ("the camera pans left", "the camera zooms in", "the camera pans up")
    buckets = (2, 6, 10)
    settings = {
        "num_inference_steps": pipe.card.steps if steps is None else steps,
        "guidance_scale": pipe.card.guidance if guidance_scale is None else guidance_scale,
    }
    rows: list[tuple[str, np.ndarray]] = []
    for prompt in prompts:
        typer.echo(f"animating: {prompt}", err=True)
        clips = pipe([photo] * len(buckets), prompt, motion_bucket=list(buckets), seed=seed, **settings).frames
        for bucket, clip in zip(buckets, clips, strict=True):
            write_video(output.parent / f"{output.stem}-{prompt.replace(' ', '-')}-{bucket}.mp4", clip)
            rows.append((f"{prompt}, motion bucket {bucket}", clip))
    write_sheet(output, contact_sheet(rows))
    typer.echo(f"{output}: {len(rows)} animations of the photo on the left, six frames each; the videos are beside it")


def quiet_libraries() -> None:
    """Show our own warnings as one line on stderr, and hide those of libraries."""
    import warnings

    warnings.filterwarnings("ignore")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.ERROR)
    logging.getLogger("cinemo").setLevel(logging.WARNING)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: a ValueError becomes one sentence and exit code 2; a failing disk or NaN, exit code 1."""
    quiet_libraries()
    gc.set_threshold(100_000)  # imports create a million objects that stay; collecting often would take half a second
    try:
        app(arguments)
    except ValueError as error:
        fail(error, 2)
    except (OSError, FloatingPointError) as error:
        fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(error: Any, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
