"""Rows with a source video: the image gets its motion, as `cinemo edit` gives it, and every other row is as it was."""

import hashlib
import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from cinemo import CinemoPipeline
from cinemo.editing import edit_video
from cinemo.latents import decode_latents, encode_pixels
from cinemo.motion import motion_bucket, motion_score
from cinemo.video import load_clip, write_video
from pipelines.animate import files, plan, request, rows
from pipelines.animate.config import AnimateConfig
from pipelines.animate.job import resolve
from pipelines.animate.records import table
from tests.pipelines.animate.conftest import frames_of, make_animator, ready, tasks_of, write_catalog

Lines = list[dict[str, Any]]


@pytest.fixture
def folder(config: AnimateConfig, moving_video: Path, moving_frames: np.ndarray) -> Path:
    """The catalog's folder, with frames to animate (a.png, b.png, wide.png) and videos (right.mp4, left.mp4)."""
    found = Path(config.catalog).parent
    for name, top in (("a", 0), ("b", 200)):
        Image.fromarray(astronaut()[top : top + 96, :96]).save(found / f"{name}.png")
    Image.fromarray(astronaut()[:96, :120]).save(found / "wide.png")
    shutil.copy(moving_video, found / "right.mp4")
    write_video(found / "left.mp4", moving_frames[::-1], fps=24)
    return found


def catalog(config: AnimateConfig, *lines: dict[str, Any]) -> AnimateConfig:
    """The same job with these rows, of image a.png and prompt x where they do not say."""
    write_catalog(Path(config.catalog), [{"image": "a.png", "prompt": "x", **line} for line in lines])
    return config


def unset(config: AnimateConfig, *names: str, **changes: Any) -> AnimateConfig:
    """The same job without some flags, and with others."""
    given = {name: value for name, value in config.model_dump(exclude_unset=True).items() if name not in names}
    return AnimateConfig(**given | changes)


def made(config: AnimateConfig, prepared: Lines) -> Lines:
    found = [row for part in make_animator(config)(table(prepared)) for row in part.to_pylist()]
    return sorted(found, key=lambda row: row["row"])


def asked(row: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(row["request"]))


def test_an_edited_row_is_what_edit_video_makes_and_is_batched_with_its_like(
    config: AnimateConfig, folder: Path
) -> None:
    catalog(
        config,
        {"prompt": "plain"},
        {"video": "right.mp4", "prompt": "one"},
        {"image": "b.png", "prompt": "plain too"},
        {"image": "b.png", "video": "left.mp4", "prompt": "two", "motion_bucket": 15},
    )
    pipe = CinemoPipeline.from_pretrained(config.model)
    done = made(config, ready(config))
    assert [json.loads(row["facts"])["batch"] for row in done] == [2, 2, 2, 2]
    for row, video in ((done[1], "right.mp4"), (done[3], "left.mp4")):
        frames = load_clip(folder / video, 0, 3, 4, (64, 64), shorten=True).frames
        bucket = 15 if video == "left.mp4" else motion_bucket(motion_score(frames))
        alone = edit_video(
            pipe, frames, row["image"], asked(row)["prompt"], motion_bucket=bucket, num_inference_steps=2
        )
        assert np.abs(frames_of(row).astype(int) - alone).max() <= 1
    for row in (done[0], done[2]):
        wish = asked(row)
        alone = pipe(row["image"], wish.pop("prompt"), **{k: v for k, v in wish.items() if k != "fps"}).frames[0]
        assert np.abs(frames_of(row).astype(int) - alone).max() <= 1


def test_guidance_and_dctinit_act_on_an_edited_row_where_they_are_asked_for(
    config: AnimateConfig, folder: Path
) -> None:
    flags = unset(config, dct_init=True)
    catalog(flags, {"video": "right.mp4", "guidance": 4, "negative_prompt": "no"})
    (row,) = made(flags, ready(flags))
    frames = load_clip(folder / "right.mp4", 0, 3, 4, (64, 64), shorten=True).frames
    bucket = asked(row)["motion_bucket"]
    pipe = CinemoPipeline.from_pretrained(flags.model)
    expected = edit_video(
        pipe, frames, row["image"], "x", motion_bucket=bucket, num_inference_steps=2, guidance_scale=4.0,
        negative_prompt="no", dct_init=True,
    )  # fmt: skip
    assert np.abs(frames_of(row).astype(int) - expected).max() <= 1


def test_the_sidecar_says_which_video_and_what_it_measured(config: AnimateConfig, folder: Path) -> None:
    catalog(config, {"video": "right.mp4"}, {})
    edited, plain = (json.loads(row["facts"])["request"] for row in made(config, ready(config)))
    frames = load_clip(folder / "right.mp4", 0, 3, 4, (64, 64), shorten=True).frames
    assert edited["video"] == str(folder / "right.mp4")
    assert edited["video_digest"] == hashlib.sha256((folder / "right.mp4").read_bytes()).hexdigest()
    assert edited["motion_bucket"] == motion_bucket(motion_score(frames))
    assert not {"video", "video_digest"} & plain.keys()


def test_kept_latents_of_an_edited_row_are_not_sampled_again(config: AnimateConfig, folder: Path) -> None:
    catalog(config, {"video": "right.mp4"}, {"video": "left.mp4"})
    prepared = ready(config)
    first, second = made(config, prepared)
    kept = files.kept(config.output, first["id"])
    assert kept is not None
    files.keep(config.output, first["id"], np.zeros_like(kept))  # of the image all the time
    os.remove(Path(config.output, "latents", f"{second['id']}.npy"))
    still, again = made(config, prepared)
    vae = CinemoPipeline.from_pretrained(config.model).vae
    pixels = torch.tensor(np.frombuffer(prepared[0]["pixels"], np.float32).reshape(1, 3, 64, 64))
    expected = decode_latents(vae, encode_pixels(vae, pixels)[:, :, None].repeat(1, 1, 4, 1, 1))[0]
    assert np.abs(frames_of(still).astype(int) - expected).max() <= 1
    assert np.abs(frames_of(first).astype(int) - expected).max() > 1
    assert np.abs(frames_of(again).astype(int) - frames_of(second)).max() <= 1


