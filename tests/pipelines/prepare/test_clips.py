"""One clip: drawn from a hash, decoded and scored as the method says, or a reject that says why."""

import itertools
import math
import os
import re
import shutil
import signal
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from skimage.metrics import structural_similarity

from cinemo.video import VideoError, VideoInfo, probe, sample_clip, write_video
from pipelines.core import models
from pipelines.core.output import Reason
from pipelines.dataset import records
from pipelines.prepare import clips, flow
from pipelines.prepare.config import ExtractConfig, SamplingConfig
from pipelines.sources import segments
from tests.pipelines.conftest import export_another
from tests.videos import encode, numbered

SIZE = (32, 48)


@given(st.integers(0, 400), st.integers(0, 9), st.integers(2, 16), st.integers(1, 6), st.integers(0, 6))
def test_a_span_fits_its_video_and_is_refused_only_when_none_can(
    frames: int, number: int, length: int, low: int, more: int
) -> None:
    sampling = SamplingConfig(num_frames=length, min_interval=low, max_interval=low + more, seed=3)
    span = clips.draw_span(sampling, "/v.mp4", number, frames, length)
    if span is None:
        assert frames < (length - 1) * low + 1
    else:
        start, interval = span
        assert low <= interval <= low + more
        assert 0 <= start <= start + (length - 1) * interval < frames


def test_draws_are_uniform_and_depend_on_seed_video_and_number() -> None:
    sampling = SamplingConfig()
    drawn = [clips.draw_span(sampling, f"/{k}.mp4", 0, 1000, 16) for k in range(4000)]
    counts = np.bincount([interval for _, interval in drawn if interval], minlength=11)[3:]
    assert counts.min() > 0.8 * 500  # 8 intervals, 500 each; 0.8 is 4.8 standard deviations away
    assert counts.max() < 1.2 * 500
    again = SamplingConfig(seed=1)
    assert clips.draw_span(sampling, "/0.mp4", 0, 1000, 16) == drawn[0]
    assert clips.draw_span(again, "/0.mp4", 0, 1000, 16) != drawn[0]
    assert clips.draw_span(sampling, "/0.mp4", 1, 1000, 16) != drawn[0]


