"""A catalog becomes tasks: complete requests, keys that change with their row alone, and reasons for what is wrong."""

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.animate.config import AnimateConfig
from pipelines.animate.job import resolve
from pipelines.animate.request import shape_of
from pipelines.core.output import Reason
from tests.loras import write_adapter
from tests.pipelines.animate.conftest import ready, tasks_of, write_catalog, write_photo

FAST: dict[str, Any] = {"speed": "fast", "num_inference_steps": None}


def keys(config: AnimateConfig) -> list[str]:
    return [task["key"] for task in tasks_of(config)]


def lines(config: AnimateConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(config.catalog).read_text().splitlines()]


def test_rows_override_flags_and_flags_override_the_model(config: AnimateConfig) -> None:
    write_catalog(Path(config.catalog), [{"image": "0.png", "prompt": " x ", "motion_bucket": 3}, {"image": "1.png"}])
    first, second = tasks_of(config.model_copy(update={"prompt": "all", "motion_bucket": 5, "seed": 9}))
    asked = json.loads(first["request"])
    assert (asked["prompt"], asked["motion_bucket"], asked["seed"], asked["num_frames"]) == ("x", 3, 9, 4)
    assert (json.loads(second["request"])["prompt"], json.loads(second["request"])["motion_bucket"]) == ("all", 5)


def test_the_same_catalog_gives_the_same_keys_and_files(config: AnimateConfig) -> None:
    before = keys(config)
    files = {path: path.stat().st_mtime_ns for path in Path(config.output, "catalog").iterdir()}
    assert keys(config) == before
    assert {path: path.stat().st_mtime_ns for path in Path(config.output, "catalog").iterdir()} == files
    assert len(set(before)) == 3


@pytest.mark.parametrize("change", ["prompt", "setting", "image"])
def test_a_row_that_changes_has_another_key_and_the_others_keep_theirs(config: AnimateConfig, change: str) -> None:
    before, changed = keys(config), lines(config)
    if change == "image":
        photo = write_photo(Path(config.catalog).parent / "1.png", 5)
        os.utime(photo, ns=(1, 1))
    else:
        changed[1] |= {"prompt": "another"} if change == "prompt" else {"motion_bucket": 1}
        write_catalog(Path(config.catalog), changed)
    after = keys(config)
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] != before[1]


def test_a_row_s_own_steps_outdo_the_speed_of_the_job(config: AnimateConfig) -> None:
    write_catalog(
        Path(config.catalog), [{"image": "0.png", "prompt": "x"}, {"image": "1.png", "prompt": "x", "steps": 3}]
    )
    asked = [json.loads(task["request"]) for task in tasks_of(config.model_copy(update=FAST))]
    assert [(one.get("scheduler"), one["num_inference_steps"]) for one in asked] == [("dpmsolver++", 8), (None, 3)]


@pytest.mark.parametrize(
    "change", [{"precision": "bfloat16"}, {"format": "gif"}, {"fps": 12.0}, {"seed": 5}, {"fit": "pad"}, FAST]
)
def test_a_flag_that_changes_videos_changes_keys(config: AnimateConfig, change: dict[str, Any]) -> None:
    write_catalog(Path(config.catalog), [{"image": "0.png", "prompt": "x"}])
    assert keys(config) != keys(config.model_copy(update=change))


def test_equal_rows_are_rows_of_their_own(config: AnimateConfig) -> None:
    same = lines(config)[0]
    write_catalog(Path(config.catalog), [same, same, same])
    assert len(set(keys(config))) == 3


def test_rows_in_other_places_keep_their_keys(config: AnimateConfig) -> None:
    before, turned = keys(config), lines(config)[::-1]
    write_catalog(Path(config.catalog), turned)
    assert keys(config) == before[::-1]


@pytest.mark.parametrize(
    ("wrong", "reason", "sentence"),
    [
        ({"prompt": None}, Reason.BAD_PROMPT, "the row has no prompt"),
        ({"prompt": 7}, Reason.BAD_PROMPT, "of type int, not text"),
        ({"prompt": "x" * 3000}, Reason.BAD_PROMPT, "3,000 characters"),
        ({"prompt": "a\0"}, Reason.BAD_PROMPT, "NUL"),
        ({"prompt": "\udc00"}, Reason.BAD_PROMPT, "UTF-8"),
        ({"motion_bucket": 20}, Reason.BAD_SETTING, "motion_bucket 20: "),
        ({"motion_bucket": "much"}, Reason.BAD_SETTING, "motion_bucket 'much': "),
        ({"seed": True}, Reason.BAD_SETTING, "seed is of type bool"),
        ({"seed": [1]}, Reason.BAD_SETTING, "seed is of type list"),
        ({"steps": 0}, Reason.BAD_SETTING, "num_inference_steps 0: "),
        ({"guidance": -1}, Reason.BAD_SETTING, "guidance_scale -1: "),
        ({"size": "65x64"}, Reason.BAD_SETTING, "size: height x width"),
        ({"fit": "stretch"}, Reason.BAD_SETTING, "fit 'stretch': "),
        ({"fit": "pad", "video": "a.mp4"}, Reason.BAD_SETTING, "fit pad does not apply to a row with a video"),
        ({"lora": "no/such/adapter"}, Reason.BAD_SETTING, "lora no/such/adapter is neither a file, nor a folder"),
        ({"lora": "x:nan"}, Reason.BAD_SETTING, "lora 'x:nan' should be PATH or PATH:weight"),
        ({"lora": 7}, Reason.BAD_SETTING, "lora 7: "),
        ({"image": ""}, Reason.BAD_ROW, "names no image"),
    ],
)
def test_what_is_wrong_with_a_row_is_its_reason(
    config: AnimateConfig, wrong: dict[str, Any], reason: Reason, sentence: str
) -> None:
    good = lines(config)
    write_catalog(Path(config.catalog), [good[0], {**good[1], **wrong}, good[2]])
    first, found, last = tasks_of(config)
    assert (found["reason"], found["request"]) == (reason.value, None)
    assert sentence in found["message"]
    assert first["reason"] is last["reason"] is None


