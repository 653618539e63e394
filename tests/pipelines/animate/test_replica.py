"""A replica without Ray: its videos are the pipeline's, whatever their batch, and what fails is one row."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from cinemo import CinemoPipeline
from cinemo.image import fit_pixels, read_image
from cinemo.latents import decode_latents, encode_pixels
from pipelines.animate import files, flow, replica
from pipelines.animate.config import AnimateConfig
from pipelines.animate.records import result, table
from pipelines.core import models
from tests.loras import write_adapter
from tests.pipelines.animate.conftest import frames_of, make_animator, ready, write_catalog
from tests.pipelines.conftest import export_another

MEASURED = {"motion_score": 0.5, "motion_bucket": 10}  # what writing a video adds to its facts


def run(made: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for part in made(table(rows)) for row in part.to_pylist()]


def test_a_video_is_the_one_that_the_pipeline_makes_of_the_photo(config: AnimateConfig) -> None:
    pipe = CinemoPipeline.from_pretrained(config.model)
    rows = run(make_animator(config), ready(config))  # a batch of two, and one alone
    assert [json.loads(row["facts"])["batch"] for row in rows] == [2, 2, 1]
    for row in rows:
        asked = json.loads(row["request"])
        asked.pop("fps")
        alone = pipe(row["image"], asked.pop("prompt"), **asked).frames[0]
        assert np.abs(frames_of(row).astype(int) - alone).max() <= 1


def test_what_is_known_of_a_video_stands_in_its_facts(config: AnimateConfig) -> None:
    row = run(make_animator(config), ready(config))[0]
    facts = json.loads(row["facts"])
    assert facts["request"] == {
        **json.loads(row["request"]), "image": row["image"], "image_digest": row["image_digest"]
    }  # fmt: skip
    assert facts["id"] == row["id"]
    assert facts["versions"].keys() == {"cinemo", "torch", "diffusers"}
    assert facts["timings"].keys() == {"prepare_seconds", "sample_seconds", "decode_seconds"}
    pixels = fit_pixels(read_image(row["image"]), 64, 64)[0].numpy().transpose(1, 2, 0)
    fitted = ((pixels / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    expected = peak_signal_noise_ratio(fitted, frames_of(row)[0])
    assert facts["psnr_first_frame"] == pytest.approx(expected, abs=0.01)


def test_rows_of_other_shapes_are_batches_of_their_own(config: AnimateConfig) -> None:
    lines = [{"image": "0.png", "prompt": "x", "seed": number, "steps": 1 + number % 2} for number in range(4)]
    write_catalog(Path(config.catalog), lines)
    rows = run(make_animator(config), ready(config))
    assert [json.loads(row["facts"])["batch"] for row in rows] == [2, 2, 2, 2]
    assert {row["row"] for row in rows} == {0, 1, 2, 3}


def test_a_broken_row_of_a_batch_is_a_reject_and_the_other_is_made(config: AnimateConfig) -> None:
    rows = ready(config)[:2]
    whole = run(make_animator(config), rows)
    broken = json.loads(rows[0]["request"]) | {"motion_bucket": 99}
    output = Path(config.output) / "again"
    made = make_animator(config.model_copy(update={"output": str(output)}))
    bad, good = run(made, [{**rows[0], "request": json.dumps(broken)}, rows[1]])
    assert (bad["reason"], bad["stage"], bad["frames"]) == ("failed", "animate", None)
    assert "motion_bucket 99" in bad["message"]
    assert np.abs(frames_of(good).astype(int) - frames_of(whole[1])).max() <= 1


def test_a_row_that_brought_processes_down_is_tried_alone_and_then_given_up(config: AnimateConfig) -> None:
    first, second = ready(config)[:2]
    ledger = flow.Ledger()
    for _ in range(replica.DEATHS):
        ledger.begin([first["id"]])
    given_up, made = run(make_animator(config, ledger), [first, second])
    assert (given_up["reason"], made["reason"]) == ("crashed", None)
    assert json.loads(made["facts"])["batch"] == 1
    assert ledger.died([first["id"], second["id"]]) == 0


def test_kept_latents_are_not_sampled_again(config: AnimateConfig) -> None:
    row = ready(config)[0]
    made = make_animator(config)
    sampled = run(made, [row])[0]
    kept = files.kept(config.output, row["id"])
    assert kept is not None
    assert kept.shape[1] == 3
    np.testing.assert_array_equal(frames_of(run(made, [row])[0]), frames_of(sampled))
    # Residuals of zero are the image all the time, which nothing that is sampled would be.
    files.keep(config.output, row["id"], np.zeros_like(kept))
    pixels = torch.tensor(np.frombuffer(row["pixels"], np.float32).reshape(1, 3, 64, 64))
    still = encode_pixels(made.pipe.vae, pixels)[:, :, None].repeat(1, 1, 4, 1, 1)
    expected = decode_latents(made.pipe.vae, still)[0]
    np.testing.assert_array_equal(frames_of(run(made, [row])[0]), expected)
    assert (frames_of(sampled) != expected).any()


def test_rows_without_pixels_pass_through(config: AnimateConfig) -> None:
    rows = [{**row, "pixels": None} for row in ready(config)]
    assert run(make_animator(config), rows) == table(rows).to_pylist()


def test_kept_latents_come_back_in_the_models_precision(config: AnimateConfig) -> None:
    half = config.model_copy(update={"precision": "bfloat16", "output": f"{config.output}-half"})
    row = ready(half)[0]
    once, again = run(make_animator(half), [row])[0], run(make_animator(half), [row])[0]
    np.testing.assert_array_equal(frames_of(once), frames_of(again))
    assert make_animator(half).pipe.unet.dtype == torch.bfloat16


def test_rows_with_adapters_get_the_videos_of_a_pipeline_that_has_theirs_alone(
    config: AnimateConfig, tmp_path: Path
) -> None:
    first, second = (
        write_adapter(tmp_path / f"lora{seed}", config.model, seed, lineage={"steps": seed}) for seed in (1, 2)
    )
    named = ["lora1", None, f"{second}:0.5, lora1", "lora1", "lora1:0"]  # relative to the catalog, or absolute
    lines = [{"image": "0.png", "prompt": "x", "seed": 3, "lora": text} for text in named]
    write_catalog(Path(config.catalog), lines)
    rows = run(make_animator(config), ready(config))
    rows.sort(key=lambda row: row["row"])
    batches = [json.loads(row["facts"])["batch"] for row in rows]
    assert batches == [2, 2, 1, 2, 2]  # rows of the same adapters together
    pipe = CinemoPipeline.from_pretrained(config.model)
    for row, alone in zip(rows, ([(first, 1.0)], [], [(second, 0.5), (first, 1.0)], [(first, 1.0)], []), strict=True):
        pipe.load_adapters(alone)
        asked = json.loads(row["request"])
        asked.pop("fps")
        loras = asked.pop("lora", [])
        expected = pipe(row["image"], asked.pop("prompt"), **asked).frames[0]
        assert np.abs(frames_of(row).astype(int) - expected).max() <= 1
        facts = json.loads(row["facts"])
        assert [(one["name"], one["weight"]) for one in loras] == [(str(place), weight) for place, weight in alone]
        assert [(one["path"], one["weight"]) for one in facts.get("loras", [])] == [(str(p), w) for p, w in alone]
    assert json.loads(rows[0]["facts"])["loras"][0]["lineage"] == {"steps": 1}
    listed = [result(row | {"facts": json.dumps(json.loads(row["facts"]) | MEASURED)}, ".mp4") for row in rows]
    assert [row["lora"] for row in listed] == [f"{first}:1", None, f"{second}:0.5, {first}:1", f"{first}:1", None]


def test_an_adapter_that_changed_after_the_job_began_is_a_reject(config: AnimateConfig, tmp_path: Path) -> None:
    place = write_adapter(tmp_path / "lora1", config.model, 1)
    row = ready(config.model_copy(update={"lora": [str(place)]}))[0]
    write_adapter(tmp_path / "lora1", config.model, 2)
    (bad,) = run(make_animator(config), [row])
    assert bad["reason"] == "failed"
    assert "when the job began; run the job again" in bad["message"]


def test_a_model_that_was_replaced_after_the_job_began_makes_no_video(config: AnimateConfig, tmp_path: Path) -> None:
    shutil.copytree(config.model, tmp_path / "model")
    config = config.model_copy(update={"model": str(tmp_path / "model")})
    facts = flow.model_facts(config, models.look_up(config.model))
    replica.Animator(config, facts, flow.Ledger())
    export_another(tmp_path / "model" / "vae_temporal_decoder")
    now = models.fingerprint(tmp_path / "model")
    sentence = f"model {config.model} has fingerprint {now[:12]} here, and {facts['model_fingerprint'][:12]} when"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        replica.Animator(config, facts, flow.Ledger())


def test_a_model_that_is_replaced_while_it_is_loaded_makes_no_video(
    config: AnimateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(config.model, tmp_path / "model")
    config = config.model_copy(update={"model": str(tmp_path / "model")})
    facts = flow.model_facts(config, models.look_up(config.model))
    load = CinemoPipeline.from_pretrained

    def overtaken(directory: Path, *arguments: Any) -> Any:
        export_another(directory / "vae_temporal_decoder")
        return load(directory, *arguments)

    monkeypatch.setattr(CinemoPipeline, "from_pretrained", overtaken)
    with pytest.raises(ValueError, match="run the job again"):
        replica.Animator(config, facts, flow.Ledger())
