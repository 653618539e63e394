"""One row before the model sees it: its id is its content's, and whatever is wrong with an image is one reject row."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cinemo.card import ModelCard, write_card
from cinemo.image import fit_pixels, read_image
from pipelines.animate import rows
from pipelines.animate.config import AnimateConfig
from tests.pipelines.animate.conftest import ready, tasks_of, write_catalog


def test_pixels_are_those_that_the_pipeline_would_take(config: AnimateConfig) -> None:
    for row in ready(config):
        expected = fit_pixels(read_image(row["image"]), 64, 64)[0].numpy()
        np.testing.assert_array_equal(np.frombuffer(row["pixels"], np.float32).reshape(3, 64, 64), expected)


def test_each_row_s_image_is_fitted_as_the_row_says(config: AnimateConfig) -> None:
    folder = Path(config.catalog).parent
    model = shutil.copytree(config.model, folder / "model")
    write_card(model, ModelCard(sizes=[(64, 96), (96, 64)]))
    shutil.copy(Path(__file__).parents[2] / "field" / "portrait.jpg", folder / "portrait.jpg")
    portrait, wish = read_image(folder / "portrait.jpg"), {"image": "portrait.jpg", "prompt": "x"}
    write_catalog(Path(config.catalog), [wish, {**wish, "size": "96x64"}, {**wish, "size": "auto", "fit": "auto"},
                                         {**wish, "fit": "pad"}, {**wish, "fit": "pad", "size": "96x64"}])  # fmt: skip
    auto, plain, same, pad, wide = ready(config.model_copy(update={"size": None, "model": str(model)}))
    assert auto["id"] == same["id"]
    cuts = [json.loads(row["facts"])["cut_away"] for row in (plain, auto, pad, wide)]
    assert cuts == [pytest.approx(0.5556, abs=1e-4), 0, 0, 0]
    for row, size, fit in ((plain, (64, 96), "crop"), (auto, (96, 64), "crop"), (pad, (96, 64), "pad"),
                           (wide, (64, 96), "pad")):  # fmt: skip
        assert (json.loads(row["request"])["height"], json.loads(row["request"])["width"]) == size
        expected = fit_pixels(portrait, *size, fit=fit)[0].numpy()
        np.testing.assert_array_equal(np.frombuffer(row["pixels"], np.float32).reshape(3, *size), expected)


def test_an_id_is_of_the_content_and_not_of_the_name(config: AnimateConfig) -> None:
    folder = Path(config.catalog).parent
    shutil.copy(folder / "0.png", folder / "copy.png")
    wish = {"prompt": "x", "seed": 1}
    lines = [{"image": name, **wish} for name in ("0.png", "copy.png", "1.png")]
    write_catalog(Path(config.catalog), [*lines, {**lines[0], "seed": 2}])
    same, copy, other_image, other_seed = (row["id"] for row in ready(config))
    assert same == copy
    assert len({same, other_image, other_seed}) == 3


def test_every_fault_of_an_image_is_a_reject_with_its_reason(config: AnimateConfig) -> None:
    folder = Path(config.catalog).parent
    good = (folder / "0.png").read_bytes()
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image at all")
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    Image.new("RGB", (4, 400)).save(folder / "thin.png")
    Image.new("L", (400_000, 8)).save(folder / "strip.png")
    buffer = io.BytesIO()
    Image.new("L", (20_000, 10_000)).save(buffer, "PNG")
    (folder / "huge.png").write_bytes(buffer.getvalue())
    (folder / "folder.png").mkdir()
    expected = {
        "empty": "no_image",
        "text": "no_image",
        "cut": "corrupt",
        "thin": "too_small",
        "strip": "wrong_aspect",
        "huge": "too_large",
        "folder": "unreadable",
        "gone": "missing",
        "0": None,
    }
    write_catalog(Path(config.catalog), [{"image": f"{name}.png", "prompt": "x"} for name in expected])
    found = ready(config)
    assert {Path(row["image"]).stem: row["reason"] for row in found} == expected
    for row in found[:-1]:
        assert row["stage"] == "image"
        assert row["image"] in row["message"]


def test_what_hangs_is_given_up_and_the_next_is_read(config: AnimateConfig) -> None:
    folder = Path(config.catalog).parent
    os.mkfifo(folder / "hang.png")
    write_catalog(Path(config.catalog), [{"image": name, "prompt": "x"} for name in ("hang.png", "0.png")])
    run = rows.in_sandbox(2.0)
    hung, good = (rows.prepare(task, {}, run) for task in tasks_of(config))
    assert (hung["reason"], good["reason"]) == ("timeout", None)
    assert "raise --image-timeout" in hung["message"]
