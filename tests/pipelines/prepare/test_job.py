"""The prepare dataflow on a real local cluster: what it writes, what it counts, what it refuses."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cinemo import checkpoint as model_directory
from cinemo.latents import encode_frames, encode_prompts, to_pixels
from cinemo.motion import SCORE_DEFINITION, motion_bucket
from cinemo.video import sample_clip
from pipelines.core import lease, storage
from pipelines.dataset import index, parts, reader
from pipelines.prepare import job as prepare
from pipelines.prepare.config import PrepareConfig
from tests.pipelines.conftest import NUM_VIDEOS, rows

pytestmark = pytest.mark.ray


def every_file(output: str) -> dict[str, tuple[int, int, bytes]]:
    """Name -> (inode, time, content) of all files of a dataset."""
    paths = [path for path in Path(output).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_every_row_is_what_the_method_makes_of_its_span(prepare_config: PrepareConfig, summary: dict[str, Any]) -> None:
    vae = model_directory.load_vae(model_directory.resolve(prepare_config.model))
    stored = rows(prepare_config.output)
    assert len(stored) == summary["counts"]["clips"] >= NUM_VIDEOS
    for row in stored[::4]:
        frames = sample_clip(row["uri"], row["start_frame"], row["interval"], 4, (64, 64))
        latents = encode_frames(vae, frames[None])[0].transpose(0, 1).half().numpy()
        np.testing.assert_allclose(np.array(row["latents"]).reshape(latents.shape), latents, rtol=1e-3, atol=2e-3)
        assert row["bucket"] == motion_bucket(row["score"])
        assert (row["num_frames"], row["height"], row["width"]) == (4, 64, 64)
        assert row["caption"] or Path(row["uri"]).stem == "brief"


def test_counts_add_up_and_faults_are_rows(prepare_config: PrepareConfig, summary: dict[str, Any]) -> None:
    manifest = json.loads((Path(prepare_config.output) / "dataset.json").read_text())
    counts, rejects = manifest["counts"], rows(prepare_config.output, "rejects")
    stored = rows(prepare_config.output)
    assert counts["videos"] == NUM_VIDEOS + 2
    assert counts["videos"] == len({row["uri"] for row in stored + rejects})
    assert counts["clips"] == len(stored) == len({row["clip_id"] for row in stored})
    assert counts["rejected_videos"] + counts["rejected_clips"] == sum(counts["rejects"].values()) == len(rejects)
    assert Counter(row["reason"] for row in rejects) == counts["rejects"]
    assert {Path(row["uri"]).stem: row["reason"] for row in rejects}["brief"] == "too_short"
    assert sum(manifest["bucket_histogram"]) == counts["clips"]
    assert manifest["score_definition"] == SCORE_DEFINITION
    assert {"broken"} <= {Path(row["uri"]).stem for row in rejects}
    assert all(row["message"] and row["stage"] for row in rejects)


def test_rerun_of_a_finished_job_changes_no_file(prepare_config: PrepareConfig, summary: dict[str, Any]) -> None:
    before = every_file(prepare_config.output)
    again = prepare.run(prepare.resolve(prepare_config))
    assert every_file(prepare_config.output) == before
    assert again["fingerprint"] == summary["fingerprint"]


def test_a_part_that_was_lost_is_made_again_and_nothing_else(
    prepare_config: PrepareConfig, summary: dict[str, Any], tmp_path: Path
) -> None:
    before = every_file(prepare_config.output)
    lost = sorted(Path(prepare_config.output, "data").iterdir())[0]
    expected = rows(prepare_config.output)
    lost.unlink()
    (Path(prepare_config.output) / "dataset.json").unlink()
    again = prepare.run(prepare.resolve(prepare_config))
    after = every_file(prepare_config.output)
    assert again["fingerprint"] == summary["fingerprint"]
    assert rows(prepare_config.output) == expected
    changed = {str(lost), *(str(Path(prepare_config.output) / name) for name in ("dataset.json", "summary.json"))}
    kept = before.keys() - changed
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_a_clip_that_was_written_twice_is_kept_once(prepare_config: PrepareConfig, summary: dict[str, Any]) -> None:
    expected = rows(prepare_config.output)
    first = sorted(Path(prepare_config.output, "data").iterdir())[0]
    (first.parent / "part-zz.parquet").write_bytes(first.read_bytes())
    assert len(rows(prepare_config.output)) > len(expected)
    parts.drop_duplicates(prepare_config.output)
    assert rows(prepare_config.output) == expected


def test_merged_files_have_the_clips_in_the_same_order_for_training(
    prepare_config: PrepareConfig, summary: dict[str, Any], tmp_path: Path
) -> None:
    output = str(tmp_path / "merged")
    shutil.copytree(prepare_config.output, output)
    before = reader.ClipReader(prepare_config.output)
    size = max(path.stat().st_size for path in Path(output, "data").iterdir())
    count = len(list(Path(output, "data").iterdir()))
    with lease.hold(output) as held:
        prepare.merge_files(output, held, 3 * size)
    index.update(output, reader.read_description(output))
    assert 0 < len(list(Path(output, "data").iterdir())) < count
    after = reader.ClipReader(output, 0.0, index.find(output, reader.read_description(output), "unused", pytest.fail))
    assert len(before) == len(after)
    for position in range(len(before)):
        assert before[position].clip_id == after[position].clip_id
        np.testing.assert_array_equal(before[position].latents, after[position].latents)


def test_a_job_that_lost_its_lease_while_files_were_merged_removes_none(
    prepare_config: PrepareConfig, summary: dict[str, Any], tmp_path: Path
) -> None:
    output = str(tmp_path / "merged")
    shutil.copytree(prepare_config.output, output)
    before = every_file(f"{output}/data")
    size = max(path.stat().st_size for path in Path(output, "data").iterdir())
    with lease.hold(output) as held:
        storage.put_json(held.place, {**held.record, "token": "theirs"})
        with pytest.raises(lease.LeaseError, match="is being written by another job"):
            prepare.merge_files(output, held, 3 * size)
    assert before.items() <= every_file(f"{output}/data").items()


@pytest.fixture(scope="module")
def tensors(
    mixed_config: PrepareConfig,
    checkpoint: Path,
    ray_cluster: None,
    tracking_uri: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> PrepareConfig:
    """A dataset of several shapes with text embeddings, the latents' log-variance and weights of buckets."""
    changes = {"output": str(tmp_path_factory.mktemp("tensors") / "ds"), "model": str(checkpoint), "clips_per_video": 1}
    changes |= {"embed_text": True, "store_posterior": True, "balance": True, "tracking_uri": tracking_uri}
    config = mixed_config.model_copy(update=changes)
    prepare.run(prepare.resolve(config))
    return config


