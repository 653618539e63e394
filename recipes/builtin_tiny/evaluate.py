"""Measure the numbers of docs/model-card.md: how well a built-in model animates unseen photos, against targets.

    python recipes/builtin_tiny/evaluate.py --model builtin:tiny --images ../shared/images --clips ../shared/clips

Measures pixels of finished animations (cinemo.metrics), and the time of a cold process. Photos are chelsea, coffee and
rocket, and those in --images; the videos in --clips test the autoencoder and the inversion. Takes about fifteen minutes
on two cores.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import laplace, shift
from scipy.stats import spearmanr
from skimage.color import rgb2gray
from skimage.registration import phase_cross_correlation

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, Python sees only its own folder

from cinemo.editing import edit_video
from cinemo.image import fit_pixels, read_image
from cinemo.latents import decode_latents, encode_frames, to_frames, to_pixels
from cinemo.metrics import flow, psnr
from cinemo.metrics.frames import abruptness
from cinemo.motion import motion_bucket, motion_score
from cinemo.pipeline import CinemoPipeline
from cinemo.synthetic import plain_caption
from cinemo.synthetic.images import HELD_OUT_PHOTOS, photo
from cinemo.video import VideoError, sample_clip
from recipes.builtin_tiny import regions
from recipes.builtin_tiny.motions import camera
from recipes.builtin_tiny.pool import score_of

MOVES = (
    ("pan", "left"), ("pan", "right"), ("pan", "up"), ("pan", "down"), ("zoom", "in"), ("zoom", "out"),
    ("rotate", "clockwise"), ("rotate", "counterclockwise"),
)  # fmt: skip
BUCKETS = (0, 2, 4, 6, 8, 10, 12, 14, 16)
SIZE = (320, 512)
INTERVALS = (1, 2, 3)
SPEEDS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.2, 2.0, 3.5, 6.0, 10.0, 16.0, 24.0)  # pixels a frame


class Number(NamedTuple):
    """A line of the table."""

    what: str
    measured: str
    wanted: str
    reached: bool


def load_photos(folder: Path | None) -> dict[str, np.ndarray]:
    """Read the bundled held-out photos and those of a folder, at their own sizes: name -> uint8 (H, W, 3)."""
    raw: dict[str, Any] = {Path(name).stem: photo(name) for name in HELD_OUT_PHOTOS}
    raw |= {path.stem: str(path) for path in sorted(folder.glob("*.jpg"))} if folder else {}
    return {name: read_image(image) for name, image in raw.items()}


def animate(pipe: Any, jobs: Sequence[dict[str, Any]], batch: int = 4, **settings: Any) -> list[np.ndarray]:
    """Make many animations; a job holds image, prompt, motion_bucket and seed. Returns their frames."""
    settings = {"num_inference_steps": pipe.card.steps, "guidance_scale": pipe.card.guidance, **settings}
    clips: list[np.ndarray] = []
    for start in range(0, len(jobs), batch):
        group = jobs[start : start + batch]
        columns = {key: [job[key] for job in group] for key in group[0]}
        clips.extend(pipe(**columns, **settings).frames)
    return clips


def direction(pipe: Any, photos: dict[str, np.ndarray], seeds: int, bucket: int = 8) -> Iterable[Number]:
    """Measure how often the motion has the prompt's direction, and how much of the photo a pan's last frame keeps."""
    jobs = [
        {"image": image, "prompt": plain_caption(*move), "motion_bucket": bucket, "seed": seed}
        for move in MOVES
        for seed in range(seeds)
        for image in photos.values()
    ]
    moves = [move for move in MOVES for _ in range(seeds * len(photos))]
    clips = animate(pipe, jobs)
    right = dict.fromkeys(MOVES, 0)
    for move, clip in zip(moves, clips, strict=True):
        right[move] += bool(flow.agrees(flow.measure(clip)[0], *move))
    share = sum(right.values()) / len(jobs)
    wrong = ", ".join(f"{kind} {way} {seeds * len(photos) - n}" for (kind, way), n in right.items()) or "none"
    what = f"motion goes the way the prompt says, eight camera motions, {len(jobs)} animations"
    yield Number(what, f"{share:.1%} (wrong: {wrong})", "99 %", share >= 0.99)
    pans = [clip for (kind, _), clip in zip(moves, clips, strict=True) if kind == "pan"]
    pairs = [overlap(clip[0], clip[-1]) for clip in pans]
    kept = [psnr(first, last) for first, last in pairs]
    yield Number(
        f"last frame of a pan moved back, against the photo, median of {len(pans)} (least)",
        f"{np.median(kept):.1f} dB ({min(kept):.1f})", "32 dB", float(np.median(kept)) >= 32,
    )  # fmt: skip
    sharp = [laplace(rgb2gray(last)).var() / laplace(rgb2gray(first)).var() for first, last in pairs]
    yield Number(
        "sharpness of the last frame of a pan, against the photo moved so, median (least)",
        f"{np.median(sharp):.2f} ({min(sharp):.2f})", "0.85", float(np.median(sharp)) >= 0.85,
    )  # fmt: skip


def overlap(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Align the part that both pictures show (phase correlation, cubic): twice uint8 (h, w, 3).

    Each is moved half of the way, so that both are interpolated once.
    """
    moved, _, _ = phase_cross_correlation(rgb2gray(first), rgb2gray(last), upsample_factor=20)
    whole = np.round(moved).astype(int)
    height, width = first.shape[:2]
    rows = slice(max(0, whole[0]), height + min(0, whole[0]))
    columns = slice(max(0, whole[1]), width + min(0, whole[1]))
    ours = first[rows, columns].astype(float)
    theirs = last[rows.start - whole[0] : rows.stop - whole[0], columns.start - whole[1] : columns.stop - whole[1]]
    rest = (moved - whole) / 2
    ours, theirs = shift(ours, (*-rest, 0), mode="nearest"), shift(theirs.astype(float), (*rest, 0), mode="nearest")
    inner = (slice(4, -4), slice(4, -4))
    return ours[inner].clip(0, 255).astype(np.uint8), theirs[inner].clip(0, 255).astype(np.uint8)


