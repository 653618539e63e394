"""`cinemo animate`: turn a photo and a prompt into a video, a chain of clips, a loop, or a sheet of motion buckets."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from cinemo.commands import common
from cinemo.samplers import SCHEDULERS, SPEEDS, Speed

Fit = Literal["crop", "pad", "auto"]  # crop and pad are also in cinemo.image.FITS, which loads numpy
ImageArgument = Annotated[Path, typer.Argument(help="the photo: JPEG, PNG, WebP, ...; HEIC with pillow-heif")]
PromptOption = Annotated[str, typer.Option(help="what should happen; may be empty")]
BucketOption = Annotated[int | None, typer.Option(help="how much moves, 0 (still) to 19; default: the model's, or 10")]
ReferenceOption = Annotated[Path | None, typer.Option(help="take the motion bucket that is measured in this video")]
SweepOption = Annotated[
    str | None, typer.Option(help="several motion buckets, such as 0,5,10,15,19: a video each, and a sheet (.png)")
]
ExtendOption = Annotated[int, typer.Option(help="further clips, each from the last frame of the one before")]
LoopOption = Annotated[bool, typer.Option("--loop", help="forward and back again, so that it repeats seamlessly")]
SeedOption = Annotated[int, typer.Option(help="the same seed gives the same video")]
SpeedOption = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(SPEEDS),
        help="sampler, steps and what they share. paper: 50 steps of DDIM; balanced: over 4 times as fast, near to "
        "paper; fast: over 8 times, less near (benchmarks/README.md). Default: the model's own steps of DDIM",
    ),
]
SchedulerOption = Annotated[
    str, typer.Option(metavar="|".join(SCHEDULERS), help="sampler; numbers in the paper and the model card are DDIM's")
]
GuidanceOption = Annotated[
    float | None, typer.Option(help="how strongly the prompt acts; 1 or less is off; default: the model's, or 7.5")
]
RescaleOption = Annotated[float, typer.Option(help="0..1; 0.7 calms the contrast of strong guidance")]
IntervalOption = Annotated[
    tuple[float, float], typer.Option(help="share of the steps in which guidance acts, from first to last")
]
FramesOption = Annotated[int | None, typer.Option(help="frames, the photo included; default: the model's, or 16")]
FitOption = Annotated[
    Fit,
    typer.Option(
        help="a photo of another aspect than the size. crop: its centre fills the frame; pad: all of it, between "
        "blurred bars; auto: an older name of crop"
    ),
]
DctOption = Annotated[bool, typer.Option(help="refine the initial noise with the photo (DCTInit)")]
TimestepOption = Annotated[int, typer.Option(help="noise level of the photo in DCTInit, 0..999")]


def animate(
    image: ImageArgument,
    prompt: PromptOption,
    output: common.OutputOption = Path("out.mp4"),
    model: common.ModelOption = "builtin:tiny",
    motion_bucket: BucketOption = None,
    reference_video: ReferenceOption = None,
    sweep: SweepOption = None,
    extend: ExtendOption = 0,
    loop: LoopOption = False,
    seed: SeedOption = 0,
    steps: common.StepsOption = None,
    speed: SpeedOption = None,
    scheduler: SchedulerOption = "ddim",
    guidance_scale: GuidanceOption = None,
    guidance_rescale: RescaleOption = 0.0,
    guidance_interval: IntervalOption = (0.0, 1.0),
    negative_prompt: common.NegativeOption = "",
    num_frames: FramesOption = None,
    height: common.HeightOption = None,
    width: common.WidthOption = None,
    fit: FitOption = "crop",
    fps: common.FpsOption = 8,
    dct_init: DctOption = True,
    dct_cutoff: common.CutoffOption = 0.23,
    dct_timestep: TimestepOption = 975,
    lora: common.LoraOption = None,
    vae: common.VaeOption = "auto",
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "float32",
) -> None:
    """Animate one photo and write a video."""
    from cinemo.image import read_image
    from cinemo.video import check_output

    check_output(output, fps)
    if motion_bucket is not None and (reference_video or sweep):
        raise ValueError("--motion-bucket, --reference-video and --sweep all set the motion; give one of them")
    buckets = read_buckets(sweep, bool(extend or loop or reference_video))
    common.check_inputs_stay(swept(output, buckets) if buckets else [output], [image, reference_video])
    sampler = read_sampler(steps, speed, scheduler, guidance_interval)
    photo = read_image(image)
    pipe = common.load(model, device, dtype, vae, lora)
    common.note_trigger_words(pipe, prompt)
    settings: dict[str, Any] = {
        "seed": seed,
        "negative_prompt": negative_prompt,
        "num_frames": pipe.card.length if num_frames is None else num_frames,
        "num_inference_steps": pipe.card.steps,
        "guidance_scale": pipe.card.guidance if guidance_scale is None else guidance_scale,
        "guidance_rescale": guidance_rescale,
        "motion_bucket": pipe.card.bucket if motion_bucket is None else motion_bucket,
    }
    settings |= {"dct_init": dct_init, "dct_cutoff": dct_cutoff, "dct_timestep": dct_timestep}
    settings |= fitted(pipe, photo, fit, height, width) | sampler
    if reference_video is not None:
        settings["motion_bucket"] = measure(reference_video, settings)
    if buckets:
        write_sweep(pipe, photo, prompt, buckets, settings, output, fps)
    else:
        write_chain(pipe, photo, prompt, extend, loop, settings, output, fps)


def read_sampler(steps: int | None, speed: str | None, scheduler: str, interval: tuple[float, float]) -> dict[str, Any]:
    """The sampler's settings as arguments of CinemoPipeline.

    Raises ValueError for unknown names, and for --speed together with a setting that it implies.
    """
    for flag, name, known in (("--scheduler", scheduler, SCHEDULERS), ("--speed", speed, SPEEDS)):
        if name is not None and name not in known:
            raise ValueError(f"{flag} {name} is unknown; use {', '.join(known)}")
    if speed is None:
        asked: dict[str, Any] = {} if steps is None else {"num_inference_steps": steps}
        return {**asked, "scheduler": None if scheduler == "ddim" else scheduler, "guidance_interval": interval}
    if steps is not None or scheduler != "ddim" or interval != (0.0, 1.0):
        raise ValueError(f"--speed {speed} sets --steps, --scheduler and --guidance-interval itself; leave these out")
    return dict(SPEEDS[cast(Speed, speed)])


def fitted(pipe: Any, photo: Any, fit: Fit, height: int | None, width: int | None) -> dict[str, Any]:
    """The size to animate at and how the photo is fitted to it, as arguments of CinemoPipeline.

    Without a height and width, the size is that of the model's sizes whose aspect is nearest to the photo's. Prints a
    note when more than a third of the photo is cut away. Raises ValueError for a size that the model does not take.
    """
    from cinemo.image import NOTABLE_CUT, cut_away, fitting_size

    tall, wide = photo.shape[:2]
    if not (height or width) and pipe.card.sizes:
        height, width = fitting_size(tall, wide, pipe.card.sizes)
    height, width = common.frame_size(pipe, height, width)
    share = cut_away(tall, wide, height, width)
    if fit != "pad" and share > NOTABLE_CUT:
        typer.echo(
            f"note: {share:.0%} of the photo, {wide} x {tall} pixels, is cut away to fill {width} x {height}; "
            "--fit pad shows all of it",
            err=True,
        )
    return {"height": height, "width": width, "fit": "pad" if fit == "pad" else "crop"}


def measure(video: Path, settings: dict[str, Any]) -> int:
    """Measure the motion bucket of a video at the size and length of the animation."""
    from cinemo.motion import motion_bucket, motion_score
    from cinemo.video import load_clip

    size = settings["height"], settings["width"]
    bucket = motion_bucket(motion_score(load_clip(video, 0, 3, settings["num_frames"], size, shorten=True).frames))
    typer.echo(f"{video}: motion bucket {bucket}")
    return bucket


def read_buckets(text: str | None, has_conflict: bool = False) -> list[int]:
    """Parse "0,5,10" as [0, 5, 10], and None as []. Raises ValueError.

    has_conflict: whether a flag is given that --sweep excludes: --extend, --loop or --reference-video.
    """
    from cinemo.motion import UNIFORM_MOTION, motion_id

    if text is None:
        return []
    if has_conflict:
        raise ValueError("--sweep makes one clip for each bucket; leave out --extend, --loop and --reference-video")
    try:
        buckets = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--sweep {text} is no list of motion buckets; write it as 0,5,10,15,19") from None
    for bucket in buckets:
        motion_id(bucket, UNIFORM_MOTION)  # raises ValueError for other numbers
    return buckets


def write_chain(
    pipe: Any, photo: Any, prompt: str, more: int, loop: bool, settings: dict[str, Any], output: Path, fps: float
) -> None:
    """Write one clip and `more` that continue it, as one video; loop: forward and back again."""
    import numpy as np

    from cinemo import longer
    from cinemo.video import write_video

    began = time.perf_counter()
    clips = longer.extend(pipe, photo, prompt, more, **settings)
    frames = np.concatenate(clips)
    played = longer.loop(frames) if loop else frames
    write_video(output, played, fps)
    count, tall, wide = played.shape[:3]
    typer.echo(
        f"{output}: {count} frames, {wide} pixels wide and {tall} high, in {time.perf_counter() - began:.1f} s; "
        f"{common.sentence(frames, settings['motion_bucket'], pipe.card.prompts)}"
    )
    if more:
        drifts = ", ".join(f"{drift:.1f}" for drift in longer.drift(clips))
        typer.echo(f"colour drift from the photo at the end of each clip: {drifts} (CIE Lab; 2.3 is just noticeable)")


def swept(output: Path, buckets: list[int]) -> list[Path]:
    """The files of a sweep: a video for each bucket, and the sheet."""
    return [*(output.with_stem(f"{output.stem}-{bucket}") for bucket in buckets), output.with_suffix(".png")]


def write_sweep(
    pipe: Any, photo: Any, prompt: str, buckets: list[int], settings: dict[str, Any], output: Path, fps: float
) -> None:
    """Animate the photo at each bucket: OUTPUT-5.mp4 and so on, and OUTPUT.png with requested and measured buckets."""
    from cinemo.motion import motion_bucket, motion_score
    from cinemo.sheet import contact_sheet, write_sheet
    from cinemo.video import write_video

    rows = []
    *videos, sheet = swept(output, buckets)
    typer.echo("requested  measured  SSIM")
    for bucket, video in zip(buckets, videos, strict=True):
        frames = pipe(photo, prompt, **settings | {"motion_bucket": bucket}).frames[0]
        write_video(video, frames, fps)
        score = motion_score(frames)
        typer.echo(f"{bucket:9d}  {motion_bucket(score):8d}  {score:.3f}")
        rows.append((f"motion bucket {bucket}, measured {motion_bucket(score)}: {prompt}", frames))
    write_sheet(sheet, contact_sheet(rows))
    typer.echo(f"{sheet}: a row for each; the videos are beside it")