def test_an_id_is_of_the_videos_content_and_other_rows_keep_theirs(config: AnimateConfig, folder: Path) -> None:
    plain = [(row["id"], row["key"]) for row in ready(catalog(config, {}, {"seed": 2}))]
    shutil.copy(folder / "right.mp4", folder / "copy.mp4")
    catalog(
        config, {"video": ""}, {"seed": 2, "video": None}, *({"video": f"{n}.mp4"} for n in ("right", "copy", "left"))
    )
    found = ready(config)
    assert [(row["id"], row["key"]) for row in found[:2]] == plain
    assert found[2]["id"] == found[3]["id"]
    assert len({row["id"] for row in found}) == 4
    assert len({row["key"] for row in found}) == 5


def test_a_video_that_was_replaced_changes_its_rows_key(config: AnimateConfig, folder: Path) -> None:
    catalog(config, {"video": "right.mp4"}, {"video": "left.mp4"}, {})
    before = [task["key"] for task in tasks_of(config)]
    os.utime(folder / "right.mp4", ns=(1, 1))
    after = [task["key"] for task in tasks_of(config)]
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_edited_rows_have_the_defaults_of_edit_video(config: AnimateConfig, folder: Path) -> None:
    said = inspect.signature(edit_video).parameters
    assert {name: said[name].default for name in request.EDITED} == request.EDITED
    catalog(config, {"video": "right.mp4"}, {"video": "right.mp4", "guidance": 3, "motion_bucket": 2}, {})
    usual, row, plain = (asked(task) for task in tasks_of(unset(config, "guidance_scale")))
    assert request.EDITED.items() <= usual.items()
    assert usual["motion_bucket"] is None
    assert (row["guidance_scale"], row["motion_bucket"], row["dct_init"]) == (3.0, 2, False)
    assert (plain["guidance_scale"], plain["dct_init"], plain["motion_bucket"]) == (7.5, True, 10)
    flags: dict[str, Any] = {"guidance_scale": 2.0, "dct_init": True, "dct_timestep": 900, "motion_bucket": 4}
    assert flags.items() <= asked(tasks_of(unset(config, **flags))[0]).items()


def test_a_plan_keeps_edited_rows_together_and_knows_of_them(config: AnimateConfig, folder: Path) -> None:
    flags = unset(config, dct_init=False, dct_timestep=985)  # so that nothing else tells them apart
    catalog(flags, *({"seed": number, "video": "right.mp4" if number % 2 else ""} for number in range(6)))
    (chunk,) = plan.tasks(flags, model := resolve(flags).model, plan.Filler(flags, model))
    assert chunk["source_video"].is_null().to_pylist() == [True] * 3 + [False] * 3
    assert plan.write(flags, resolve(flags).model, f"{flags.output}/catalog").edited
    catalog(flags, {})
    assert not plan.write(flags, resolve(flags).model, f"{flags.output}/catalog").edited


def test_every_fault_of_a_video_is_a_reject_that_names_it(
    config: AnimateConfig, folder: Path, moving_frames: np.ndarray
) -> None:
    good = (folder / "right.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(good[: len(good) // 2])
    (folder / "text.mp4").write_text("no video at all")
    write_video(folder / "brief.mp4", moving_frames[:3], fps=24)
    write_video(folder / "just.mp4", moving_frames[:4], fps=24)
    expected = {
        "gone.mp4": ("missing", "does not exist"),
        "cut.mp4": ("corrupt", "cannot be decoded"),
        "text.mp4": ("unreadable", "cannot be opened"),
        "a.png": ("no_video", "is a still image"),
        "brief.mp4": ("too_short", "is too short: 4 frames are taken of it"),
        "just.mp4": (None, ""),
    }
    catalog(config, *({"video": name} for name in expected), {"image": "wide.png", "video": "right.mp4"})
    *found, wide = ready(config)
    for row, (name, (reason, words)) in zip(found, expected.items(), strict=True):
        assert (row["reason"], Path(row["source_video"]).name) == (reason, name)
        if reason is not None:
            assert (row["stage"], row["pixels"], row["clip"]) == ("video", None, None)
            assert str(folder / name) in row["message"]
            assert words in row["message"]
    assert (wide["reason"], wide["stage"]) == ("wrong_aspect", "image")
    assert "wide.png is 120 x 96 pixels, and the video's frames are 64 x 64" in wide["message"]


def test_a_video_that_hangs_is_given_up_and_the_next_is_read(config: AnimateConfig, folder: Path) -> None:
    os.mkfifo(folder / "hang.mp4")
    catalog(config, {"video": "hang.mp4"}, {"video": "right.mp4"})
    run = rows.in_sandbox(2.0)
    hung, good = (rows.prepare(task, {}, run) for task in tasks_of(config))
    assert (hung["reason"], hung["stage"], good["reason"]) == ("timeout", "video", None)
    assert f"video {folder / 'hang.mp4'}: took longer than 2 s; raise --image-timeout" in hung["message"]
    expected = load_clip(folder / "right.mp4", 0, 3, 4, (64, 64), shorten=True).frames
    np.testing.assert_array_equal(np.frombuffer(good["clip"], np.uint8).reshape(expected.shape), expected)
