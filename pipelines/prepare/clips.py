"""Draw, decode, score and encode one clip: plain functions from row to row, and one class that holds the VAE.

A result depends on its row alone, so a job that is killed and run again gives the same rows. A fault of one video is a
row with a reason, never an exception; a fault of the storage raises StorageError. Untrusted files are opened through
`run`: `directly` in this process, or in a child process (`in_sandbox`).
"""

import functools
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cinemo.motion import motion_bucket, neighbour_ssim
from cinemo.video import SAMPLING_VERSION, VideoError, VideoInfo, VideoTraits, load_clip, probe, shown_size
from pipelines import sources
from pipelines.core import isolation
from pipelines.core.isolation import Run
from pipelines.core.output import Reason, reject
from pipelines.core.patience import StorageError
from pipelines.dataset import records
from pipelines.prepare import shapes
from pipelines.prepare.config import SamplingConfig
from pipelines.sources import segments

Row = dict[str, Any]


def draw_span(
    sampling: SamplingConfig, uri: str, number: int, video_frames: int, num_frames: int
) -> tuple[int, int] | None:
    """Draw (start, interval) of a video's clip `number`, in frames; None when even the smallest interval does not fit.

    video_frames, num_frames: numbers of frames of the video and of the clip.

    The interval is uniform in min_interval..max_interval, reduced to the longest that fits; the start is uniform over
    what is left. Both come from a hash and integer arithmetic, equal on every machine and with every library version.
    """
    digest = hashlib.sha256(f"{sampling.seed}\n{uri}\n{number}".encode()).digest()
    first, second = (int.from_bytes(digest[i : i + 8], "big") for i in (0, 8))
    gaps = num_frames - 1
    interval = sampling.min_interval + first % (sampling.max_interval - sampling.min_interval + 1)
    interval = min(interval, (video_frames - 1) // gaps)
    if interval < sampling.min_interval:
        return None
    return second % (video_frames - gaps * interval), interval


@functools.cache
def in_sandbox(timeout: float) -> Run:
    """Return a `run` that calls functions in this process's one child; its hangs and crashes become a VideoError here.

    timeout: seconds for one call.
    """
    return isolation.guard(warm_up, timeout, "--clip-timeout", VideoError)


def warm_up() -> None:
    """Load and compile what decoding and scoring need: seconds on a new node, not charged to the first clip."""
    neighbour_ssim(np.zeros((2, 8, 8, 3), np.uint8))


def directly(function: Callable[..., Any], *arguments: Any) -> Any:
    """A `run` that is a plain call."""
    return function(*arguments)


def probe_video(uri: str) -> VideoInfo:
    """Probe a video, local or remote: number of frames, frame rate, size, uneven times. Raises VideoError."""
    with sources.open_video(uri) as video:
        return probe(video)


def probe_size(uri: str) -> tuple[int, int]:
    """Size (H, W) at which a video, local or remote, is shown. Raises VideoError."""
    with sources.open_video(uri) as video:
        return shown_size(video)


def read_clip(
    uri: str, start: int, interval: int, num_frames: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, VideoTraits, float, float]:
    """Decode a clip and score it: frames, uint8 (N, H, W, 3), and SSIM of neighbouring frames, float64 (N - 1,).

    Also returns the video's traits, and the seconds that decoding and scoring took. Raises VideoError.
    """
    began = time.perf_counter()
    with sources.open_video(uri) as video:
        clip = load_clip(video, start, interval, num_frames, size)
    decoded = time.perf_counter()
    similar = neighbour_ssim(clip.frames)
    return clip.frames, similar, clip.traits, decoded - began, time.perf_counter() - decoded


def make_spans(
    video: Mapping[str, Any], sampling: SamplingConfig, sizes: Sequence[shapes.Size], run: Run = directly
) -> list[Row]:
    """Create the rows of a video's clips, with ids and shape; or one reject row for the whole video.

    video: uri, caption, fault, segment. sizes: (H, W) in pixels; of several, the video gets the one nearest in aspect.
    Decodes nothing, unless there are several sizes or a limit of enlargement: then the first frame.

    Clips of a segment are drawn from within it, as if it were the video. Two clips of one video never start at the same
    frame, so that (uri, segment, start_frame) identifies a clip among the rejects; a draw that repeats a start gives no
    further clip.
    """
    row = {"uri": video["uri"], "caption": video["caption"], "segment": video.get("segment")}
    if video["fault"]:
        return [reject(row, "source", Reason.BAD_CAPTION, video["fault"])]
    try:
        info = run(probe_video, video["uri"])
        size, too_small = fit_size(video["uri"], sampling, sizes, run)
    except StorageError:
        raise
    except Exception as error:
        return [fault(row, "probe", error)]
    if too_small is not None:
        return [reject(row, "probe", Reason.TOO_SMALL, too_small)]
    frames, name = range(info.num_frames), records.name_of(row)
    if row["segment"]:
        frames = segments.frames_of(row["segment"], info.fps, info.num_frames, info.seconds)
    length = shapes.choose_length(len(frames), sampling.min_interval, sampling.lengths)
    shape = {"num_frames": length, "height": size[0], "width": size[1]}
    spans: dict[int, Row] = {}
    for number in range(sampling.clips_per_video):
        drawn = draw_span(sampling, name, number, len(frames), length)
        if drawn is None:
            return [reject(row, "probe", Reason.TOO_SHORT, _too_short(sampling, info, frames, row["segment"]))]
        start, interval = frames.start + drawn[0], drawn[1]
        identity = records.clip_id(name, start, interval, length, size, SAMPLING_VERSION)
        span = {**row, "clip_id": identity, "start_frame": start, "interval": interval, "fps": info.fps, **shape}
        spans.setdefault(start, span)
    return list(spans.values())


def fit_size(
    uri: str, sampling: SamplingConfig, sizes: Sequence[shapes.Size], run: Run
) -> tuple[shapes.Size, str | None]:
    """Choose a video's size; returns ((H, W), message). Raises VideoError.

    message: says that the video is too small for this size, None if it is not.
    """
    limit = enlargement_limit(sampling, sizes)
    if len(sizes) == 1 and limit is None:
        return sizes[0], None
    shown = run(probe_size, uri)
    size = shapes.choose_size(shown, sizes, limit)
    enlargement = shapes.enlargement(shown, size)
    if limit is None or enlargement <= limit:
        return size, None
    return size, (
        f"the video is shown at {shown[1]}x{shown[0]}; to fill {size[1]}x{size[0]} it would be enlarged "
        f"{enlargement:.2f} times, more than --max-enlargement {limit:g}"
    )


def enlargement_limit(sampling: SamplingConfig, sizes: Sequence[shapes.Size]) -> float | None:
    """Largest factor by which a video is enlarged to fill its size; None: any.

    It is the flag's, else MAX_ENLARGEMENT if there are several sizes.
    """
    if sampling.max_enlargement is None and len(sizes) > 1:
        return shapes.MAX_ENLARGEMENT
    return sampling.max_enlargement


def _too_short(sampling: SamplingConfig, info: VideoInfo, frames: range, segment: str | None) -> str:
    """Message that says why no clip fits in these frames of a video."""
    shortest = sampling.lengths[0]
    needed = (shortest - 1) * sampling.min_interval + 1
    if segment and frames.start == info.num_frames:
        return (
            f"the segment {segment} begins after the end of the video ({info.num_frames} frames, {info.fps:g} fps); "
            "of videos that are cut already, remove start and end from the list"
        )
    within = f" in the segment {segment}" if segment else ""
    return f"{len(frames)} frames{within}; {shortest} at interval {sampling.min_interval} need {needed}"


def decode(row: Mapping[str, Any], sampling: SamplingConfig, run: Run = directly) -> Row:
    """Add frames (uint8 (N, H, W, 3), as bytes), score and bucket to the row of a span; or return its reject row.

    Rejects pass through.
    """
    if row["reason"]:
        return dict(row)
    start, interval = row["start_frame"], row["interval"]
    try:
        span = (row["uri"], start, interval, row["num_frames"], (row["height"], row["width"]))
        frames, similar, traits, decode_s, score_s = run(read_clip, *span)
    except StorageError:
        raise
    except Exception as error:
        return fault(row, "decode", error)
    cut = int(similar.argmin())
    if sampling.scene_cut is not None and similar[cut] < sampling.scene_cut:
        frame = start + interval * cut
        message = f"SSIM {similar[cut]:.3f} from frame {frame} to {frame + interval}, below {sampling.scene_cut}"
        return reject(row, "score", Reason.SCENE_CUT, message)
    score = float(similar.mean())
    found = {"frames": frames.tobytes(), "score": score, "bucket": motion_bucket(score)}
    return {**row, **traits._asdict(), **found, "decode_s": decode_s, "score_s": score_s}


def fault(row: Mapping[str, Any], stage: str, error: Exception) -> Row:
    """The reject row for an exception: a VideoError is the video's fault, others are internal errors."""
    if isinstance(error, VideoError):
        return reject(row, stage, Reason(error.reason), str(error))
    return reject(row, stage, Reason.INTERNAL, f"{type(error).__name__}: {error}")


class Encoder:
    """The VAE (and, on request, the text encoder) of a model directory, loaded once per process."""

    def __init__(self, model: str, made_with: Mapping[str, Any], device: str) -> None:
        """made_with: flow.identity, from the driver. Raises ValueError if the model here has other fingerprints."""
        import torch

        from cinemo import checkpoint
        from cinemo.memory import keep_freed_memory
        from pipelines.core import models

        keep_freed_memory()  # this process does nothing else, and needs as much for every clip
        directory = models.resolve(model)
        self.vae = checkpoint.load_vae(directory, dtype=torch.float32, device=device)
        models.check_unchanged(model, directory, made_with["vae_fingerprint"], checkpoint.vae_name(directory))
        self.text = None
        if made_with["embed_text"]:
            self.text = checkpoint.load_text(directory, dtype=torch.float32, device=device)
            models.check_unchanged(model, directory, made_with["text_fingerprint"], "text_encoder")
        self.store_posterior = made_with["store_posterior"]

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Replace frames by latents (posterior mean, scaled, float16); rejects pass through.

        One clip at a time: its 16 frames fill a GPU, and its latents never depend on its neighbours.
        """
        for row in records.iter_rows(table):
            yield records.row_table(row if row["reason"] else self.encode(row))

    def encode(self, row: Mapping[str, Any]) -> Row:
        """Encode one decoded clip: its row with the tensors as float16 bytes, and only the first of its frames."""
        from cinemo.latents import encode_clip, encode_prompts

        began = time.perf_counter()
        frames = np.frombuffer(row["frames"], np.uint8).reshape(*records.shape_of(row), 3)
        mean, logvar = (part.half().cpu().numpy() for part in encode_clip(self.vae, frames))
        encoded = {**row, "frames": None, "latents": mean.tobytes(), "latents_shape": mean.shape}
        encoded["first_frame"] = to_webp(frames[0])
        if self.store_posterior:
            encoded["latents_logvar"] = logvar.tobytes()
        if self.text is not None:
            text = encode_prompts(*self.text, [row["caption"]])[0].half().cpu().numpy()
            encoded |= {"text_embeds": text.tobytes(), "text_shape": text.shape}
        return {**encoded, "encode_s": time.perf_counter() - began}


def to_webp(frame: np.ndarray) -> bytes:
    """Encode a picture, uint8 (H, W, 3), as WebP without visible differences."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="WEBP", quality=90)
    return buffer.getvalue()
