"""Arguments of a job: flags over YAML over defaults, nothing from the environment, one sentence for what is wrong."""

import os
from pathlib import Path

import pytest

from pipelines.prepare.config import PrepareConfig
from pipelines.train.config import TrainConfig
from ray_jobs import common
from tests.ray_jobs import jobs

GIVEN = ["--input", "in", "--output", "out"]


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("input: yaml-in\noutput: yaml-out\nclips_per_video: 4\nmax-interval: 9\nembed_text: true\n")
    config, verbose = common.read_arguments(
        PrepareConfig, ["--config", str(file), "--clips-per-video", "2", "--verbose"]
    )
    assert (config.input, config.clips_per_video, config.max_interval, config.embed_text) == ("yaml-in", 2, 9, True)
    assert config.min_interval == 3
    assert verbose


def test_the_environment_changes_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "SEED", "INPUT", "model", "seed"):
        monkeypatch.setenv(name, "7")
    config, _ = common.read_arguments(PrepareConfig, GIVEN)
    assert (config.model, config.seed, config.input) == ("builtin:tiny", 0, "in")


def test_a_preset_gives_defaults_that_flags_win_over() -> None:
    arguments = ["--dataset", "d", "--output", "o", "--preset", "base", "--num-workers", "8", "--zero-stage", "3"]
    config, _ = common.read_arguments(TrainConfig, [*arguments, "--learning-rate", "3e-5"])
    assert (config.total_batch, config.zero_stage, config.learning_rate) == (80, 3, 3e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--input is required; --output is required"),
        ([*GIVEN, "--bogus", "1"], "unrecognized arguments: --bogus 1; see --help"),
        ([*GIVEN, "--seed", "x"], "--seed x: input should be a valid integer"),
        ([*GIVEN, "--clips-per-video", "0"], "--clips-per-video 0: input should be greater than or equal to 1"),
        ([*GIVEN, "--min-interval", "11"], "--min-interval 11 is above --max-interval 10"),
        ([*GIVEN, "--height", "65"], "--height 65: input should be a multiple of 8"),
        ([*GIVEN, "--config", "/nowhere.yaml"], "--config /nowhere.yaml cannot be read"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_flag(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message is what is tested)
        common.read_arguments(PrepareConfig, arguments)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a: [", "cannot be read"), ("- a", "is not a mapping"), ("inputs: x", "--inputs is not a setting of this job")],
)
def test_a_config_file_that_is_none_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        common.read_arguments(PrepareConfig, [*GIVEN, "--config", str(file)])


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("prepare", ["--input", "v", "--model", "v"], "/v has no U-Net (looked for unet"),
        ("train", ["--dataset", "nowhere"], "/nowhere holds no dataset.json"),
        ("animate", ["--catalog", "v", "--prompt", "x", "--model", "v"], "has no U-Net (looked for unet"),
        ("evaluate", ["--dataset", "synthetic:2", "--num-frames", "8"], "num_frames 8 was not trained by this model"),
    ],
)
def test_a_job_that_is_refused_exits_2_with_one_line(
    tmp_path: Path, name: str, arguments: list[str], sentence: str
) -> None:
    """As a process of its own, once a job; each refusal here comes as late as any. jobs.refuse does the others."""
    (tmp_path / "v").mkdir()
    for file in ("a.mp4", "a.png"):
        (tmp_path / "v" / file).touch()
    before = sorted(tmp_path.rglob("*"))
    code, summary, errors = jobs.finish(jobs.start(name, tmp_path, *arguments, "--output", "out"))
    assert (code, summary) == (2, {})
    assert sentence in errors
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert sorted(tmp_path.rglob("*")) == before


def test_a_submitted_job_takes_no_relative_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its working directory is a copy that goes with the job."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}')

    def check(config: PrepareConfig) -> None:
        raise ValueError(f"checked {config.output}")

    for output, said in [("out/ds", "--output out/ds would be in the working directory"), ("/srv/ds", "checked /srv"),
                         ("s3://bucket/ds", "checked s3")]:  # fmt: skip
        monkeypatch.setattr("sys.argv", ["prepare.py", "--input", "in", "--output", output])
        assert common.main(PrepareConfig, check, lambda config: {}, lambda config: 1) == common.BAD_USAGE
        assert said in capsys.readouterr().err


def test_a_token_is_found_where_ray_looks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not common.has_token()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    assert common.has_token()
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / ".ray" / "auth_token"))
    assert common.has_token()


def test_a_user_without_a_home_has_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as of a container's uid that no passwd names
    assert not common.has_token()


def test_a_temporary_folder_is_short_enough_for_sockets_or_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "/tmp/" + "x" * 90
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for given, taken in (("/var/tmp", None), (long, "/tmp")):
        monkeypatch.setenv("TMPDIR", given)
        common.shorten_temporary_folder()
        assert os.environ.get("RAY_TMPDIR") == taken
    monkeypatch.setenv("RAY_TMPDIR", long)
    with pytest.raises(
        ValueError, match=r"too long for Ray's sockets; set RAY_TMPDIR to a folder of at most 3[0-9] char"
    ):
        common.shorten_temporary_folder()