def test_a_prompt_may_be_empty_when_that_is_said(config: AnimateConfig) -> None:
    write_catalog(Path(config.catalog), [{"image": "0.png", "prompt": ""}])
    (task,) = tasks_of(config.model_copy(update={"prompt": ""}))
    assert json.loads(task["request"])["prompt"] == ""


def test_equal_shapes_stand_together(config: AnimateConfig) -> None:
    mixed = [{"image": "0.png", "prompt": "x", "steps": 2 + number % 3, "seed": number} for number in range(12)]
    write_catalog(Path(config.catalog), mixed)
    tasks_of(config)
    import pyarrow.parquet as pq

    stored = pq.read_table(f"{config.output}/catalog").to_pylist()
    shapes = [shape_of(json.loads(task["request"])) for task in stored]
    assert sum(a != b for a, b in itertools.pairwise(shapes)) == 2


def test_photos_are_listed_under_every_ending_that_they_have(config: AnimateConfig, tmp_path: Path) -> None:
    endings = ("jpg", "JPE", "jfif", "heic", "HEIF", "hif", "avif", "webp", "tif")
    (tmp_path / "photos").mkdir()
    for ending in (*endings, "txt", "mp4"):
        (tmp_path / "photos" / f"a-{ending}.{ending}").touch()
    listed = tasks_of(config.model_copy(update={"catalog": str(tmp_path / "photos"), "prompt": "x"}))
    assert {Path(task["image"]).suffix[1:] for task in listed} == set(endings)


def test_a_limit_takes_the_first_rows(config: AnimateConfig) -> None:
    assert keys(config.model_copy(update={"limit": 2})) == keys(config)[:2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": "65x64"}, "--size: height x width 64 x 65 does not fit"),
        ({"num_inference_steps": 999, "dct_timestep": 1000}, "--num-inference-steps: dct_timestep 1000"),
        ({"model": "nowhere"}, "model nowhere is neither"),
        ({"output": "{folder}/in"}, "lies in the folder that --catalog names"),
    ],
)
def test_what_cannot_work_is_refused(config: AnimateConfig, change: dict[str, Any], sentence: str) -> None:
    folder = Path(config.catalog).parent
    if "output" in change:
        change = {"catalog": str(folder), "prompt": "x", "output": change["output"].format(folder=folder)}
    with pytest.raises(ValueError, match=sentence):
        resolve(config.model_copy(update=change))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ('{"sampling_version": 2}', r"--output .* was made by another job; give another --output"),
        (
            '{"job": "animate", "schema_version": 1, "catalog": "/elsewhere"}',
            r"--catalog: .* was made with catalog '/elsewhere', this job has '.*'; give the old value, or another",
        ),
    ],
)
def test_the_output_of_another_job_is_refused(config: AnimateConfig, other: str, sentence: str) -> None:
    Path(config.output).mkdir()
    Path(config.output, "settings.json").write_text(other)
    with pytest.raises(ValueError, match=sentence):
        resolve(config)


def test_a_configuration_that_works_says_what_is_known_of_the_model(config: AnimateConfig) -> None:
    assert resolve(config).model.factor >= 1


def test_a_row_s_adapters_override_the_flag_s_and_an_id_is_that_of_their_files(
    config: AnimateConfig, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "ink", config.model, 1)
    for name in ("copy", "a, b"):
        shutil.copytree(tmp_path / "ink", tmp_path / name)
    other = write_adapter(tmp_path / "other", config.model, unet_fingerprint="f" * 64)
    texts = [None, "ink:2", "copy:2", "ink:0", f"ink, {other}"]
    write_catalog(Path(config.catalog), [{"image": "0.png", "prompt": "x", "lora": text} for text in texts])
    flag = config.model_copy(update={"lora": [str(tmp_path / "a, b")]})
    *good, bad = ready(flag)
    weights = [[one["weight"] for one in json.loads(row["request"]).get("lora", [])] for row in good]
    assert weights == [[1.0], [2.0], [2.0], []]
    assert good[1]["id"] == good[2]["id"]
    assert len({row["id"] for row in good}) == 3
    assert good[3]["id"] in [row.get("id") for row in ready(config)]  # without adapters nothing has changed
    assert f"lora: lora {other} was trained on" in bad["message"]
    before = keys(flag)
    write_adapter(tmp_path / "ink", config.model, 5)
    assert [old == new for old, new in zip(before, keys(flag), strict=True)] == [True, False, True, True, True]


def test_adapters_of_flags_are_checked_before_anything_runs(config: AnimateConfig, tmp_path: Path) -> None:
    other = str(write_adapter(tmp_path / "other", config.model, unet_fingerprint="f" * 64))
    own = str(write_adapter(tmp_path / "own", config.model))
    for lora, words in (([other], "--lora: lora .* was trained on"), ([own, own], "is named twice; give one weight")):
        with pytest.raises(ValueError, match=words):
            resolve(config.model_copy(update={"lora": lora}))
    assert AnimateConfig(catalog="a", output="b", lora=f"{own}:0.5, x").lora == [f"{own}:0.5", "x"]
