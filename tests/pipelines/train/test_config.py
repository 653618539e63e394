"""The train job's configuration: what is refused with a sentence, before anything is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.dataset import order, reader
from pipelines.prepare import flow
from pipelines.prepare.config import ExtractConfig
from pipelines.train import data
from pipelines.train import job as train
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import check_deepspeed, deepspeed_config, gradient_accumulation
from pipelines.train.state import layout
from tests.pipelines.conftest import SMALL, rows
from tests.pipelines.train.plain import small_config
from tests.pipelines.train.validation_reference import held_out_rows, share_of


@pytest.fixture(scope="module")
def train_config(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return small_config(prepared, tmp_path_factory.mktemp("components"))


def changed_dataset(config: TrainConfig, folder: Path, **changes: Any) -> TrainConfig:
    """The same run on a copy of its dataset whose description says something else."""
    shutil.copytree(config.dataset, folder / "ds")
    path = folder / "ds" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return config.model_copy(update={"dataset": str(folder / "ds"), "output": str(folder / "run")})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"vae_fingerprint": "0123"},
            r"made with vae_fingerprint 0123, but .* has [0-9a-f]{64}; prepare it",
        ),
        ({"score_definition": "flow-v1"}, r"made with score_definition flow-v1, but .* has ssim-rgb-u7-v1"),
        ({"text_fingerprint": "4567"}, r"made with text_fingerprint 4567"),
        ({"counts": {"clips": 3}}, r"has 3 clips, fewer than --total-batch 4"),
        ({"schema_version": 99}, r"has schema version 99, this code reads 1"),
    ],
)
def test_a_dataset_that_does_not_fit_the_model_is_refused_before_anything_is_written(
    train_config: TrainConfig, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    config = changed_dataset(train_config, tmp_path, **changes)
    with pytest.raises(ValueError, match=sentence):
        train.resolve(config)
    assert not (tmp_path / "run").exists()


def test_a_share_held_out_that_leaves_less_than_a_batch_is_refused(train_config: TrainConfig) -> None:
    found = rows(train_config.dataset)
    share = share_of({row["uri"] for row in found}, 6)
    left = len(found) - len(held_out_rows(train_config.model_copy(update={"validation_share": share})))
    changes = {"validation_share": share, "total_batch": left + 1}
    with pytest.raises(ValueError, match=rf"--validation-share {share} leaves {left} to train on, fewer"):
        train.resolve(train_config.model_copy(update=changes))
    train.resolve(train_config.model_copy(update={**changes, "total_batch": left}))


def test_clips_of_several_shapes_need_a_dataset_a_model_that_takes_them_and_a_batch_of_one(
    train_config: TrainConfig, several_shapes: str, videos: Path, tmp_path: Path
) -> None:
    config = train_config.model_copy(update={"dataset": several_shapes, "output": str(tmp_path / "run")})
    train.resolve(config)
    shapes = json.loads(Path(several_shapes, "dataset.json").read_text())["shapes"]
    most = max(shape["clips"] for shape in shapes)  # lengths are drawn by the uri, which the temporary folder is in
    with pytest.raises(ValueError, match=rf"has {most} clips of one shape, fewer than --total-batch {most + 1}"):
        train.resolve(config.model_copy(update={"total_batch": most + 1}))
    with pytest.raises(ValueError, match=r"is 64 x 96, but builtin:tiny takes .*; prepare it at one of these"):
        train.resolve(config.model_copy(update={"init": "builtin:tiny"}))
    for several in ({"sizes": "96x64,64x96"}, {"num_frames": "3,4", "height": 64, "width": 64}):
        stream = ExtractConfig.model_validate(several)
        with pytest.raises(ValueError, match=r"names videos, of which clips of one shape are made; give one size and"):
            train.resolve(config.model_copy(update={"dataset": str(videos), "stream": stream}))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_workers": "1:9"}, "--total-batch 8 has no clip for each of --num-workers 1:9"),
        ({"num_workers": "3:1"}, "a range should rise"),
        ({"num_workers": "two"}, "a number such as 2, or a range such as 1:8"),
        ({"num_workers": 0}, "at least 1"),
        ({"precision": "fp16"}, "--precision fp16 needs --gpu"),
        ({"precision": "fp16", "gpu": True, "zero_stage": 0}, "--zero-stage 1, 2 or 3"),
        ({"offload_optimizer": "cpu", "zero_stage": 0}, "--offload-optimizer needs --zero-stage 1, 2 or 3"),
        ({"offload_params": "cpu"}, "--offload-params needs --zero-stage 3"),
        ({"compile": True, "zero_stage": 3}, "--compile needs --zero-stage 0, 1 or 2"),
        ({"min_learning_rate": 1e-6}, "--min-learning-rate need --lr-schedule cosine or linear"),
        ({"lr_schedule": "cosine", "min_learning_rate": 1.0}, "--min-learning-rate 1.0 is above --learning-rate"),
        ({"lr_schedule": "linear", "decay_steps": 5}, "--warmup-steps 5 leave nothing of the 5 steps"),
        ({"lr_schedule": "cosine", "decay_steps": 50}, "--decay-steps 50 end before --max-steps 100, at a learning"),
        ({"lr_schedule": "step"}, "'constant', 'cosine' or 'linear'"),
        ({"weight_decay": float("inf")}, "finite number"),
        ({"min_snr_gamma": -1}, "greater than or equal to 0"),
        ({"noise_offset": 2}, "less than or equal to 1"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        TrainConfig(dataset="a", output="b", **settings)


def test_buckets_are_balanced_only_by_weights_that_are_there(train_config: TrainConfig, tmp_path: Path) -> None:
    balanced = train_config.model_copy(update={"balance_buckets": True})
    with pytest.raises(ValueError, match=r"has no bucket weights; run its prepare job again with --balance"):
        train.resolve(balanced)
    train.resolve(changed_dataset(balanced, tmp_path, bucket_weights=[1.0] * 20))


def test_precision_auto_is_that_of_the_devices_or_of_the_run_that_is_resumed(
    train_config: TrainConfig, tmp_path: Path
) -> None:
    config = train_config.model_copy(update={"output": str(tmp_path)})
    assert train.resolve(config).config.precision == "fp32"
    assert train.resolve(config.model_copy(update={"gpu": True})).config.precision == "bf16"
    own = tmp_path / "settings.json"
    for gpu, begun in ((True, "fp32"), (False, "bf16")):
        changed = config.model_copy(update={"gpu": gpu})
        own.write_text(json.dumps(train.identity(changed.model_copy(update={"precision": begun}), described(config))))
        assert train.resolve(changed).config.precision == begun
        with pytest.raises(ValueError, match=rf"--precision: .* made with precision '{begun}', this job has 'fp16'"):
            train.resolve(changed.model_copy(update={"precision": "fp16"}))


def described(config: TrainConfig) -> dict[str, Any]:
    """The description of a run's dataset."""
    return reader.read_description(config.dataset)


