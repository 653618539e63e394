"""Sizes and lengths: what flags mean, which one a video gets, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cinemo.video import VideoInfo, write_video
from pipelines.prepare import clips, flow, job, shapes
from pipelines.prepare.config import ExtractConfig, PrepareConfig, SamplingConfig

SIZES = [(320, 512), (512, 320), (416, 416)]


def config(**flags: object) -> ExtractConfig:
    return ExtractConfig.model_validate(flags)


def test_one_size_is_what_height_and_width_say() -> None:
    old, new = config(height=64, width=96), config(sizes="96x64")
    assert flow.frame_sizes(old) == flow.frame_sizes(new) == [(64, 96)]
    assert flow.identity(old) == flow.identity(new)
    assert not {"sizes", "area", "max_enlargement"} & set(flow.identity(old))
    several = flow.identity(config(sizes="512x320, 320X512,512x320", num_frames="16,8"))
    assert (several["sizes"], several["num_frames"], several["height"]) == ("512x320,320x512", "8,16", None)
    assert several["max_enlargement"] == 1.2
    for flags in ({}, {"area": 163_840}, {"sizes": "512x320", "num_frames": "8,16"}):
        made = config(**flags)
        assert ExtractConfig.model_validate(made.model_dump()) == made  # as it travels to workers


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"sizes": "512x321"}, "321 of 512x321 is not a multiple of 8 from 64 to 4096; take 320"),
        ({"sizes": "512x320,large"}, "'large' is not a size; write WIDTHxHEIGHT"),
        ({"sizes": ""}, "'' is not a size"),
        ({"sizes": "512x320", "height": 64, "width": 64}, "--height 64 and --sizes 512x320 both say"),
        ({"sizes": "512x320", "area": 163840}, "--sizes 512x320 and --area 163840 both say"),
        ({"aspect_buckets": 3}, "--aspect-buckets 3 needs --area"),
        ({"num_frames": "8,x"}, "'8,x' should be a number of frames from 2 on, or several, such as 8,16"),
        ({"num_frames": 1}, "1 should be a number of frames from 2 on"),
    ],
)
def test_what_gives_no_shape_is_refused_with_one_sentence(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        config(**flags)


def test_a_size_that_the_model_cannot_encode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--sizes: 72x64 does not divide into the 32-pixel cells of --model"):
        flow.frame_sizes(config(sizes="96x64,72x64"))
    with pytest.raises(ValueError, match=r"--area 4096 is too small for --aspect-buckets 5 in steps of 32 pixels"):
        flow.frame_sizes(config(area=4096))


@given(st.integers(40_000, 2_000_000), st.integers(2, 9), st.sampled_from([8, 16, 32]))
def test_buckets_have_about_the_area_and_all_aspects(area: int, buckets: int, factor: int) -> None:
    try:
        sizes = shapes.sizes_of_area(area, buckets, factor)
    except ValueError:
        assert area < 1500 * factor * buckets
        return
    assert len(set(sizes)) == buckets
    for height, width in sizes:
        assert height % factor == width % factor == 0
        assert 0.7 < height * width / area < 1.4
    aspects = [width / height for height, width in sizes]
    assert aspects == sorted(aspects, reverse=True)
    assert [(width, height) for height, width in reversed(sizes)] == sizes


def test_the_paper_s_area_in_five_aspects() -> None:
    expected = [(304, 544), (352, 464), (400, 400), (464, 352), (544, 304)]
    assert shapes.sizes_of_area(163_840, 5, 8) == expected


def test_a_video_gets_the_nearest_aspect_and_of_equal_ones_the_largest_that_it_fills() -> None:
    for shown, size in (((720, 1280), (320, 512)), ((1920, 1080), (512, 320)), ((500, 480), (416, 416))):
        assert shapes.choose_size(shown, SIZES, 1.2) == size
    two = [(160, 256), *SIZES]
    assert shapes.choose_size((200, 320), two, 1.2) == (160, 256)
    assert shapes.choose_size((280, 448), two, 1.2) == (320, 512)
    assert shapes.choose_size((200, 320), two, None) == (320, 512)
    assert shapes.choose_size((20, 32), two, 1.2) == (160, 256)


def test_a_clip_has_the_most_frames_that_fit_and_the_shape_of_its_video(tmp_path: Path, shared_clips: Path) -> None:
    write_video(tmp_path / "tall.mp4", np.zeros((12, 96, 64, 3), np.uint8))
    sizes = [(64, 96), (96, 64)]
    video = {"uri": str(tmp_path / "tall.mp4"), "caption": "", "fault": None}
    for lengths, expected in (("3,4,5", 4), ("5", None), (3, 3)):
        (row,) = clips.make_spans(video, SamplingConfig(num_frames=lengths), sizes)
        assert (row.get("num_frames"), row.get("height")) == (expected, expected and 96)
    (row,) = clips.make_spans(video, SamplingConfig(num_frames=4), [(128, 128), (96, 96)])
    assert row["reason"] == "too_small"
    assert row["message"] == (
        "the video is shown at 64x96; to fill 96x96 it would be enlarged 1.50 times, more than --max-enlargement 1.2"
    )
    (row,) = clips.make_spans(video, SamplingConfig(num_frames=4, max_enlargement=1.5), [(128, 128), (96, 96)])
    assert (row["height"], row["width"]) == (96, 96)
    (row,) = clips.make_spans(video, SamplingConfig(num_frames=4), [(512, 512)])  # as ever, with one size
    assert row["height"] == 512
    turned = {**video, "uri": str(shared_clips / "rotated_90.mov")}
    (row,) = clips.make_spans(turned, SamplingConfig(num_frames=2, min_interval=1), [(320, 512), (512, 320)])
    assert (row["height"], row["width"]) == (512, 320)


def test_one_size_needs_no_look_at_the_video() -> None:
    asked: list[str] = []

    def run(function: object, *_: object) -> VideoInfo:
        asked.append(getattr(function, "__name__", ""))
        return VideoInfo(60, 24.0, 64, 64)

    clips.make_spans({"uri": "/a.mp4", "caption": "", "fault": None}, SamplingConfig(), [(64, 64)], run)
    assert asked == ["probe_video"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sizes": "96x64"}, "height"),
        ({"sizes": "96x64,64x64"}, "sizes"),
        ({"sizes": None, "height": 64, "width": 64}, "height"),
        ({"num_frames": 4}, "num_frames"),
        ({"max_enlargement": 2.0}, "max_enlargement"),
    ],
)
def test_other_shapes_do_not_mix_with_what_is_there(
    mixed: str, mixed_config: PrepareConfig, changes: dict[str, object], name: str
) -> None:
    there = mixed_config.model_copy(update={"output": mixed})
    job.resolve(there)
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}: .* was made with {name}"):
        job.resolve(there.model_copy(update=changes))


def test_other_columns_do_not_mix_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,caption,words\na.mp4,x,y\n")
    plain = PrepareConfig(input=str(tmp_path / "list.csv"), output=str(tmp_path / "ds"), score_only=True)
    words = plain.model_copy(update={"caption_column": "words"})
    own = tmp_path / "ds" / "settings.json"
    own.parent.mkdir()
    own.write_text(json.dumps(job.resolve(words).identity))
    assert job.resolve(words).identity["caption_column"] == "words"
    for value in (None, "caption"):
        with pytest.raises(
            ValueError, match=rf"--caption-column: .* with caption_column 'words', this job has {value!r}"
        ):
            job.resolve(plain.model_copy(update={"caption_column": value}))
    # Without the flags, settings are those of earlier versions, which never stored them.
    own.unlink()
    own.write_text(json.dumps(job.resolve(plain).identity))
    assert not {"caption_column", "uri_column"} & set(json.loads(own.read_text()))
    job.resolve(plain)
    for flag in ("uri_column", "caption_column"):
        named = flag.replace("_", "-")
        with pytest.raises(
            ValueError, match=rf'--{named} path: .* leave it out, .* add "{flag}": "path" to its settings'
        ):
            job.resolve(plain.model_copy(update={flag: "path"}))
    own.write_text(json.dumps({**json.loads(own.read_text()), "caption_column": "words"}))  # the remedy
    job.resolve(words)
