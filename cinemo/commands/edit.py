"""`cinemo edit`: give an edited first frame the motion of a video (motion transfer, video editing)."""

import time
from pathlib import Path
from typing import Annotated

import typer

from cinemo.commands import common


def edit(
    video: Annotated[Path, typer.Argument(help="the video whose motion is taken")],
    prompt: Annotated[str, typer.Option(help="what the result shows; may be empty")] = "",
    image: Annotated[Path | None, typer.Option(help="the first frame after editing, of the video's aspect")] = None,
    first_frame: Annotated[
        Path | None, typer.Option(help="write the frame to edit here (.png) and stop: the first step of two")
    ] = None,
    output: common.OutputOption = Path("out.mp4"),
    source_prompt: Annotated[str | None, typer.Option(help="what the video shows; default: the prompt")] = None,
    model: Annotated[
        str,
        typer.Option(
            help="builtin:tiny, a model directory, or a hub id; of those that predict residuals little comes back"
        ),
    ] = "builtin:tiny",
    start: Annotated[int, typer.Option(help="first frame taken from the video")] = 0,
    interval: Annotated[int, typer.Option(help="distance between frames; less where a video is short")] = 3,
    num_frames: Annotated[int, typer.Option(help="frames taken")] = 16,
    motion_bucket: Annotated[int | None, typer.Option(help="0 to 19; default: what the video measures")] = None,
    steps: Annotated[int | None, typer.Option(help="denoising steps; default: the model's, 25 at least")] = None,
    guidance_scale: Annotated[
        float, typer.Option(help="1 keeps the video's motion; more follows the prompt and departs from it")
    ] = 1.0,
    negative_prompt: common.NegativeOption = "",
    height: common.HeightOption = None,
    width: common.WidthOption = None,
    fps: common.FpsOption = 8,
    dct_init: Annotated[bool, typer.Option(help="put the image's low frequencies into the inverted noise")] = False,
    dct_cutoff: common.CutoffOption = 0.23,
    dct_timestep: Annotated[int, typer.Option(help="noise level of the image in DCTInit, 0..999")] = 985,
    vae: common.VaeOption = "auto",
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "float32",
) -> None:
    """Give an edited first frame the motion of a video (DDIM inversion of its motion residuals)."""
    from PIL import Image

    from cinemo.checkpoint import inversion_note
    from cinemo.editing import edit_video
    from cinemo.image import read_image
    from cinemo.motion import motion_bucket as measure_bucket
    from cinemo.motion import motion_score
    from cinemo.sheet import write_sheet
    from cinemo.video import check_output, load_clip, write_video

    if (image is None) == (first_frame is None):
        raise ValueError("give --image, the edited first frame, or --first-frame, where the frame to edit is written")
    if first_frame is not None and first_frame.suffix.lower() != ".png":
        raise ValueError(f"--first-frame {first_frame} must end in .png")
    check_output(output, fps)
    edited = None if image is None else read_image(image)
    pipe = common.load(model, device, dtype, vae)
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
