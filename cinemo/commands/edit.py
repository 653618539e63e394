"""`cinemo edit`: give an edited first frame the motion of a video (motion transfer, video editing)."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cinemo.commands import common

if TYPE_CHECKING:  # `--help` loads no numpy
    import numpy as np

VideoArgument = Annotated[Path, typer.Argument(help="the video whose motion is taken")]
PromptOption = Annotated[str, typer.Option(help="what the result shows; may be empty")]
ImageOption = Annotated[Path | None, typer.Option(help="the first frame after editing, of the video's aspect")]
FirstFrameOption = Annotated[
    Path | None, typer.Option(help="write the frame to edit here (.png) and stop: the first step of two")
]
SourceOption = Annotated[str | None, typer.Option(help="what the video shows; default: the prompt")]
ModelOption = Annotated[
    str,
    typer.Option(
        help="builtin:tiny, a model directory, or a hub id; one that predicts residuals keeps little of the motion"
    ),
]
StartOption = Annotated[int, typer.Option(help="first frame taken from the video")]
IntervalOption = Annotated[int, typer.Option(help="distance between frames; less where a video is short")]
FramesOption = Annotated[int | None, typer.Option(help="frames taken; default: the model's, or 16")]
BucketOption = Annotated[int | None, typer.Option(help="0 to 19; default: what the video measures")]
StepsOption = Annotated[int | None, typer.Option(help="denoising steps; default: the model's, but at least 25")]
GuidanceOption = Annotated[
    float, typer.Option(help="1 keeps the video's motion; more follows the prompt and departs from it")
]
DctOption = Annotated[bool, typer.Option(help="put the image's low frequencies into the inverted noise")]
TimestepOption = Annotated[int, typer.Option(help="noise level of the image in DCTInit, 0..999")]


def edit(
    video: VideoArgument,
    prompt: PromptOption = "",
    image: ImageOption = None,
    first_frame: FirstFrameOption = None,
    output: common.OutputOption = Path("out.mp4"),
    source_prompt: SourceOption = None,
    model: ModelOption = "builtin:tiny",
    start: StartOption = 0,
    interval: IntervalOption = 3,
    num_frames: FramesOption = None,
    motion_bucket: BucketOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = 1.0,
    negative_prompt: common.NegativeOption = "",
    height: common.HeightOption = None,
    width: common.WidthOption = None,
    fps: common.FpsOption = 8,
    dct_init: DctOption = False,
    dct_cutoff: common.CutoffOption = 0.23,
    dct_timestep: TimestepOption = 985,
    lora: common.LoraOption = None,
    vae: common.VaeOption = "auto",
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "float32",
) -> None:
    """Give an edited first frame the motion of a video (DDIM inversion of its motion residuals)."""
    from cinemo.image import read_image
    from cinemo.video import check_output

    check_steps(image, first_frame)
    check_output(output, fps)
    common.check_inputs_stay([first_frame or output], [video, image])
    edited = None if image is None else read_image(image)
    pipe = common.load(model, device, dtype, vae, lora)
    common.note_trigger_words(pipe, prompt)
    length = pipe.card.length if num_frames is None else num_frames
    frames, step = read_frames(pipe, video, start, interval, length, height, width)
    if first_frame is not None:
        write_first_frame(first_frame, frames[0], f"frame {start} of {video}")
        return
    settings = {
        "num_inference_steps": pipe.card.inversion_steps if steps is None else steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "dct_init": dct_init,
        "dct_cutoff": dct_cutoff,
        "dct_timestep": dct_timestep,
    }
    note_inversion(model, pipe)
    note_idle(negative_prompt, guidance_scale, dct_init, (dct_cutoff, dct_timestep))
    taken = f"frames {start}..{start + step * (len(frames) - 1)} by {step} of {video}"
    write_edited(pipe, frames, edited, (prompt, source_prompt), motion_bucket, settings, output, fps, taken)


def note_idle(negative_prompt: str, guidance_scale: float, dct_init: bool, dct: tuple[float, int]) -> None:
    """Print a note on flags that have no effect without others."""
    if negative_prompt and guidance_scale <= 1:
        typer.echo("note: --negative-prompt acts only with a --guidance-scale above 1", err=True)
    if not dct_init and dct != (0.23, 985):
        typer.echo("note: --dct-cutoff and --dct-timestep act only with --dct-init", err=True)


def check_steps(image: Path | None, first_frame: Path | None) -> None:
    """Check that either --image or --first-frame is given. Raises ValueError."""
    if (image is None) == (first_frame is None):
        raise ValueError("give --image, the edited first frame, or --first-frame, where the frame to edit is written")
    if first_frame is not None and first_frame.suffix.lower() != ".png":
        raise ValueError(f"--first-frame {first_frame} must end in .png")


def read_frames(
    pipe: Any, video: Path, start: int, interval: int, num_frames: int, height: int | None, width: int | None
) -> tuple["np.ndarray", int]:
    """Read the clip whose motion is taken: (uint8 (N, H, W, 3), distance between its frames in frames of the video).

    Without height and width, it gets the model's size whose aspect is nearest to the video's. Raises ValueError for a
    size that the model does not take, and VideoError.
    """
    from cinemo.image import fitting_size
    from cinemo.video import load_clip, shown_size

    if not (height or width) and pipe.card.sizes:
        height, width = fitting_size(*shown_size(video), pipe.card.sizes)
    size = common.frame_size(pipe, height, width)
    frames, step, _ = load_clip(video, start, interval, num_frames, size, shorten=True)
    return frames, step


def write_first_frame(path: Path, frame: "np.ndarray", name: str) -> None:
    """Write the frame to edit, uint8 (H, W, 3), as PNG, and print what to do next. name: of the frame, to print."""
    from PIL import Image

    from cinemo.sheet import write_sheet

    write_sheet(path, Image.fromarray(frame))
    typer.echo(f"{path}: {name}; edit it, then pass it as --image")


def note_inversion(model: str, pipe: Any) -> None:
    """Print a note if inversion with this model keeps little of a video's motion."""
    from cinemo.checkpoint import inversion_note

    if note := inversion_note(model, pipe.scheduler):
        typer.echo(f"note: {note}", err=True)


def write_edited(
    pipe: Any,
    frames: "np.ndarray",
    edited: Any,
    prompts: tuple[str, str | None],
    motion_bucket: int | None,
    settings: dict[str, Any],
    output: Path,
    fps: float,
    taken: str,
) -> None:
    """Give the edited image the motion of the frames, and write the video.

    prompts: of the result and of the source video (None: the same). motion_bucket: None to measure it in the frames.
    settings: further arguments of cinemo.editing.edit_video. taken: description of the frames, to print.
    """
    from cinemo.editing import edit_video
    from cinemo.motion import motion_bucket as measure_bucket
    from cinemo.motion import motion_score
    from cinemo.video import write_video

    bucket = measure_bucket(motion_score(frames)) if motion_bucket is None else motion_bucket
    began = time.perf_counter()
    made = edit_video(pipe, frames, edited, *prompts, motion_bucket=bucket, **settings)
    write_video(output, made, fps)
    typer.echo(
        f"{output}: the motion of {taken}, in {time.perf_counter() - began:.1f} s; {common.sentence(made, bucket)}"
    )