def test_a_run_of_an_earlier_version_was_made_with_the_defaults_of_later_flags(
    train_config: TrainConfig, tmp_path: Path
) -> None:
    config = train_config.model_copy(update={"output": str(tmp_path)})
    settings = {**train.resolve(config).identity}
    assert settings["drawn_up_to"] == order.DRAWN_UP_TO
    for name in (*train.LATER, "drawn_up_to"):
        del settings[name]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert train.resolve(config).identity["drawn_up_to"] == order.ALWAYS_DRAWN  # the clips keep their order
    for name, value, flag in (("weight_decay", 0.1, "--weight-decay"), ("noise_offset", 0.1, "--noise-offset")):
        with pytest.raises(ValueError, match=rf"{flag}: .* was made with {name} 0.0, this job has 0.1"):
            train.resolve(config.model_copy(update={name: value}))


def test_a_run_from_videos_keeps_its_columns(train_config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,caption,words\na.mp4,x,y\n")
    own = tmp_path / "run" / "settings.json"
    own.parent.mkdir()
    changes = {"dataset": str(tmp_path / "list.csv"), "output": str(own.parent), "stream": ExtractConfig(**SMALL)}
    plain = train_config.model_copy(update=changes)
    words = plain.model_copy(update={"stream": ExtractConfig(**SMALL, caption_column="words")})
    before = train.resolve(plain).identity
    assert not [name for name in before if name.endswith("_column")]
    own.write_text(json.dumps(before))
    train.resolve(plain)
    with pytest.raises(ValueError, match=r'--stream.caption-column words: .* add "stream.caption_column": "words" to'):
        train.resolve(words)
    own.write_text(json.dumps({**before, "stream.caption_column": "words"}))  # the remedy
    train.resolve(words)
    with pytest.raises(
        ValueError, match=r"--stream.caption-column: .* stream.caption_column 'words', this job has None"
    ):
        train.resolve(plain)


def test_a_run_from_videos_keeps_its_list(train_config: TrainConfig, tmp_path: Path) -> None:
    """A checkpoint's cursor is a place in a permutation of the list."""
    listed = tmp_path / "list.csv"
    config = train_config.model_copy(update={"dataset": str(listed), "output": str(tmp_path / "run")})
    listed.write_text("path,caption\na.mp4,x\nb.mp4,y\n")
    first = data.write_list(config, config.output)
    for other in ("path,caption\na.mp4,x\nb.mp4,y\nc.mp4,z\n", "path,caption\nb.mp4,y\na.mp4,x\n"):
        listed.write_text(other)
        with pytest.raises(ValueError, match=r"list.csv lists other videos than when this run began; restore the list"):
            data.write_list(config, config.output)
    listed.write_text("path,caption\na.mp4,x\nb.mp4,y\n")
    np.testing.assert_equal(data.write_list(config, config.output), first)
    (tmp_path / "run" / "videos.json").unlink()  # of an earlier version
    data.write_list(config, config.output)
    assert (tmp_path / "run" / "videos.json").exists()


def test_a_falling_rate_keeps_its_steps_when_a_run_is_made_longer(train_config: TrainConfig, tmp_path: Path) -> None:
    config = train_config.model_copy(update={"output": str(tmp_path), "lr_schedule": "cosine"})
    (tmp_path / "settings.json").write_text(json.dumps(train.resolve(config).identity))
    longer = config.model_copy(update={"max_steps": 2 * config.max_steps})
    with pytest.raises(ValueError, match=r"--decay-steps: .* was made with decay_steps 30, this job has 60"):
        train.resolve(longer)
    train.resolve(longer.model_copy(update={"decay_steps": 30}))


def test_a_deepspeed_file_is_merged_and_all_its_conflicts_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"zero_optimization": {"stage": "auto", "overlap_comm": false}, "gradient_clipping": 1.0}')
    merged = deepspeed_config(TrainConfig(dataset="a", output="b", deepspeed=str(path)), world_size=2)
    assert merged["zero_optimization"] == {"stage": 2, "overlap_comm": False}
    path.write_text(
        '{"train_batch_size": 9, "zero_optimization": {"stage": 1}, "optimizer": {}, "bf16": {"enabled": true}}'
    )
    with pytest.raises(ValueError, match="remove") as refused:
        check_deepspeed(TrainConfig(dataset="a", output="b", deepspeed=str(path)))
    message = str(refused.value)
    for part in (
        "train_batch_size (--total-batch sets it to 8)",
        "zero_optimization.stage (--zero-stage sets it to 2)",
        "optimizer (--learning-rate sets it)",
        "bf16.enabled (--precision sets it to False)",
    ):
        assert part in message
    with pytest.raises(ValueError, match=r"--deepspeed nowhere.json cannot be read"):
        check_deepspeed(TrainConfig(dataset="a", output="b", deepspeed="nowhere.json"))


