"""`cinemo animate`: a photo and a prompt become a video, a chain of clips, a loop, or a sheet over motion buckets."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cinemo.commands import common


class Scheduler(StrEnum):
    """cinemo.sampling.SCHEDULERS, which loads torch."""

    ddim = "ddim"
    dpmsolver = "dpmsolver++"
    unipc = "unipc"
    deis = "deis"
    euler = "euler"
    heun = "heun"


class Speed(StrEnum):
    """cinemo.sampling.SPEEDS, which loads torch."""

    paper = "paper"
    balanced = "balanced"
    fast = "fast"


def animate(
    image: Annotated[Path, typer.Argument(help="the photo: JPEG, PNG, WebP, ...")],
    prompt: Annotated[str, typer.Option(help="what should happen; may be empty")],
    output: common.OutputOption = Path("out.mp4"),
    model: common.ModelOption = "builtin:tiny",
    motion_bucket: Annotated[int, typer.Option(help="motion intensity: 0 (still) to 19")] = 10,
    reference_video: Annotated[
        Path | None, typer.Option(help="take the motion bucket that is measured in this video")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="several motion buckets, such as 0,5,10,15,19: a video each, and a sheet (.png)")
    ] = None,
    extend: Annotated[int, typer.Option(help="further clips, each from the last frame of the one before")] = 0,
    loop: Annotated[bool, typer.Option("--loop", help="forward and back again, so that it repeats seamlessly")] = False,
    seed: Annotated[int, typer.Option(help="the same seed gives the same video")] = 0,
    steps: common.StepsOption = None,
    speed: Annotated[
        Speed | None,
        typer.Option(
            help="sampler, steps and what they share. paper: 50 steps of DDIM; balanced: over 4 times as fast, near to "
            "paper; fast: over 8 times, less near (benchmarks/README.md). Default: the model's own steps of DDIM"
        ),
    ] = None,
    scheduler: Annotated[
        Scheduler, typer.Option(help="sampler; the numbers of paper and model card are DDIM's")
    ] = Scheduler.ddim,
    guidance_scale: Annotated[
        float | None, typer.Option(help="how strongly the prompt acts; 1 or less is off; default: the model's, or 7.5")
    ] = None,
    guidance_rescale: Annotated[float, typer.Option(help="0..1; 0.7 calms the contrast of strong guidance")] = 0.0,
    guidance_interval: Annotated[
        tuple[float, float], typer.Option(help="share of the steps in which guidance acts, from first to last")
    ] = (0.0, 1.0),
    negative_prompt: common.NegativeOption = "",
    num_frames: Annotated[int, typer.Option(help="frames, the photo included")] = 16,
    height: common.HeightOption = None,
    width: common.WidthOption = None,
    fps: common.FpsOption = 8,
    dct_init: Annotated[bool, typer.Option(help="refine the initial noise with the photo (DCTInit)")] = True,
    dct_cutoff: common.CutoffOption = 0.23,
    dct_timestep: Annotated[int, typer.Option(help="noise level of the photo in DCTInit, 0..999")] = 975,
    vae: common.VaeOption = common.Vae.auto,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = common.Dtype.float32,
) -> None:
    """Animate one photo and write a video."""
    import numpy as np

    from cinemo import longer
    from cinemo.image import read_image
    from cinemo.motion import motion_bucket as measure_bucket
    from cinemo.motion import motion_score
    from cinemo.sampling import SPEEDS
    from cinemo.video import check_output, read_clip, write_video

    check_output(output, fps)
    buckets = read_buckets(sweep) if sweep is not None else []
    if buckets and (extend or loop or reference_video):
        raise ValueError("--sweep is one clip a bucket; leave out --extend, --loop and --reference-video")
    if speed is not None and (steps is not None or scheduler != Scheduler.ddim or guidance_interval != (0.0, 1.0)):
        raise ValueError(
            f"--speed {speed.value} sets --steps, --scheduler and --guidance-interval itself; leave these out"
        )
    photo = read_image(image)
    pipe = common.load(model, device, dtype.value, vae.value)
    height, width = common.fitting_size(pipe, photo, height, width)
    if reference_video is not None:
        clip, _ = read_clip(reference_video, 0, 3, num_frames, common.frame_size(pipe, height, width))
        motion_bucket = measure_bucket(motion_score(clip))
        typer.echo(f"{reference_video}: motion bucket {motion_bucket}")
    settings: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "num_inference_steps": pipe.card.steps if steps is None else steps,
        "scheduler": None if scheduler == Scheduler.ddim else scheduler.value,
        "guidance_scale": pipe.card.guidance if guidance_scale is None else guidance_scale,
        "guidance_rescale": guidance_rescale,
        "guidance_interval": guidance_interval,
        "dct_init": dct_init,
        "dct_cutoff": dct_cutoff,
        "dct_timestep": dct_timestep,
    }
    if speed is not None:
        settings |= SPEEDS[speed.value]
    began = time.perf_counter()
    if buckets:
        write_sweep(pipe, photo, prompt, buckets, seed, settings, output, fps)
        return
    clips = longer.extend(pipe, photo, prompt, extend, seed, motion_bucket=motion_bucket, **settings)
    frames = np.concatenate(clips)
    played = longer.loop(frames) if loop else frames
    write_video(output, played, fps)
    count, tall, wide = played.shape[:3]
    typer.echo(
        f"{output}: {count} frames of {tall} x {wide} in {time.perf_counter() - began:.1f} s; "
        f"{common.sentence(frames, motion_bucket)}"
    )
    if extend:
        drifts = ", ".join(f"{drift:.1f}" for drift in longer.drift(clips))
        typer.echo(f"colour drift from the photo at the end of each clip: {drifts} (CIE Lab; 2.3 is just noticeable)")


def read_buckets(text: str) -> list[int]:
    """ "0,5,10" -> [0, 5, 10]. Raises ValueError."""
    from cinemo.motion import UNIFORM_MOTION, motion_id

    try:
        buckets = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--sweep {text} is no list of motion buckets; write it as 0,5,10,15,19") from None
    for bucket in buckets:
        motion_id(bucket, UNIFORM_MOTION)  # refuses what is no bucket
    return buckets


def write_sweep(
    pipe: Any,
    photo: Any,
    prompt: str,
    buckets: list[int],
    seed: int,
    settings: dict[str, Any],
    output: Path,
    fps: float,
) -> None:
    """The photo at each bucket: OUTPUT-5.mp4 and so on, OUTPUT.png with a row for each, requested against measured."""
    from cinemo.motion import motion_bucket, motion_score
    from cinemo.sheet import contact_sheet, write_sheet
    from cinemo.video import write_video

    rows = []
    typer.echo("requested  measured  SSIM")
    for bucket in buckets:
        frames = pipe(photo, prompt, motion_bucket=bucket, seed=seed, **settings).frames[0]
        write_video(output.with_stem(f"{output.stem}-{bucket}"), frames, fps)
        score = motion_score(frames)
        typer.echo(f"{bucket:9d}  {motion_bucket(score):8d}  {score:.3f}")
        rows.append((f"motion bucket {bucket}, measured {motion_bucket(score)}: {prompt}", frames))
    sheet = output.with_suffix(".png")
    write_sheet(sheet, contact_sheet(rows))
    typer.echo(f"{sheet}: a row for each; the videos are beside it")