def test_clips_of_several_shapes_are_those_of_the_plain_loop_and_counted(tensors: PrepareConfig, mixed: str) -> None:
    found, described = rows(tensors.output), json.loads((Path(tensors.output) / "dataset.json").read_text())
    expected = {row["clip_id"]: row for row in rows(mixed)}
    for row in found:  # a third of the clips: the others are further draws
        plain = expected[row["clip_id"]]
        assert [row[name] for name in ("num_frames", "height", "width", "bucket")] == [
            plain[name] for name in ("num_frames", "height", "width", "bucket")
        ]
    shapes = {(each["num_frames"], each["height"], each["width"]): each["clips"] for each in described["shapes"]}
    assert shapes == {(4, 64, 96): NUM_VIDEOS, (4, 96, 64): 3, (3, 64, 96): 5}
    assert next(iter(shapes)) == (4, 64, 96)  # the most frequent is first
    assert {reject["reason"] for reject in rows(tensors.output, "rejects")} == {"corrupt", "too_short", "too_small"}
    index.find(tensors.output, described, "unused", pytest.fail)


def test_text_embeddings_are_those_of_the_captions(tensors: PrepareConfig) -> None:
    text = model_directory.load_text(model_directory.resolve(tensors.model))
    for row in rows(tensors.output)[:3]:
        expected = encode_prompts(*text, [row["caption"]])[0]
        stored = torch.tensor(row["text_embeds"]).reshape(expected.shape)
        torch.testing.assert_close(stored.float(), expected, atol=2e-3, rtol=2e-3)