def test_clips_of_one_video_start_at_different_frames(moving_video: Path) -> None:
    sampling = SamplingConfig(num_frames=16, clips_per_video=50, min_interval=3)
    rows = clips.make_spans({"uri": str(moving_video), "caption": "x", "fault": None}, sampling, [SIZE])
    starts = [row["start_frame"] for row in rows]
    assert len(set(starts)) == len(starts) > 3
    assert len({uuid.UUID(row["clip_id"]) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("segment", "frames"),
    [("frames=7,31", range(7, 31)), ("t=0.5", range(12, 48)), ("t=0.25,1", range(6, 24)), ("t=1.5,99", range(36, 48))],
)
def test_clips_of_a_segment_lie_within_it(moving_video: Path, segment: str, frames: range) -> None:
    sampling = SamplingConfig(num_frames=4, clips_per_video=50, min_interval=2)
    video = {"uri": str(moving_video), "caption": "x", "fault": None}
    info = VideoInfo(48, 24.0, 64, 64)
    rows = clips.make_spans({**video, "segment": segment}, sampling, [SIZE], lambda *_: info)
    shown = {row["start_frame"] + row["interval"] * k for row in rows for k in range(4)}
    assert frames.start <= min(shown) < frames.start + 4
    assert frames.stop - 4 <= max(shown) < frames.stop
    assert {row["segment"] for row in rows} == {segment}
    other = clips.make_spans({**video, "segment": "frames=0,48"}, sampling, [SIZE], lambda *_: info)
    assert not {row["clip_id"] for row in rows} & {row["clip_id"] for row in other}


def test_a_segment_in_seconds_of_a_video_whose_frame_rate_varies_has_the_frames_shown_then(tmp_path: Path) -> None:
    times = [*range(48), *range(48, 144, 8)]  # two seconds at 24 a second, four at three: 60 frames, 10 a second
    path = encode(tmp_path / "phone.mkv", numbered(60), "ffv1", "bgr0", times=times)
    info, sampling = probe(path), SamplingConfig(num_frames=4, clips_per_video=50, min_interval=1)
    video = {"uri": str(path), "caption": "x", "fault": None}
    for segment, frames in (
        ("t=0.5,1.5", range(12, 36)),
        ("t=1.666667,3.333", range(40, 52)),  # containers round times, and lists do: 40 and 80 ticks
        ("t=3", range(51, 60)),
        ("frames=7,31", range(7, 31)),
    ):
        rows = clips.make_spans({**video, "segment": segment}, sampling, [SIZE], clips.in_sandbox(60))
        shown = {row["start_frame"] + row["interval"] * k for row in rows for k in range(4)}
        assert segments.frames_of(segment, info.fps, info.num_frames, info.seconds) == frames
        assert shown <= set(frames)


def test_the_seconds_of_frames_decide_where_a_segment_is_cut() -> None:
    seconds = np.concatenate([np.arange(1800) / 60, 30 + np.arange(60) / 2])  # 31 frames a second, on average
    for text, frames in (
        ("t=30,40", range(1800, 1820)),
        ("t=0,30", range(1800)),
        ("t=59.6,60", range(1860, 1860)),
        ("t=40.1,40.4", range(1821, 1821)),
        ("t=99", range(1860, 1860)),
        ("frames=30,40", range(30, 40)),
    ):
        assert segments.frames_of(text, 31, 1860, seconds) == frames


def test_a_video_without_a_segment_has_the_ids_that_outputs_of_before_there_were_segments_hold() -> None:
    sampling = SamplingConfig(num_frames=4, clips_per_video=2)
    video = {"uri": "/v.mp4", "caption": "x", "fault": None}
    rows = clips.make_spans(video, sampling, [SIZE], lambda *_: VideoInfo(48, 24.0, 64, 64))
    assert [(row["start_frame"], row["interval"], row["clip_id"]) for row in rows] == [
        (20, 7, "54e4605b-5976-599f-a84d-86e0544a3742"),
        (7, 8, "52cd9237-05fe-5756-8f0e-b81513127aa1"),
    ]


def test_a_segment_without_room_for_a_clip_says_which() -> None:
    video = {"uri": "/v.mp4", "caption": "x", "fault": None}
    for segment, message in (
        ("t=0,0.5", "12 frames in the segment t=0,0.5; 16 at interval 3 need 46"),
        ("t=5,6", "the segment t=5,6 begins after the end of the video (48 frames, 24 fps); of videos that are cut"),
    ):
        asked = {**video, "segment": segment}
        (row,) = clips.make_spans(asked, SamplingConfig(), [SIZE], lambda *_: VideoInfo(48, 24.0, 64, 64))
        assert (row["reason"], row["segment"]) == ("too_short", segment)
        assert row["message"].startswith(message)


def test_a_segment_between_two_frames_is_not_said_to_be_after_the_end() -> None:
    info = VideoInfo(48, 0.8, 64, 64, np.concatenate([np.arange(47) / 24, [60.0]]))  # the last but one for a minute
    asked = {"uri": "/v.mp4", "caption": "x", "fault": None, "segment": "t=10,20"}
    (row,) = clips.make_spans(asked, SamplingConfig(), [SIZE], lambda *_: info)
    assert row["message"] == "0 frames in the segment t=10,20; 16 at interval 3 need 46"


def test_decoded_rows_hold_the_frames_and_their_mean_ssim(moving_video: Path) -> None:
    sampling = SamplingConfig(num_frames=6)
    span = clips.make_spans({"uri": str(moving_video), "caption": "x", "fault": None}, sampling, [SIZE])[0]
    row = clips.decode({**span, "reason": None}, sampling)
    frames = sample_clip(moving_video, span["start_frame"], span["interval"], 6, SIZE)
    assert row["frames"] == frames.tobytes()
    pairs = itertools.pairwise(frames)
    expected = np.mean([structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairs])
    assert row["score"] == pytest.approx(expected, abs=1e-4)
    assert row["bucket"] == min(19, math.floor((1 - expected) * 20))


def test_decoded_rows_say_how_their_video_is_stored(tmp_path: Path) -> None:
    sampling = SamplingConfig(num_frames=4, min_interval=1)
    path = encode(tmp_path / "odd.mp4", numbered(12), options={"x264-params": "bff=1:sar=8/9"})
    span = clips.make_spans({"uri": str(path), "caption": "x", "fault": None}, sampling, [SIZE])[0]
    (row,) = records.row_table(clips.decode({**span, "reason": None}, sampling)).to_pylist()
    assert (row["interlaced"], row["variable_rate"], row["transfer"], row["fps"]) == (True, False, None, 24)
    assert row["sample_aspect_ratio"] == pytest.approx(8 / 9)
    (stored,) = records.clip_table([row]).to_pylist()
    assert {name: stored[name] for name, _ in records.TRAITS} == {name: row[name] for name, _ in records.TRAITS}


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "missing"), (b"", "unreadable"), (b"not a video" * 99, "unreadable")]
)
def test_a_file_that_is_no_video_becomes_one_reject(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    sampling = SamplingConfig(clips_per_video=4)
    (row,) = clips.make_spans({"uri": str(path), "caption": "", "fault": None}, sampling, [SIZE])
    assert (row["stage"], row["reason"]) == ("probe", reason)
    assert str(path) in row["message"]
    assert clips.decode(row, sampling) == row  # it passes through what follows


def test_a_caption_fault_becomes_a_reject() -> None:
    video = {"uri": "/a.mp4", "caption": "", "fault": "a.json holds no caption"}
    (row,) = clips.make_spans(video, SamplingConfig(), [SIZE])
    assert (row["reason"], row["message"]) == (Reason.BAD_CAPTION, "a.json holds no caption")


def test_a_scene_cut_is_a_reject_that_names_its_frames(tmp_path: Path) -> None:
    one, other = np.zeros((12, 64, 64, 3), np.uint8), np.full((12, 64, 64, 3), 255, np.uint8)
    one[:, ::4], other[:, :, ::4] = 90, 40
    write_video(tmp_path / "cut.mp4", np.concatenate([one, other]))
    sampling = SamplingConfig(num_frames=4, min_interval=5, max_interval=5, scene_cut=0.3)
    video = {"uri": str(tmp_path / "cut.mp4"), "caption": "", "fault": None}
    row = clips.decode({"reason": None, **clips.make_spans(video, sampling, [SIZE])[0]}, sampling)
    assert (row["stage"], row["reason"]) == ("score", "scene_cut")
    before, after = (int(number) for number in re.findall(r"frame (\d+) to (\d+)", row["message"])[0])
    assert after == before + 5
    assert before < 12 <= after
    kept = sampling.model_copy(update={"scene_cut": None})
    assert clips.decode({"reason": None, **clips.make_spans(video, kept, [SIZE])[0]}, kept)["bucket"] > 0


def test_a_decoder_that_hangs_or_dies_is_a_reject(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless.mp4")
    video = {"uri": str(tmp_path / "endless.mp4"), "caption": "", "fault": None}
    (row,) = clips.make_spans(video, SamplingConfig(), [SIZE], clips.in_sandbox(0.5))
    assert (row["stage"], row["reason"]) == ("probe", "timeout")
    assert "took longer than 0.5 s; raise --clip-timeout" in row["message"]
    with pytest.raises(VideoError, match="the decoder crashed 2 times: killed by SIGSEGV") as caught:
        clips.in_sandbox(30)(signal.raise_signal, signal.SIGSEGV)
    assert caught.value.reason == "crashed"


def test_an_interval_range_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="--min-interval 11 is above --max-interval 10"):
        SamplingConfig(min_interval=11)


@pytest.mark.parametrize("part", ["vae_temporal_decoder", "text_encoder"])
def test_a_model_that_was_replaced_after_the_job_began_encodes_no_clip(
    checkpoint: Path, tmp_path: Path, part: str
) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    config = ExtractConfig(model=str(model), embed_text=True)
    made_with = flow.identity(config)
    clips.Encoder(config.model, made_with, "cpu")
    before = models.fingerprint(model / part)
    export_another(model / part)
    now = models.fingerprint(model / part)
    sentence = f"{part} of model {model} has fingerprint {now[:12]} here, and {before[:12]} when the job began; run"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        clips.Encoder(config.model, made_with, "cpu")
