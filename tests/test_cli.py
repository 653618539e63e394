"""The `cinemo` command as a person runs it: output, exit codes, sentences."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from cinemo.cli import main
from cinemo.video import probe, sample_clip
from tests.loras import write_adapter
from tests.videos import encode, numbered


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cinemo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line in this process, which saves its four seconds of imports."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: object) -> Result:
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skimage.data import coffee

    path = tmp_path_factory.mktemp("photo") / "coffee.png"
    Image.fromarray(coffee()).save(path)
    return path


def refused(result: Result, words: str, code: int = 2) -> None:
    assert result.code == code, result.err
    assert words in result.err
    assert len(result.err.strip().splitlines()) == 1


Command = Callable[..., Result]


def test_animate_writes_a_video_and_says_what_it_measured(photo: Path, checkpoint: Path, tmp_path: Path) -> None:
    """As a process of its own, from another directory: what a person does."""
    command = [sys.executable, "-m", "cinemo.cli", "animate", photo, "--prompt", "", "--model", checkpoint]
    command += ["--height", "64", "--width", "96", "--steps", "2", "--output", "a/b.mp4"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert result.returncode == 0, result.stderr
    assert probe(tmp_path / "a" / "b.mp4")[:4] == (16, 8.0, 96, 64)
    assert "measured motion bucket" in result.stdout
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.mp4"]


def test_a_portrait_becomes_a_portrait(cinemo: Command, photo: Path, tmp_path: Path) -> None:
    with Image.open(photo) as image:
        image.rotate(90, expand=True).save(tmp_path / "tall.png")
    result = cinemo("animate", tmp_path / "tall.png", "--prompt", "", "--steps", 1, "--output", tmp_path / "tall.mp4")
    assert result.code == 0, result.err
    assert probe(tmp_path / "tall.mp4")[2:4] == (320, 512)


def test_a_word_is_said_where_more_than_a_third_of_the_photo_is_cut_away(
    cinemo: Command, checkpoint: Path, tmp_path: Path
) -> None:
    portrait = Path(__file__).parent / "field" / "portrait.jpg"
    made = {}
    for fit in ("auto", "crop", "pad"):
        output = tmp_path / f"{fit}.mp4"
        wish = ("--model", checkpoint, *SMALL, "--fit", fit, "--output", output)
        result = cinemo("animate", portrait, "--prompt", "x", *wish)
        assert result.code == 0, result.err
        assert ("56% of the photo, 600 x 900 pixels, is cut away to fill 96 x 64" in result.err) == (fit != "pad")
        made[fit] = sample_clip(output, 0, 1, 4).astype(int)
    assert np.abs(made["auto"] - made["crop"]).mean() < 1 < np.abs(made["pad"] - made["crop"]).mean()


def test_animate_refuses_bad_input_with_one_sentence(
    cinemo: Command, photo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "hollow").mkdir()
    model = ("--model", checkpoint)
    small = (*model, "--height", 64, "--width", 96, "--steps", 1)
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "none.png", *model), "none.png does not exist"),
        ((tmp_path / "empty.png", *model), "is empty"),
        ((tmp_path / "text.png", *model), "not an image"),
        ((Path(__file__).parent / "field" / "thin_400k.png", *model), "at most 16 to 1 is taken"),
        ((photo, "--model", tmp_path / "hollow"), "has no U-Net"),
        ((photo, "--model", "no-such-model"), "no-such-model"),
        ((photo, *small, "--motion-bucket", 25), "motion_bucket 25 is outside 0..19"),
        ((photo, *model, "--height", 65), "multiples of 8"),
        ((photo, *small, "--output", tmp_path / "out.txt"), "ends in .txt"),
        ((photo, *small, "--output", tmp_path), "is a directory"),
        ((photo, *small, "--device", "abacus"), "device abacus"),
        ((photo, *small, "--speed", "fast"), "--speed fast sets --steps"),
    ]
    if not torch.cuda.is_available():
        cases.append(((photo, *small, "--device", "cuda"), "torch sees no GPU"))
    before = sorted(tmp_path.rglob("*"))
    for arguments, words in cases:
        output = () if "--output" in arguments else ("--output", tmp_path / "out.mp4")
        refused(cinemo("animate", *arguments, "--prompt", "x", *output), words)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unwritable_output_is_a_failure_not_a_traceback(
    cinemo: Command, photo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    small = ("--model", checkpoint, "--height", 64, "--width", 96, "--steps", 1)
    refused(
        cinemo("animate", photo, "--prompt", "x", *small, "--output", tmp_path / "file" / "out.mp4"), "file", code=1
    )


def test_score_prints_a_line_a_video_and_goes_on_past_bad_ones(
    cinemo: Command, moving_video: Path, tmp_path: Path
) -> None:
    result = cinemo("score", moving_video, tmp_path / "none.mp4", moving_video, "--height", 72, "--width", 96, "--json")
    assert result.code == 2
    assert "none.mp4 does not exist" in result.err
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert len(rows) == 2
    assert rows[0] == rows[1]
    assert (rows[0]["frames"], rows[0]["interval"]) == (16, 3)
    assert 0 < rows[0]["score"] < 1
    assert "bucket" in cinemo("score", moving_video).out


def test_score_says_how_a_video_is_stored(cinemo: Command, tmp_path: Path) -> None:
    uneven = [0, 1, 2, 5, 6, 7, 8, 12, 13, 14, 15, 16, 17, 20, 21, 22]
    options = {"x264-params": "tff=1:sar=4/3"}
    odd = encode(tmp_path / "odd: one.mp4", numbered(16), times=uneven, options=options)
    small = ("--height", 72, "--width", 96)
    row = json.loads(cinemo("score", odd, *small, "--json").out)
    assert row["fps"] == pytest.approx(24 * 15 / 22)
    stored = {"variable_rate": True, "interlaced": True, "sample_aspect_ratio": pytest.approx(4 / 3), "transfer": None}
    assert {name: row[name] for name in stored} == stored
    assert (row["frames"], row["interval"]) == (16, 1)
    assert cinemo("score", odd, *small).out.endswith("16.36 fps, variable, interlaced, pixels 1.33:1\n")
    plain = encode(tmp_path / "plain.mp4", numbered(16))
    assert cinemo("score", plain, *small).out.endswith("frames 0..15 by 1  24 fps\n")


def test_info_shows_the_parts_and_the_fingerprint(cinemo: Command, checkpoint: Path) -> None:
    facts = json.loads(cinemo("info", checkpoint, "--json").out)
    assert facts["parameters"]["unet"] > 2_000_000
    assert len(facts["fingerprint"]) == 64
    assert "official-demo-100" in cinemo("info", checkpoint).out
    assert cinemo("info", "builtin:tiny").out.splitlines()[-1].startswith("  made by recipe recipes/builtin_tiny")
    refused(cinemo("info", "out.mp4"), "has no sidecar out.json beside it")


def test_unknown_flags_are_bad_usage(cinemo: Command) -> None:
    assert cinemo("animate", "--nonsense").code == 2
    assert cinemo("no-such-command").code == 2


SMALL = ("--height", 64, "--width", 96, "--steps", 1, "--num-frames", 4)


def test_adapters_act_and_bad_ones_are_one_sentence(
    cinemo: Command, photo: Path, checkpoint: Path, moving_video: Path, tmp_path: Path
) -> None:
    first = write_adapter(tmp_path / "first", checkpoint, 1, trigger_words="ink wash")
    second = write_adapter(tmp_path / "second", checkpoint, 2)
    other = write_adapter(tmp_path / "other", checkpoint, unet_fingerprint="f" * 64)
    edited = ("edit", moving_video, "--image", tmp_path / "frame.png")
    assert cinemo(*edited[:2], "--model", checkpoint, *SMALL, "--first-frame", edited[-1]).code == 0
    animated = ("animate", photo, "--prompt", "x")
    off, on = (f"{first}:0", f"{second}:0"), (f"{first}:0.5", second)
    for command, several in ((animated, ((), on, off)), (edited, ((), on))):
        made = []
        for loras in several:
            flags = [part for one in loras for part in ("--lora", one)]
            result = cinemo(*command, "--model", checkpoint, *SMALL, *flags, "--output", tmp_path / "made.mp4")
            assert result.code == 0, result.err
            assert (f"every prompt of the training of {first}" in result.err) == bool(loras)
            made.append((tmp_path / "made.mp4").read_bytes())
        assert made[0] != made[1]
        assert made[0] == made[-1] or command == edited
    for bad, words in (
        (f"{first}:nan", f"lora '{first}:nan' should be PATH or PATH:weight"),
        (tmp_path, "holds no pytorch_lora_weights.safetensors"),
        (other, f"lora {other} was trained on {checkpoint} with the U-Net ffffffffffff"),
    ):
        refused(cinemo(*animated, "--model", checkpoint, *SMALL, "--lora", bad), words)


def test_a_sweep_writes_a_video_for_each_bucket_and_a_sheet(
    cinemo: Command, photo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    model = ("--model", checkpoint, *SMALL)
    result = cinemo("animate", photo, "--prompt", "x", *model, "--sweep", "0,19", "--output", tmp_path / "s.mp4")
    assert result.code == 0, result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s-0.mp4", "s-19.mp4", "s.png"]
    assert [line.split()[0] for line in result.out.splitlines()[1:3]] == ["0", "19"]
    refused(cinemo("animate", photo, "--prompt", "x", *model, "--sweep", "0,x"), "--sweep 0,x is no list")
    refused(cinemo("animate", photo, "--prompt", "x", *model, "--sweep", "0,20"), "motion_bucket 20 is outside")
    refused(cinemo("animate", photo, "--prompt", "x", *model, "--sweep", "0", "--loop"), "leave out --extend")
    own, before = photo.with_suffix(".mp4"), photo.read_bytes()
    refused(cinemo("animate", photo, "--prompt", "x", *model, "--sweep", "0", "--output", own), "is an input")
    assert photo.read_bytes() == before
    (tmp_path / "s.mp4").write_bytes(before)
    own = tmp_path / "s.mp4"
    refused(cinemo("edit", own, "--image", photo, "--prompt", "x", "--output", own), "is an input")
    assert own.read_bytes() == before
    both = ("--sweep", "0", "--motion-bucket", 3)
    refused(cinemo("animate", photo, "--prompt", "x", *model, *both), "all set the motion; give one")


def test_a_chain_loops_with_the_reference_s_motion(
    cinemo: Command, photo: Path, checkpoint: Path, moving_video: Path, tmp_path: Path
) -> None:
    wish = ("--extend", 1, "--loop", "--reference-video", moving_video, "--scheduler", "dpmsolver++")
    output = tmp_path / "o.mp4"
    result = cinemo("animate", photo, "--prompt", "x", "--model", checkpoint, *SMALL, *wish, "--output", output)
    assert result.code == 0, result.err
    assert probe(output).num_frames == 2 * (4 + 3) - 2
    measured = cinemo("score", moving_video, "--num-frames", 4, "--height", 64, "--width", 96, "--json").out
    bucket = json.loads(measured)["bucket"]
    assert f"motion bucket {bucket}\n" in result.out
    assert f"asked for {bucket}\n" in result.out
    assert "little moves" not in result.out
    drifts = result.out.splitlines()[-1].split(":")[1].split("(")[0].split(",")
    assert len([float(drift) for drift in drifts]) == 2


def test_edit_takes_two_steps_and_refuses_what_cannot_be_edited(
    cinemo: Command,
    photo: Path,
    checkpoint: Path,
    of_residuals: Path,
    moving_video: Path,
    shared_clips: Path,
    tmp_path: Path,
) -> None:
    model = ("--model", checkpoint, *SMALL)
    frame, output = tmp_path / "frame.png", tmp_path / "o.mp4"
    assert cinemo("edit", moving_video, *model, "--first-frame", frame).code == 0
    with Image.open(frame) as picture:
        assert picture.size == (96, 64)
    result = cinemo("edit", moving_video, *model, "--image", frame, "--prompt", "x", "--dct-init", "--output", output)
    assert result.code == 0, result.err
    assert probe(output).num_frames == 4
    assert "measured motion bucket" in result.out
    assert "note:" not in result.err
    tall = cinemo("edit", shared_clips / "rotated_90.mov", "--num-frames", 3, "--first-frame", frame.with_stem("tall"))
    assert tall.code == 0, tall.err
    with Image.open(frame.with_stem("tall")) as picture:
        assert picture.size == (320, 512)
    result = cinemo("edit", moving_video, "--model", of_residuals, *SMALL, "--image", frame, "--output", output)
    assert "note: " in result.err
    assert "builtin:tiny" in result.err
    square = tmp_path / "square.png"
    Image.open(photo).resize((64, 64)).save(square)
    with_image = (*model, "--image", frame)
    cases: list[tuple[tuple[object, ...], str]] = [
        ((moving_video, *model), "give --image"),
        ((moving_video, *with_image, "--first-frame", frame), "give --image"),
        ((moving_video, *model, "--image", square), "edit the frame without changing its aspect"),
        ((moving_video, *with_image, "--start", 59), "ends before frame"),
        ((tmp_path / "none.mp4", *with_image), "none.mp4 does not exist"),
        ((frame, *with_image), "is a still image"),
        ((moving_video, *with_image, "--dct-init", "--dct-timestep", 1000), "dct_timestep 1000"),
    ]
    for arguments, words in cases:
        refused(cinemo("edit", *arguments, "--output", output), words)