def test_log_variance_is_stored_beside_the_mean(tensors: PrepareConfig) -> None:
    vae = model_directory.load_vae(model_directory.resolve(tensors.model))
    for row in rows(tensors.output)[:2]:
        size = (row["height"], row["width"])
        frames = sample_clip(row["uri"], row["start_frame"], row["interval"], row["num_frames"], size)
        with torch.no_grad():
            spread = vae.encode(to_pixels(frames)).latent_dist.std * vae.config.scaling_factor
        stored = torch.tensor(row["latents_logvar"]).reshape(spread.shape).float()
        torch.testing.assert_close((stored / 2).exp(), spread, rtol=2e-2, atol=1e-6)


def test_weights_make_all_buckets_count_the_same(tensors: PrepareConfig) -> None:
    described = json.loads((Path(tensors.output) / "dataset.json").read_text())
    weights, histogram = described["bucket_weights"], described["bucket_histogram"]
    totals = [weight * count for weight, count in zip(weights, histogram, strict=True) if count]
    assert sum(totals) == pytest.approx(described["counts"]["clips"])
    assert totals == pytest.approx([totals[0]] * len(totals))


def test_scores_alone_are_those_of_the_whole_job(
    prepare_config: PrepareConfig, summary: dict[str, Any], tracking_uri: str, tmp_path: Path
) -> None:
    changes = {"output": str(tmp_path / "ds"), "score_only": True, "tracking_uri": tracking_uri}
    config = prepare_config.model_copy(update=changes)
    prepare.run(prepare.resolve(config))
    encoded = {"latents": None, "first_frame": None}  # what the encoder adds: no column, and an empty one
    scores = [row | {"latents": None} for row in rows(config.output)]
    assert scores == [row | encoded for row in rows(prepare_config.output)]
    assert rows(config.output, "rejects") == rows(prepare_config.output, "rejects")
    assert json.loads((tmp_path / "ds" / "dataset.json").read_text())["vae_fingerprint"] is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_interval", 2), ("seed", 1), ("num_frames", 7), ("embed_text", True), ("scene_cut", 0.1),
     ("max_enlargement", 1.2)],
)  # fmt: skip
def test_another_setting_does_not_mix_with_what_is_there(
    prepare_config: PrepareConfig, summary: dict[str, Any], name: str, value: Any
) -> None:
    before = every_file(prepare_config.output)
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}: .* was made with {name}"):
        prepare.run(prepare.resolve(prepare_config.model_copy(update={name: value})))
    assert every_file(prepare_config.output) == before


def test_segments_have_clips_and_captions_of_their_own_and_a_new_one_is_made_alone(
    prepare_config: PrepareConfig,
    videos: Path,
    ray_cluster: None,
    tracking_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = next(path for path in sorted(videos.glob("*.mp4")) if path.stem not in ("brief", "broken"))  # 60 frames
    captions = {"frames=0,30": "first", "frames=30,60": "", None: "all"}
    lines = ["video;start_frame;end_frame;caption", f"{video};0;30;first", f"{video};30;60;", f"{video};0;30;again"]
    lines += [f"{video};;;all"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    changes = {"input": str(tmp_path / "list.csv"), "output": str(tmp_path / "ds"), "score_only": True}
    config = prepare_config.model_copy(update={**changes, "tracking_uri": tracking_uri})
    summary = prepare.run(prepare.resolve(config))
    said = capsys.readouterr().err
    made = rows(config.output)
    assert summary["counts"]["clips"] == len(made) == len({row["clip_id"] for row in made})
    assert {row["segment"] for row in made} == set(captions)
    for row in made:
        first, last = (row["start_frame"] + row["interval"] * k for k in (0, 3))
        low, high = {"frames=0,30": (0, 30), "frames=30,60": (30, 60), None: (0, 60)}[row["segment"]]
        assert low <= first < last < high
        assert row["caption"] == captions[row["segment"]]
    counts = {"with_caption": 2, "without_caption": 1, "segments": 2, "rows_that_repeat_a_video": 1}
    assert counts.items() <= summary["source"].items()
    assert "warning: 1 of 3 videos have no caption" in said
    assert "1  rows left out: they repeat a video that an earlier row names" in said
    before = every_file(f"{config.output}/data")
    (tmp_path / "list.csv").write_text("\n".join([*lines, f"{video};15;45;third"]))
    again = prepare.run(prepare.resolve(config))
    assert before.items() <= every_file(f"{config.output}/data").items()
    added = [row for row in rows(config.output) if row["caption"] == "third"]
    assert again["new_clips"] == len(added) == len(rows(config.output)) - len(made) > 0
    assert again["counts"]["videos"] == 4
