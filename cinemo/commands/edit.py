"""`cinemo edit`: give an edited first frame the motion of a video (motion transfer, video editing)."""

import time
from pathlib import Path
from typing import Annotated

import typer

from cinemo.commands import common

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
FramesOption = Annotated[int, typer.Option(help="frames taken")]
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
    num_frames: FramesOption = 16,
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
    from PIL import Image

    from cinemo.checkpoint import inversion_note
    from cinemo.editing import edit_video
    from cinemo.image import fitting_size, read_image
    from cinemo.motion import motion_bucket as measure_bucket
    from cinemo.motion import motion_score
    from cinemo.sheet import write_sheet
    from cinemo.video import check_output, load_clip, shown_size, write_video

    check_steps(image, first_frame)
    check_output(output, fps)
    edited = None if image is None else read_image(image)
    pipe = common.load(model, device, dtype, vae, lora)
    common.note_trigger_words(pipe, prompt)
    if not (height or width) and pipe.card.sizes:
        height, width = fitting_size(*shown_size(video), pipe.card.sizes)
    size = common.frame_size(pipe, height, width)
    frames, step, _ = load_clip(video, start, interval, num_frames, size, shorten=True)
    if first_frame is not None:
        write_sheet(first_frame, Image.fromarray(frames[0]))
        typer.echo(f"{first_frame}: frame {start} of {video}; edit it, then pass it as --image")
        return
    if note := inversion_note(model, pipe.scheduler):
        typer.echo(f"note: {note}", err=True)
    bucket = measure_bucket(motion_score(frames)) if motion_bucket is None else motion_bucket
    began = time.perf_counter()
    made = edit_video(
        pipe,
        frames,
        edited,
        prompt,
        source_prompt,
        motion_bucket=bucket,
        num_inference_steps=pipe.card.inversion_steps if steps is None else steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        dct_init=dct_init,
        dct_cutoff=dct_cutoff,
        dct_timestep=dct_timestep,
    )
    write_video(output, made, fps)
    last = start + step * (num_frames - 1)
    typer.echo(
        f"{output}: the motion of frames {start}..{last} by {step} of {video}, in {time.perf_counter() - began:.1f} s; "
        f"{common.sentence(made, bucket)}"
    )


def check_steps(image: Path | None, first_frame: Path | None) -> None:
    """Check that either --image or --first-frame is given. Raises ValueError."""
    if (image is None) == (first_frame is None):
        raise ValueError("give --image, the edited first frame, or --first-frame, where the frame to edit is written")
    if first_frame is not None and first_frame.suffix.lower() != ".png":
        raise ValueError(f"--first-frame {first_frame} must end in .png")
