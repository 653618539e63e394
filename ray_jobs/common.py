"""The main function of all jobs: read arguments, connect to Ray, run, print the summary, choose the exit code."""

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

from cinemo.errors import redact
from cinemo.machine import cores, settle_environment
from pipelines.core import patience
from pipelines.core.patience import StorageError

DONE, FAILED, BAD_USAGE, TOO_MANY_REJECTS = 0, 1, 2, 3
SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"  # the longest path that Ray binds
MOST_SOCKET = 107 if sys.platform == "linux" else 103  # bytes of the path of a socket
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
    """Run a job; returns its exit code. `resolve` checks the configuration (ValueError) before Ray is started.

    num_cpus: logical CPUs that the job needs at once. The last line of stdout is run's summary as one JSON object.
    """
    settle_environment()
    os.environ.setdefault(patience.VARIABLE, str(patience.JOB_PATIENCE_S))
    try:
        config, verbose = read_arguments(model, sys.argv[1:])
        output = getattr(config, "output", "/")
        if submission() is not None and is_relative(output):
            raise ValueError(
                f"--output {output} would be in the working directory of a submitted job, which is deleted with the "
                "job; give an absolute path or a URI"
            )
        job = resolve(config)
    except ValueError as error:
        print(f"{Path(sys.argv[0]).name}: {redact(str(error))}", file=sys.stderr)
        return BAD_USAGE
    except StorageError as error:
        print(f"{Path(sys.argv[0]).name}: {last_words(error)}", file=sys.stderr)
        return FAILED
    try:
        connect(num_cpus(config), verbose)
        summary = run(job)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: stopped; the same command continues from here", file=sys.stderr)
        return STOPPED
    except Exception as error:
        if verbose:
            raise
        print(f"{Path(sys.argv[0]).name}: {last_words(error)} (--verbose shows more)", file=sys.stderr)
        return FAILED
    finally:
        disconnect()
    print(redact(json.dumps(summary)), flush=True)
    return TOO_MANY_REJECTS if summary.get("too_many_rejects") else DONE


def read_arguments(model: type[Config], arguments: Sequence[str]) -> tuple[Config, bool]:
    """Read (configuration, verbose): flags override the YAML file of --config, which overrides defaults.

    Environment variables are not read: an OUTPUT or SEED set for something else must not change a job.
    Raises ValueError with one sentence; --help prints and exits.
    """

    class Arguments(model, BaseSettings):  # type: ignore[valid-type, misc]
        __doc__ = model.__doc__
        config: str | None = Field(None, description="YAML file with any of these settings; flags win")
        verbose: bool = Field(False, description="show messages of Ray and DeepSpeed, and tracebacks")

    try:
        flags = CliSettingsSource(
            Arguments,
            cli_parse_args=list(arguments),
            cli_exit_on_error=False,
            cli_enforce_required=False,
            cli_implicit_flags=True,
            cli_kebab_case=True,
            cli_hide_none_type=True,
        )()
        flags = {name.replace("-", "_"): value for name, value in flags.items()}
        verbose = flags.pop("verbose", False) in (True, "true", "True")
        values = {**read_yaml(flags.pop("config", None)), **flags}
        return model(**values), verbose
    except SettingsError as error:
        raise ValueError(f"{str(error).removeprefix('error parsing CLI: ')}; see --help") from error
    except ValidationError as error:
        raise ValueError("; ".join(sentence(problem) for problem in error.errors())) from error


def read_yaml(path: str | None) -> dict[str, Any]:
    """Read settings from a YAML file, named like the flags, with - or _. Raises ValueError."""
    if path is None:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} is not a mapping; write lines such as `max_steps: 100`")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def sentence(problem: Any) -> str:
    """Describe one of pydantic's problems in terms of flags."""
    name = "--" + ".".join(str(part) for part in problem["loc"]).replace("_", "-")
    if problem["type"] == "missing":
        return f"{name} is required"
    if problem["type"] == "extra_forbidden":
        return f"{name} is not a setting of this job; see --help"
    message = problem["msg"].removeprefix("Value error, ")
    return message if name == "--" else f"{name} {problem['input']}: {message[0].lower()}{message[1:]}"


def connect(num_cpus: int, verbose: bool) -> None:
    """Join the cluster at RAY_ADDRESS (set by `ray job submit`), or start a local one for the duration of the job."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "2")  # clouds give half a minute's notice
    # By default Ray ends workers after a second of idling, and starting one takes two seconds of a core.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
    if not verbose:
        warnings.filterwarnings("ignore")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    given = (patience.VARIABLE, "CINEMO_PRIVATE_HOSTS")  # also for workers on other nodes
    variables |= {name: os.environ[name] for name in given if name in os.environ}
    joins = "RAY_ADDRESS" in os.environ
    job = submission()
    if joins and job is None and has_token():
        # Ray does this itself for a local cluster that it finds. A submitted job has the cluster's environment already.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "working_dir" not in (job or {}):  # with one, Ray brings the code along itself
        variables["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    if not joins:
        shorten_temporary_folder()
    import ray

    ray.init(
        address=None if joins else "local",
        # On a small machine stages share cores: with fewer logical CPUs than it needs at once, a job would never start.
        num_cpus=None if joins else max(cores(), num_cpus),
        include_dashboard=None if joins else False,
        runtime_env={"env_vars": variables},
        log_to_driver=verbose,
        logging_level=logging.INFO if verbose else logging.ERROR,
    )
    # Ray's handler of SIGTERM (`ray job stop`) only dumps the stack; KeyboardInterrupt closes what is open.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL)


def submission() -> dict[str, Any] | None:
    """Runtime environment of a job started by `ray job submit`, such as its working_dir; None for any other job."""
    config = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    return None if config is None else json.loads(config).get("runtime_env") or {}


def is_relative(place: str) -> bool:
    """Whether a place is a path that depends on the working directory."""
    return "://" not in place and not os.path.isabs(os.path.expanduser(place))


def has_token() -> bool:
    """Whether there is a token for Ray where Ray looks for one: a cluster of this user's asks for it, then."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(given) or os.path.isfile(os.path.expanduser("~/.ray/auth_token"))  # a user may have no home


def shorten_temporary_folder() -> None:
    """Have Ray use /tmp where TMPDIR is too long for its sockets. Raises ValueError where that is no way out."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(os.path.join(folder, SOCKET))) <= MOST_SOCKET:
        return
    if os.environ.get("RAY_TMPDIR") or not os.access("/tmp", os.W_OK | os.X_OK):
        most = MOST_SOCKET - len(SOCKET) - 1
        raise ValueError(
            f"{folder} is too long for Ray's sockets; set RAY_TMPDIR to a folder of at most {most} characters"
        )
    os.environ["RAY_TMPDIR"] = "/tmp"


def disconnect() -> None:
    """Leave the cluster; a local one stops."""
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()


def last_words(error: BaseException) -> str:
    """One line for the error that a worker raised, without the layers that Ray wraps around it."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else getattr(error, "cause", None)
    if isinstance(inner, BaseException) and inner is not error:
        return last_words(inner)
    message = str(error).partition("\nFailed to apply UDF transform after")[0]  # Ray Data adds the rest
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return redact(f"{type(error).__name__}: {lines[-1] if lines else 'no message'}")
