"""What tests share: golden numbers of the official code, and small real video files."""

import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import promises

os.environ.setdefault("CINEMO_STORAGE_PATIENCE_S", "0")  # a job's main function sets it for the whole process
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads than free cores spin instead of working
GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--moments", type=int, metavar="SEED", help="repeat the random moments of a test that failed")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest (docs/testing.md), so that two workers end at about the same time."""
    known, of_file = promises.seconds(), Counter[str]()
    for test in {promises.row_of(item.nodeid.partition("[")[0], known) for item in items}:
        of_file[test.partition("::")[0]] += known.get(test, 0)
    items.sort(key=lambda item: -of_file[item.nodeid.partition("::")[0]])


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> random.Random:
    """Random moments at which a test kills something: others in every run, and repeatable by the printed seed."""
    seed = request.config.getoption("--moments")
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    print(f"kills at random moments; --moments {seed} repeats them")  # pytest shows it when the test fails
    return random.Random(seed)


@pytest.fixture(scope="session")
def golden() -> Any:
    """golden("sampling") -> the arrays of golden/sampling.npz."""
    return lambda name: dict(np.load(GOLDEN / f"{name}.npz"))


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """A small model directory in the official layout."""
    return GOLDEN / "checkpoint"


@pytest.fixture
def of_residuals(checkpoint: Path, tmp_path: Path) -> Path:
    """The same, with a card and a scheduler that say that it predicts the residuals themselves."""
    from cinemo.checkpoint import ModelCard, load_scheduler, write_card

    model = tmp_path / "of_residuals"
    shutil.copytree(checkpoint, model)
    load_scheduler(checkpoint, "sample").save_pretrained(model / "scheduler")
    write_card(model, ModelCard())
    return model


@pytest.fixture(scope="session")
def moving_frames() -> np.ndarray:
    """uint8 (60, 72, 96, 3): a photo that slides two pixels a frame; frame k shows columns from 2 k on."""
    from skimage.data import astronaut

    photo = astronaut()[100:172]
    return np.stack([photo[:, 2 * k : 2 * k + 96] for k in range(60)])


@pytest.fixture(scope="session")
def moving_video(moving_frames: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cinemo.video import write_video

    path = tmp_path_factory.mktemp("video") / "moving.mp4"
    write_video(path, moving_frames, fps=24)
    return path


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """The folder of real clips beside the repository, for tests that want other people's encoders."""
    folder = Path(__file__).parents[1].parent / "shared" / "clips"
    if not folder.is_dir():
        pytest.skip("no ../shared/clips beside the repository: real clips are not part of it")
    return folder