def motion_control(pipe: Any, photos: dict[str, np.ndarray]) -> Iterable[Number]:
    """Compare requested with measured buckets, over photos and prompts, and measure how still bucket 0 is."""
    prompts = [plain_caption(*move) for move in (MOVES[0], MOVES[4], MOVES[6])]
    jobs = [
        {"image": image, "prompt": prompt, "motion_bucket": bucket, "seed": 0}
        for bucket in BUCKETS
        for image in photos.values()
        for prompt in prompts
    ]
    scores = [motion_score(clip) for clip in animate(pipe, jobs)]
    requested = np.array([job["motion_bucket"] for job in jobs])
    measured = np.array([motion_bucket(score) for score in scores])
    rank = float(spearmanr(requested, measured).statistic)
    yield Number(
        f"Spearman of requested and measured bucket, 0 to 16, {len(jobs)} animations",
        f"{rank:.3f}",
        "0.95",
        rank >= 0.95,
    )
    low = requested <= 12
    error = float(np.abs(requested - measured)[low].mean())
    yield Number("mean absolute bucket error, 0 to 12", f"{error:.2f}", "1.0", error <= 1.0)
    means = ", ".join(f"{measured[requested == bucket].mean():.1f}" for bucket in BUCKETS)
    yield Number(
        f"mean measured bucket when {', '.join(map(str, BUCKETS))} is asked for", means, "the same", error <= 1.0
    )
    still = min(score for score, bucket in zip(scores, requested, strict=True) if bucket == 0)
    yield Number("SSIM of neighbours at bucket 0, worst photo and prompt", f"{still:.3f}", "0.99", still >= 0.99)


def reachable(photos: dict[str, np.ndarray]) -> Iterable[Number]:
    """Measure the same for a perfect camera, at the speed that comes closest to each bucket.

    It shows which buckets can be reached: SSIM depends on the photo as much as on the motion; half of rocket is sky.
    """
    requested: list[int] = []
    measured: list[int] = []
    for image in photos.values():
        pixels = fit_pixels(image, *SIZE)[0]
        for kind, way in (MOVES[0], MOVES[4], MOVES[6]):
            moved = [camera(np.random.default_rng(0), kind, speed, way) for speed in SPEEDS]
            buckets = np.array([motion_bucket(min(1.0, score_of(pixels, motion, {}))) for motion in moved])
            requested += BUCKETS
            measured += [int(buckets[np.abs(buckets - bucket).argmin()]) for bucket in BUCKETS]
    error = np.abs(np.array(requested) - np.array(measured))[np.array(requested) <= 12].mean()
    what = "a camera without a fault on these photos: Spearman, mean absolute bucket error"
    yield Number(what, f"{spearmanr(requested, measured).statistic:.3f}, {error:.2f}", "0.95, 1.0", False)


def first_frame(pipe: Any, photos: dict[str, np.ndarray]) -> Iterable[Number]:
    """Compare the first frame with the photo."""
    jobs: list[dict[str, Any]] = [
        {"image": image, "prompt": "", "motion_bucket": 4, "seed": 0} for image in photos.values()
    ]
    worst = min(
        psnr(to_frames(fit_pixels(job["image"], *SIZE))[0], clip[0])
        for job, clip in zip(jobs, animate(pipe, jobs), strict=True)
    )
    yield Number("PSNR of the first frame, worst photo", f"{worst:.1f} dB", "45 dB", worst >= 45)


