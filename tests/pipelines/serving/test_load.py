"""Many jobs on real Ray Serve: none is lost, whatever is killed; and more than there is room for does no harm."""

import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipelines.serving.settings import Limits, Replicas, ServeSettings
from pipelines.serving.store import Store
from tests.pipelines.serving.conftest import Postgres, png
from tests.pipelines.serving.service import deployed, processes, send, wait

pytestmark = [pytest.mark.ray, pytest.mark.long]

SMALL = {"size": "64x64", "num_frames": "4", "num_inference_steps": "8"}


def settings(checkpoint: Path, output: Path, **more: Any) -> ServeSettings:
    """Two replicas of a model so small that a video takes a moment."""
    replicas = Replicas(num_cpus=0.5, min_replicas=2, max_replicas=2, drain_s=1)
    return ServeSettings(models={"small": str(checkpoint)}, output=str(output), replicas=replicas, page=False, **more)


def test_two_hundred_jobs_outlive_random_kills_of_replicas_ingress_proxy_and_database(
    ray_cluster: None, checkpoint: Path, tmp_path: Path, postgres: Postgres
) -> None:
    given = settings(checkpoint, tmp_path, store=postgres.new_database(), ingress_replicas=2, lease_s=4)
    given = given.model_copy(update={"limits": Limits(max_queue=40)})
    chance, over, killed = random.Random(0), threading.Event(), Counter[str]()
    victims = chance.sample(["animator", "ingress", "ProxyActor", "database"], 4) * 2

    def kill() -> None:
        for name in victims:
            if over.wait(chance.uniform(2, 8)):
                return
            killed[name] += 1
            if name == "database":
                postgres.kill()
                over.wait(chance.uniform(0, 2))
                postgres.start()
            elif found := processes(name if name == "ProxyActor" else f"ServeReplica:cinemo:{name}"):
                chance.choice(found).send_signal(signal.SIGKILL)

    with deployed(given) as client:
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            with ThreadPoolExecutor(4) as senders:
                ids = list(senders.map(lambda seed: send(client, seed=str(seed), **SMALL), range(200)))
            ended = wait(client, *ids, seconds=400)
        finally:
            over.set()
            killer.join()
    assert len(set(ids)) == 200
    assert Counter(video["status"] for video in ended) == {"completed": 200}
    assert sorted(video["seed"] for video in ended) == list(range(200))
    assert Store(given.store_url).counts() == {"completed": 200}  # and none that nobody sent
    assert set(killed) == set(victims)
    videos = [path.name.rpartition("-")[0] for path in (tmp_path / "videos").glob("*.mp4")]
    assert set(videos) == set(ids)


def test_a_minute_of_ten_times_too_many_requests_is_answered_and_changes_nothing_for_the_first(
    ray_cluster: None, checkpoint: Path, tmp_path: Path
) -> None:
    given = settings(checkpoint, tmp_path, limits=Limits(max_queue=20))
    with deployed(given) as client:

        def seconds(**fields: str) -> float:
            began = time.monotonic()
            (video,) = wait(client, send(client, **(SMALL | fields)))
            assert video["status"] == "completed"
            return time.monotonic() - began

        seconds()
        capacity = 2 / min(seconds() for _ in range(3))  # two replicas
        alone = min(seconds(num_inference_steps="50") for _ in range(2))
        answers: Counter[int] = Counter()
        late: list[str] = []
        sizes: list[int] = []
        began, period = time.monotonic(), 1 / (10 * capacity)
        first = ThreadPoolExecutor(1).submit(seconds, num_inference_steps="50")
        time.sleep(0.2)

        def request(number: int) -> None:
            time.sleep(max(0.0, began + number * period - time.monotonic()))
            answer = client.post("/v1/videos", data={"prompt": "", **SMALL}, files={"input_reference": png()})
            answers[answer.status_code] += 1
            if answer.status_code == 429 and not 1 <= int(answer.headers["retry-after"]) <= 600:
                late.append(answer.headers["retry-after"])

        with ThreadPoolExecutor(16) as clients:
            sent = [clients.submit(request, number) for number in range(int(60 / period))]
            while not all(one.done() for one in sent):
                sizes.append(sum(one.memory_info().rss for one in processes("ServeReplica:cinemo:")))
                time.sleep(0.5)
        for one in sent:
            one.result()
        lasted = time.monotonic() - began
        first_took = first.result()
        outcomes = Store(given.store_url).counts()
    print(f"{capacity:.1f} videos/s; {sum(answers.values())} requests in {lasted:.0f} s: {dict(answers)}; {outcomes}")
    print(f"the first video: {alone:.1f} s alone, {first_took:.1f} s under load")
    print(f"memory: {[size >> 20 for size in sizes[:: max(1, len(sizes) // 12)]]} MiB")
    assert set(answers) == {200, 429}
    assert not late
    assert sum(answers.values()) / lasted >= 8 * capacity
    third = len(sizes) // 3
    assert max(sizes[-third:]) <= 1.05 * max(sizes[:third])
