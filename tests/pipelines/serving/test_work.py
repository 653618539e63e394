"""The limit of a video's work and the fair turns between keys count the same work, for all kinds of requests."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.animate import videos
from pipelines.serving.dispatch import Turns
from pipelines.serving.settings import ServeSettings
from tests.pipelines.serving.in_process import FAST, Stub, png, serve

CLIP = 96 * 64 * 4 * 2  # pixels x frames x steps


def test_keys_take_turns_by_the_work_that_the_limit_counts(
    tmp_path: Path, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, turn = list[float](), Turns.turn

    def watched(turns: Turns, owner: str, again: bool, work: float, priority: float) -> Any:
        counted.append(work)
        return turn(turns, owner, again, work, priority)

    monkeypatch.setattr(Turns, "turn", watched)
    settings = ServeSettings(model=small, output=str(tmp_path), page=False)
    video = videos.video(np.zeros((8, 96, 64, 3), np.uint8), 12)
    with serve(settings, Stub(settings)) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        for path, files, fields, clips in (
            ("", {"input_reference": png((64, 96))}, {}, 1),
            ("", {"input_reference": png((64, 96))}, {"extend": "2"}, 3),
            ("/edits", {"video": video}, {}, 2),  # inversion takes as many steps again
            ("/extensions", {"video": video}, {}, 1),
            ("/extensions", {"video": video}, {"seconds": "0.5"}, 2),
        ):
            for most, status in ((clips * CLIP - 1, 422), (clips * CLIP, 200)):
                limits = settings.limits.model_copy(update={"max_work": most})
                service.settings = settings.model_copy(update={"limits": limits})
                data = {"prompt": "a cat", "num_frames": "4", **FAST, **fields}
                answer = client.post(f"/v1/videos{path}", data=data, files=files)
                assert answer.status_code == status, (path, fields, answer.text)
            deadline = time.monotonic() + 30
            while not counted and time.monotonic() < deadline:
                time.sleep(0.01)
            assert counted == [clips * CLIP], (path, fields)
            counted.clear()