def real_clips(pipe: Any, folder: Path) -> Iterable[Number]:
    """Measure how well videos survive the autoencoder, and inversion with sampling."""
    kept, repeated, errors = [], [], []
    for path in sorted(folder.glob("*.mp4")):
        for interval in INTERVALS:
            try:
                frames = sample_clip(path, 0, interval, size=SIZE)
            except VideoError:
                continue
            image = to_pixels(frames[:1])
            coded = decode_latents(pipe.vae, encode_frames(pipe.vae, frames[None]), images=image)[0]
            kept.append(psnr(frames[1:], coded[1:]))
            repeated.append(psnr(frames[1:], frames[:1]))
            if interval == 1:
                bucket = motion_bucket(motion_score(frames))
                edited = edit_video(pipe, frames, frames[0], "", motion_bucket=bucket, num_inference_steps=25)
                errors.append(psnr(coded[1:], edited[1:]))
    if not kept:
        return
    mean, gain = float(np.mean(kept)), float(np.mean(kept) - np.mean(repeated))
    what = f"real clips through encode and decode, {len(kept)} at intervals 1 to 3, mean (least)"
    yield Number(what, f"{mean:.1f} dB ({min(kept):.1f})", "30 dB", mean >= 30)
    yield Number("the same, above repeating the first frame", f"{gain:.1f} dB", "6 dB", gain >= 6)
    back = float(np.mean(errors))
    listed = ", ".join(f"{error:.1f}" for error in errors)
    yield Number(
        "inverted and sampled again, 25 steps, against encode and decode, mean",
        f"{back:.1f} dB ({listed})",
        "38 dB",
        back >= 38,
    )


def local_motion(pipe: Any, folders: list[Path]) -> Iterable[Number]:
    """Measure how much of the motion is in the region that the prompt names."""
    shares = regions.measure(pipe, folders, animate)
    good = sum(share >= 0.7 for share in shares.values())
    listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    what = f"at least 70 % of the motion in the region that is named, photos of {len(shares)}"
    yield Number(what, f"{good} ({listed})", "7 of 10", good >= 0.7 * len(shares))


def initial_noise(pipe: Any, photos: dict[str, np.ndarray], seeds: int) -> Iterable[Number]:
    """Compare DCTInit with none and with its FFT variant, on the same photos, prompts and noise (Fig. 3 and 5)."""
    jobs = [
        {"image": image, "prompt": plain_caption(*move), "motion_bucket": 8, "seed": seed}
        for seed in range(seeds)
        for move in MOVES[:6]
        for image in photos.values()
    ]
    variants: dict[str, dict[str, Any]] = {"dct": {}, "fft": {"dct_transform": "fft"}, "none": {"dct_init": False}}
    jumps = {name: [abruptness(clip) for clip in animate(pipe, jobs, **more)] for name, more in variants.items()}
    median = {name: float(np.median(values)) for name, values in jumps.items()}
    what = f"abruptness with DCTInit (FFT; none), median of {len(jobs)}"
    measured = f"{median['dct']:.3f} ({median['fft']:.3f}; {median['none']:.3f})"
    yield Number(what, measured, "lower than none", median["dct"] < median["none"])


COLD = """
import sys
from cinemo.cli import app
app(sys.argv[1:], standalone_mode=False)
from cinemo.memory import peak_rss
print(peak_rss())
"""


def costs(pipe: Any, model: str) -> Iterable[Number]:
    """Measure the seconds of one animation, warm and from a cold process to the written file, and its memory."""
    job = {"image": photo("coffee.png"), "prompt": "the camera pans left", "motion_bucket": 8, "seed": 0}
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        animate(pipe, [job])
        seconds.append(time.perf_counter() - began)
    yield Number("16 frames, warm, median of 5", f"{np.median(seconds):.2f} s", "2 s", float(np.median(seconds)) <= 2)
    with tempfile.TemporaryDirectory() as folder:
        image, video = Path(folder) / "photo.png", Path(folder) / "video.mp4"
        Image.fromarray(photo("coffee.png")).save(image)
        flags = ["animate", str(image), "--prompt", "the camera pans left", "--motion-bucket", "8", "--model", model]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", COLD, *flags, "--output", str(video)], check=True, capture_output=True, text=True
        )
        cold, size = time.perf_counter() - began, int(done.stdout.split()[-1]) / 1e9
    yield Number("16 frames, from a cold process", f"{cold:.1f} s", "8 s", cold <= 8)
    yield Number("its memory", f"{size:.2f} GB", "1 GB", size <= 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny", help="builtin:tiny or a model directory")
    parser.add_argument("--images", type=Path, help="folder of further photos (.jpg)")
    parser.add_argument("--clips", type=Path, help="folder of videos (.mp4)")
    parser.add_argument("--photos", type=Path, help="folder written by photos.py, for motion of sky and water")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="animations per photo and motion")
    arguments = parser.parse_args()
    pipe = CinemoPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    photos = load_photos(arguments.images)
    print("| | measured | wanted | |\n| --- | --- | --- | --- |")
    size = " x ".join(map(str, pipe.card.sizes[0] if pipe.card.sizes else ()))
    print(f"| size of a default animation | {size} | 320 x 512 | |")
    parts = [
        direction(pipe, photos, arguments.seeds),
        motion_control(pipe, photos),
        reachable(photos),
        first_frame(pipe, photos),
        real_clips(pipe, arguments.clips) if arguments.clips else (),
        local_motion(pipe, [folder for folder in (arguments.images, arguments.photos) if folder]),
        initial_noise(pipe, photos, 2),
        costs(pipe, arguments.model),
    ]
    for numbers in parts:
        for number in numbers:
            reached = "yes" if number.reached else "no"
            print(f"| {number.what} | {number.measured} | {number.wanted} | {reached} |", flush=True)


if __name__ == "__main__":
    main()
