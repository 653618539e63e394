"""What every job does: read arguments, connect to Ray, run, print the summary, choose the exit code.

Knows the command line and ray.init. Knows nothing of what a job computes.
"""

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError

DONE, FAILED, BAD_USAGE, TOO_MANY_REJECTS = 0, 1, 2, 3
STOPPED = 130  # by a person or by `ray job stop`, as shells say it
REPOSITORY = Path(__file__).resolve().parent.parent
Config = TypeVar("Config", bound=BaseModel)
Job = TypeVar("Job")


def main(
    model: type[Config],
    resolve: Callable[[Config], Job],
    run: Callable[[Job], dict[str, Any]],
    num_cpus: Callable[[Config], int],
) -> int:
    """The exit code of a job. `resolve` refuses what cannot work (ValueError) before Ray is started; `run` does it.

    num_cpus: logical CPUs that the job needs at once. The last line of stdout is run's summary as one JSON object.
    """
    try:
        config, verbose = read_arguments(model, sys.argv[1:])
        output = getattr(config, "output", "/")
        if submission() is not None and is_relative(output):
            raise ValueError(
                f"--output {output} would be in the working directory of a submitted job, which goes with the job; "
                "give an absolute path or a URI"
            )
        job = resolve(config)
    except ValueError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return BAD_USAGE
    try:
        connect(num_cpus(config), verbose)
        summary = run(job)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED
    except Exception as error:
        if verbose:
            raise
        print(f"{Path(sys.argv[0]).name}: {last_words(error)} (--verbose shows more)", file=sys.stderr)
        return FAILED
    finally:
        disconnect()
    print(json.dumps(summary), flush=True)
    return TOO_MANY_REJECTS if summary.get("too_many_rejects") else DONE


def read_arguments(model: type[Config], arguments: Sequence[str]) -> tuple[Config, bool]:
    """Flags over the YAML file of --config over defaults -> (configuration, verbose).

    Environment variables are not read: OUTPUT or SEED set for something else must not change a job.
    Raises ValueError with one sentence; --help prints and exits.
    """

    class Arguments(model, BaseSettings):  # type: ignore[valid-type, misc]
        __doc__ = model.__doc__
        config: str | None = Field(None, description="YAML file with any of these settings; flags win")
        verbose: bool = Field(False, description="show what Ray and DeepSpeed say, and tracebacks")

    try:
        given = CliSettingsSource(
            Arguments,
            cli_parse_args=list(arguments),
            cli_exit_on_error=False,
            cli_enforce_required=False,
            cli_implicit_flags=True,
            cli_kebab_case=True,
            cli_hide_none_type=True,
        )()
        given = {name.replace("-", "_"): value for name, value in given.items()}
        verbose = given.pop("verbose", False) in (True, "true", "True")
        values = {**read_yaml(given.pop("config", None)), **given}
        return model(**values), verbose
    except SettingsError as error:
        raise ValueError(f"{str(error).removeprefix('error parsing CLI: ')}; see --help") from error
    except ValidationError as error:
        raise ValueError("; ".join(sentence(problem) for problem in error.errors())) from error


def read_yaml(path: str | None) -> dict[str, Any]:
    """Settings of a YAML file, by the names of the flags with - or _. Raises ValueError."""
    if path is None:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} is no mapping; write lines such as `max_steps: 100`")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def sentence(problem: Any) -> str:
    """One problem that pydantic found, in terms of flags."""
    name = "--" + ".".join(str(part) for part in problem["loc"]).replace("_", "-")
    if problem["type"] == "missing":
        return f"{name} is required"
    if problem["type"] == "extra_forbidden":
        return f"{name} is no setting of this job; see --help"
    message = problem["msg"].removeprefix("Value error, ")
    return message if name == "--" else f"{name} {problem['input']}: {message[0].lower()}{message[1:]}"


def connect(num_cpus: int, verbose: bool) -> None:
    """Join the cluster of RAY_ADDRESS (set under `ray job submit`), or start one here for the time of the job."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    # Ray ends workers that were idle for a second, and needs two seconds of a core for the next one.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    if not verbose:
        warnings.filterwarnings("ignore")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    joins = "RAY_ADDRESS" in os.environ
    job = submission()
    if joins and job is None and has_token():
        # Ray's own rule for a cluster that it finds by itself. A submitted job has the cluster's environment already.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "working_dir" not in (job or {}):  # with one, Ray brings the code along itself
        variables["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    import ray

    ray.init(
        address=None if joins else "local",
        # On a small machine stages share cores: with fewer logical CPUs than it needs at once, a job waits for ever.
        num_cpus=None if joins else max(cores(), num_cpus),
        include_dashboard=None if joins else False,
        runtime_env={"env_vars": variables},
        log_to_driver=verbose,
        logging_level=logging.INFO if verbose else logging.ERROR,
    )
    # Ray answers SIGTERM (`ray job stop`) with a dump of its stack and nothing else: what is open would stay open.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL)


def submission() -> dict[str, Any] | None:
    """The runtime environment that `ray job submit` gave this job, such as its working_dir; None for any other job."""
    given = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    return None if given is None else json.loads(given).get("runtime_env") or {}


def is_relative(place: str) -> bool:
    """Whether a place is a path that depends on the working directory."""
    return "://" not in place and not os.path.isabs(os.path.expanduser(place))


def has_token() -> bool:
    """Whether there is a token for Ray where Ray looks for one: a cluster of this user's asks for it, then."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(given) or (Path.home() / ".ray" / "auth_token").is_file()


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def disconnect() -> None:
    """Leave the cluster; one that was started here stops."""
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()


def last_words(error: BaseException) -> str:
    """What a worker raised, as one line, without the layers that Ray wraps around it."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else getattr(error, "cause", None)
    if isinstance(inner, BaseException) and inner is not error:
        return last_words(inner)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
