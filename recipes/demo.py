"""`make demo`: clips -> dataset -> training -> an animated photo, by the same jobs that a cluster runs.

The clips show a motion that the built-in model does not know, so the sheet shows what was learned. Each step prints the
command that it runs. Running the demo again continues where it stopped.
"""

import csv
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[1]
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SYNTHETIC_CLIPS = 32
KINDS = ("stretch",)
SIZE = (192, 320)  # the smallest of the built-in model's sizes, to save minutes
NEW_MOTION, KNOWN_MOTION = "the picture stretches sideways", "the camera pans left"
BUCKETS = (2, 5, 8)
# For a model whose card has no settings. A small model has learned words only weakly: the paper's guidance of 7.5 would
# amplify its mistakes.
SAMPLING = {"num_inference_steps": 10, "guidance_scale": 2.0}


def main(
    clips: Annotated[Path | None, typer.Option(help="folder of videos to train on; default: synthetic ones")] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="photo to animate; default: the first in images/ next to --clips, or a bundled one"),
    ] = None,
    init: Annotated[str, typer.Option(help="builtin:tiny, a model directory, or none for random weights")] = "",
    steps: Annotated[int, typer.Option(help="training steps")] = 120,
    prompt: Annotated[
        str | None, typer.Option(help="what the photo should do; default: what the synthetic clips show, or a pan")
    ] = None,
    sampling_steps: Annotated[
        int | None, typer.Option(help="denoising steps of the animation; default: as in the model's card, or 10")
    ] = None,
    output: Annotated[Path, typer.Option(help="folder for all results")] = Path("out"),
) -> None:
    """From clips to an animated photo in one command."""
    began = time.monotonic()
    init = init or "builtin:tiny"
    photo = find_photo(clips, image, output)
    videos = clips or output / "clips"
    prompt = prompt or (NEW_MOTION if clips is None else KNOWN_MOTION)

    if clips is None:
        step(1, f"drawing {SYNTHETIC_CLIPS} synthetic clips with known motion into {videos}")
        draw_clips(videos)
    else:
        step(1, f"taking the clips in {clips}")
    # Take several spans of each video, and short videos too: a demo has few videos.
    many = ["--clips-per-video", "2" if clips is None else "8", "--min-interval", "1", "--clips-per-file", "8"]
    size = ["--height", str(SIZE[0]), "--width", str(SIZE[1])]

    step(2, "decoding, scoring and encoding them (Ray Data)")
    dataset = output / "dataset"
    job("prepare.py", "--input", str(videos), "--output", str(dataset), "--model", "builtin:tiny", *size, *many)

    step(3, f"training preset tiny for {steps} steps with 2 DeepSpeed workers (Ray Train), from {init}")
    run = output / "train"
    rate = "1e-3" if init == "none" else "3e-4"
    job("train.py", "--dataset", str(dataset), "--output", str(run), "--preset", "tiny", "--init", init,
        "--max-steps", str(steps), "--num-workers", "2", "--total-batch", "4", "--micro-batch", "2",
        "--learning-rate", rate, "--prompt-drop", "0.1", "--validate-every", str(max(1, steps // 2)),
        *([] if clips else ["--validation-share", "0.15"]))  # of few videos none could be left  # fmt: skip
    show_losses(run / "validation.csv")

    step(4, f"animating {photo} with the trained model")
    animation, sheet = output / "animation.mp4", output / "sheet.png"
    start = None if init == "none" else init
    used = animate(start, run / "model", photo, prompt, sampling_steps, animation, sheet)

    typer.echo(f"\ndone in {time.monotonic() - began:.0f} s")
    show_results(output, photo, used)


def step(number: int, text: str) -> None:
    typer.echo(f"\n[{number}/4] {text}")


def show_results(output: Path, photo: Path, used: dict[str, Any]) -> None:
    """Print where everything is, and commands to go on with. used: the sampling settings."""
    model, dataset = output / "train" / "model", output / "dataset"
    places = {
        "animation": output / "animation.mp4",
        "contact sheet": output / "sheet.png",
        "loss curve": output / "train" / "loss.png",
        "dataset": dataset,
        "model directory": model,
        "MLflow database": output / "mlflow.db",
    }
    for name, place in places.items():
        typer.echo(f"  {name:<16} {place}")
    python = Path(sys.executable)
    cinemo = shown(python.with_name("cinemo"))
    typer.echo("\nnext, try:")
    typer.echo(
        f'  {cinemo} animate {photo} --prompt "the camera zooms in" --model {model} '
        f"--steps {used['num_inference_steps']:g} --guidance-scale {used['guidance_scale']:g}"
    )
    typer.echo(f"  {shown(python)} ray_jobs/train.py --dataset {dataset} --output {output / 'zero3'} --zero-stage 3")
    typer.echo(f"  {shown(python.with_name('mlflow'))} ui --backend-store-uri sqlite:///{output / 'mlflow.db'}")


def job(name: str, *arguments: str) -> None:
    """Run a job as a user would, showing its progress. Ends the demo with the job's exit code if it fails."""
    command = [sys.executable, str(ROOT / "ray_jobs" / name), *arguments]
    typer.echo(f"      {shlex.join([shown(Path(command[0])), f'ray_jobs/{name}', *arguments])}")
    code = subprocess.run(command).returncode
    if code == 3:
        typer.echo("      many videos were rejected (see rejects/ in the dataset); going on with the rest", err=True)
    elif code:
        raise typer.Exit(code)


def shown(path: Path) -> str:
    """A path relative to the working directory, if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def draw_clips(folder: Path) -> None:
    from cinemo.synthetic import write_clips

    if not (folder / "captions.csv").exists():  # written last, so its presence means that the folder is complete
        write_clips(folder, SYNTHETIC_CLIPS, size=SIZE, kinds=KINDS)


def show_losses(table: Path) -> None:
    """Print the validation loss before and after the training: of all noise levels, and of the highest fifth.

    At the highest levels the loss shows whether the words are understood; at the lowest it is mostly grain. If no video
    was held out, there is no table.
    """
    if not table.exists():
        return
    rows = list(csv.DictReader(table.open()))
    for name, column in (("", "validation_loss"), (" from noise", "validation_loss_q5")):
        first, last = float(rows[0][column]), float(rows[-1][column])
        typer.echo(f"      validation loss{name}: {first:.3f} before, {last:.3f} after ({last / first - 1:+.0%})")


def find_photo(clips: Path | None, image: Path | None, output: Path) -> Path:
    """Choose the photo to animate. Raises typer.BadParameter if --image or --clips does not exist."""
    if image is not None:
        if not image.is_file():
            raise typer.BadParameter(f"{image} does not exist; name a photo", param_hint="--image")
        return image
    if clips is not None:
        if not clips.is_dir():
            raise typer.BadParameter(f"{clips} is not a folder; name one that holds videos", param_hint="--clips")
        photos = sorted(p for p in clips.parent.glob("images/*") if p.suffix.lower() in PHOTO_SUFFIXES)
        if photos:
            return photos[0]
    from PIL import Image

    from cinemo.cli import EXAMPLE_PHOTO
    from cinemo.synthetic.images import photo

    output.mkdir(parents=True, exist_ok=True)
    path = output / "photo.png"
    Image.fromarray(photo(EXAMPLE_PHOTO)).save(path)
    return path


def animate(
    start: str | None, model: Path, photo: Path, prompt: str, steps: int | None, animation: Path, sheet: Path
) -> dict[str, Any]:
    """Write the video, and a sheet of animations before the training, and after it at several motion buckets.

    start: the model that the training started from. Returns the sampling settings.
    """
    from cinemo import CinemoPipeline
    from cinemo.image import read_image
    from cinemo.motion import motion_bucket, motion_score
    from cinemo.sheet import contact_sheet, write_sheet
    from cinemo.video import write_video

    rows = []
    for when, name, buckets in (("before", start, BUCKETS[1:2]), ("after", model, BUCKETS)):
        if name is None:
            continue
        pipe = CinemoPipeline.from_pretrained(name)
        used = SAMPLING | pipe.card.sampling | ({} if steps is None else {"num_inference_steps": steps})
        settings = {**used, "motion_bucket": list(buckets), "height": SIZE[0], "width": SIZE[1]}
        clips = pipe([read_image(photo)] * len(buckets), prompt, **settings).frames
        for bucket, clip in zip(buckets, clips, strict=True):
            measured = motion_bucket(motion_score(clip))
            rows.append((f'{when} training: "{prompt}", motion bucket {bucket} requested, {measured} measured', clip))
    write_video(animation, clips[len(BUCKETS) // 2])
    write_sheet(sheet, contact_sheet(rows))
    return used


if __name__ == "__main__":
    typer.run(main)
