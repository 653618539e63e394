"""Synthetic clips are what they say: their motion is measured here by independent means."""

import csv
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import spearmanr
from skimage.color import rgb2gray
from skimage.registration import phase_cross_correlation

from cinemo.motion import motion_bucket, motion_score
from cinemo.synthetic import DIRECTIONS, KINDS, make_clip, make_plan, plain_caption, render, write_clips
from cinemo.synthetic.images import HELD_OUT_PHOTOS, TRAINING_PHOTOS, canvas, photo, veil


def content_shift(frames: np.ndarray) -> np.ndarray:
    """Pixels (right, down) that the content moves over a clip."""
    grey = rgb2gray(frames)
    total = sum(-phase_cross_correlation(a, b, upsample_factor=4)[0] for a, b in pairwise(grey))
    return np.array([total[1], total[0]])


def clip_of(kind: str, direction: str, start: int = 0):
    """The first clip of a series that is strong and has the direction."""
    for seed in range(start, start + 200):
        plan = make_plan(seed, kinds=(kind,))
        if plan.direction == direction and plan.strength > 0.5:
            return make_clip(seed, kinds=(kind,))
    raise AssertionError(f"no strong {kind} {direction} in 200 seeds")


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_always_gives_the_same_clip(kind):
    first, again, other = (make_clip(seed, size=(32, 48), num_frames=4, kinds=(kind,)) for seed in (5, 5, 6))
    assert first.frames.shape == (4, 32, 48, 3)
    assert first.frames.dtype == np.uint8
    assert np.array_equal(first.frames, again.frames)
    assert (first.caption, first.direction, first.strength) == (again.caption, again.direction, again.strength)
    assert not np.array_equal(first.frames, other.frames)
    assert first.kind == kind
    assert first.direction in DIRECTIONS[kind]


@pytest.mark.parametrize(
    ("direction", "content"), [("left", (1, 0)), ("right", (-1, 0)), ("up", (0, 1)), ("down", (0, -1))]
)
def test_a_camera_that_pans_left_moves_the_content_right(direction, content):
    moved = content_shift(clip_of("pan", direction).frames)
    assert moved @ content > 20
    assert abs(moved @ content[::-1]) < 10


@pytest.mark.parametrize("direction", DIRECTIONS["object"])
def test_an_object_moves_over_a_background_that_stays(direction):
    frames = clip_of("object", direction).frames.astype(float)
    changed = np.abs(np.diff(frames, axis=0)).max(axis=-1) > 8
    assert 0 < changed.mean() < 0.5
    rows, columns = (np.argwhere(changed[i]).mean(axis=0) for i in (0, -1))
    along = {"left": -1, "right": 1, "up": -1, "down": 1}[direction]
    axis = 1 if direction in ("left", "right") else 0
    assert along * (columns[axis] - rows[axis]) > 5


@pytest.mark.parametrize(
    ("kind", "direction", "content"),
    [
        ("clouds", "left", (-1, 0)),
        ("clouds", "right", (1, 0)),
        ("snow", "down", (0, 1)),
        ("rain", "down", (0, 1)),
        ("bubbles", "up", (0, -1)),
    ],
)
def test_a_veil_moves_before_a_picture_that_stays(kind, direction, content):
    plan = next(
        p for p in (make_plan(s, kinds=(kind,)) for s in range(200)) if p.direction == direction and p.strength > 0.4
    )
    # Slow enough for the judge, which finds the nearest likeness of a pattern that repeats.
    frames = render(plan, (128, 192), 4, 0.3)
    bare = render(replace(plan, veil=-1), (128, 192), 4, 0.3)
    assert (bare == bare[:1]).all()
    shown = frames.astype(float) - bare
    assert 0.02 < (np.abs(shown) > 8).mean() < 0.9
    moved = content_shift((np.abs(shown) * 2).clip(0, 255).astype(np.uint8))
    assert moved @ content > 1
    assert abs(moved @ content[::-1]) < moved @ content


def test_a_veil_continues_at_its_borders():
    for kind in ("clouds", "snow", "rain", "bubbles"):
        hidden = np.stack([veil(kind, index) for index in range(12)]).astype(float)
        inside = [np.abs(np.diff(hidden, axis=axis)).mean() for axis in (1, 2)]
        across = [np.abs(hidden[:, 0] - hidden[:, -1]).mean(), np.abs(hidden[..., 0] - hidden[..., -1]).mean()]
        assert np.all(np.array(across) < 2 * np.array(inside)), kind


def test_the_first_frame_is_the_undisturbed_picture():
    for kind in ("sway", "ripple", "flicker", "shake"):
        plan = make_plan(3, kinds=(kind,))
        still = make_plan(3, kinds=("still",))
        moving = render(plan, (32, 48), 3)
        assert np.abs(moving[0].astype(float) - moving[1]).mean() > 0.2, kind
        assert still.strength == 0


def test_the_bucket_grows_with_the_strength():
    clips = [make_clip(seed, size=(64, 96), num_frames=6, kinds=("pan",)) for seed in range(30)]
    buckets = [motion_bucket(motion_score(clip.frames)) for clip in clips]
    assert spearmanr([clip.strength for clip in clips], buckets).statistic > 0.5
    assert max(buckets) >= 12
    still = make_clip(0, kinds=("still",))
    assert motion_bucket(motion_score(still.frames)) == 0


def test_held_out_photos_are_never_in_training_clips():
    assert not set(HELD_OUT_PHOTOS) & set(TRAINING_PHOTOS)
    photos = {name: np.asarray(photo(name), np.float32).mean(axis=(0, 1)) for name in HELD_OUT_PHOTOS}
    assert len(photos) == len(HELD_OUT_PHOTOS)
    used: set[str] = set()
    original = photo

    def spy(name: str) -> np.ndarray:
        used.add(name)
        return original(name)

    import cinemo.synthetic.images as images

    canvas.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "photo", spy)
        for index in range(60):
            canvas(index)
        assert used == set(TRAINING_PHOTOS)
        used.clear()
        for index in range(6):
            canvas(index, held_out=True)
        assert used == set(HELD_OUT_PHOTOS)
    canvas.cache_clear()


def test_captions_vary_and_name_the_motion():
    plans = [make_plan(seed, kinds=("pan",)) for seed in range(60)]
    assert all(plan.direction in plan.caption for plan in plans)
    assert len({plan.caption for plan in plans}) > 20
    assert plain_caption("pan", "left") == "the camera pans left"
    assert plain_caption("zoom", "in") == "the camera zooms in"


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="walk"):
        make_clip(0, kinds=("walk",))


def test_written_clips_are_videos_with_a_webvid_table(tmp_path):
    av = pytest.importorskip("av")
    table = write_clips(tmp_path, count=2, size=(64, 96), num_frames=50, kinds=("pan",))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["videoid", "contentUrl", "name", "page_dir", "duration"]
    assert len(rows) == 2
    for number, row in enumerate(rows):
        assert row["name"] == make_plan(number, kinds=("pan",), duration=49 / 6).caption
        with av.open(str(tmp_path / row["contentUrl"])) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert len(frames) == 50
        assert frames[0].shape == (64, 96, 3)
        # Sampled frames, 3 to 10 apart, move as much as a clip's do; neighbours move less.
        assert motion_score(np.stack(frames[::6])) < motion_score(np.stack(frames)) - 0.01