@pytest.mark.parametrize("name", ["round_robin_gradients", "elastic_checkpoint"])
def test_deepspeed_settings_that_would_garble_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    config = TrainConfig(dataset="a", output="b", deepspeed=str(tmp_path / "own.json"))
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": {name: True}}))
    with pytest.raises(ValueError, match=rf"own.json: remove zero_optimization.{name} \(this job sets it to False\)"):
        check_deepspeed(config)
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": {name: False}}))
    check_deepspeed(config)


def test_workers_need_no_deepspeed_file(
    train_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run in other directories, perhaps on other machines. Checkpoints of earlier versions keep their layout."""
    (tmp_path / "own.json").write_text('{"zero_optimization": {"overlap_comm": false}}')
    config = train_config.model_copy(update={"output": str(tmp_path / "run"), "deepspeed": "own.json"})
    monkeypatch.chdir(tmp_path)
    before, resolved = layout(config, 2), train.resolve(config).config
    monkeypatch.chdir("/")
    (tmp_path / "own.json").unlink()
    assert deepspeed_config(resolved, world_size=2)["zero_optimization"] == {"stage": 2, "overlap_comm": False}
    assert layout(resolved, 2) == before
    assert train.resolve(resolved).config == resolved


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_every_number_of_workers_shares_the_whole_batch_within_the_micro_batch(world: int, micro_batch: int) -> None:
    steps, size = gradient_accumulation(8, micro_batch, world)
    assert 1 <= size <= micro_batch
    shares = [reader.micro_batches(range(8), rank, world, size) for rank in range(world)]
    assert {len(share) for share in shares} == {steps}
    assert sorted(clip for share in shares for batch in share for clip in batch) == list(range(8))


def test_preset_base_is_the_papers_run_and_a_flag_wins_over_it() -> None:
    config = TrainConfig(dataset="a", output="b", preset="base", num_workers=8, learning_rate=3e-4)
    assert (config.total_batch, config.prompt_drop, config.init) == (80, 0.5, "lavie:lavie_base.pt")
    assert config.learning_rate == 3e-4


def test_trained_weights_get_a_smaller_learning_rate_than_random_ones() -> None:
    rates = {init: TrainConfig(dataset="a", output="b", init=init).learning_rate for init in ("none", "builtin:tiny")}
    assert rates["builtin:tiny"] < rates["none"] / 10


@pytest.mark.parametrize("encoders", [None, 1, 2])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("cpus", [2.0, 4.0, 64.0])
def test_workers_of_a_stream_leave_room_for_an_encoder_and_a_decoder(
    cpus: float, workers: int, encoders: int | None
) -> None:
    share, number = data.share_cpus(cpus, workers, encoders)
    assert workers * share + number * flow.ENCODER_CPUS + flow.DECODER_CPUS <= cpus + 1e-6
    assert 0 < share <= 1
    assert number == (encoders or number)
    if cpus == 64:
        assert (share, number >= 60 or encoders is not None) == (1, True)
