"""Fair turns: an owner's thousand jobs delay another's single job by two jobs at most, and every slot is used."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from pipelines.serving.dispatch import Dispatcher
from pipelines.serving.jobs.turns import Turns
from pipelines.serving.settings import Replicas, ServeSettings
from pipelines.serving.store import Store
from tests.pipelines.serving.test_dispatch import job


def test_nineteen_owners_wait_two_jobs_at_most_while_another_has_many(tmp_path: Path) -> None:
    """Each of the nineteen sends its job at another moment, after so many of the first owner's."""
    settings = ServeSettings(output=str(tmp_path), store=f"sqlite:///{tmp_path}/jobs.db")
    store, begun, sent_at = Store(settings.store_url), list[str](), dict[str, int]()
    one = asyncio.Lock()  # a replica, which makes one video at a time, in the order in which it gets them

    async def animate(job_id: str, shape: str) -> dict[str, Any]:
        async with one:
            owner = owners[job_id]
            begun.append(owner)
            found = store.claim(job_id, "r", 60, alone=True)
            assert found is not None
            await asyncio.sleep(0)
            store.complete(job_id, 1, {}, settings.ttl_s)
            return {}

    of = Dispatcher(settings, store, {"builtin:tiny": animate})
    owners: dict[str, str] = {}

    def send(number: int, owner: str) -> None:
        new = job(f"{number:04d}", of.name)
        new = type(new)(**{**vars(new), "owner": owner})
        owners[new.id] = owner
        store.create(new, b"image", 1000, 1000)
        sent_at[owner] = len(begun)
        of.submit(new)

    async def both() -> None:
        for number in range(70):
            send(number, "many")
        for number in range(19):
            while len(begun) < 3 * number + 5:
                await asyncio.sleep(0)
            send(1000 + number, f"single-{number}")
        while of.tasks:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(both(), 60))
    waits = [begun.index(f"single-{number}") - sent_at[f"single-{number}"] for number in range(19)]
    assert max(waits) <= 2, waits
    assert Counter(begun)["many"] == 70


def test_owners_take_turns_and_every_slot_is_used_until_nothing_waits() -> None:
    async def see() -> None:
        turns, order, running = Turns(3), list[str](), list[int]()

        async def work(owner: str, again: bool = False) -> None:
            async with turns.turn(owner, again):
                order.append(owner)
                running.append(turns.sent.total())
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(work(owner)) for owner in "aaaaaaaaabbbc"]
        gone = asyncio.create_task(work("d"))
        await asyncio.sleep(0)
        gone.cancel()  # while it waits
        await asyncio.gather(*tasks, gone, return_exceptions=True)
        assert Counter(order) == {"a": 9, "b": 3, "c": 1}
        assert "".join(order[3:9]).count("b") == 3  # in turn, though all of a's came first
        assert max(running) == 3
        assert (turns.sent.total(), turns.waiting, turns.starts) == (0, {}, {})

        one = Turns(1)

        async def log(name: str, again: bool) -> None:
            async with one.turn("a", again):
                order.append(name)

        order.clear()
        async with one.turn("a"):
            waiting = [asyncio.create_task(log("first", False)), asyncio.create_task(log("sent again", True))]
            await asyncio.sleep(0)
            assert order == []
        await asyncio.gather(*waiting)
        assert order == ["sent again", "first"]

    asyncio.run(asyncio.wait_for(see(), 20))


def test_owners_share_by_priority_and_work_and_none_waits_for_ever() -> None:
    async def see() -> None:
        turns, order = Turns(1), list[str]()

        async def work(owner: str, amount: float, priority: float) -> None:
            async with turns.turn(owner, False, amount, priority):
                order.append(owner)
                await asyncio.sleep(0)

        async with turns.turn("first", work=0):
            tasks = [asyncio.create_task(work("low", 1, 1)) for _ in range(20)]
            tasks += [asyncio.create_task(work("high", 1, 4)) for _ in range(80)]
            tasks += [asyncio.create_task(work("long", 10, 1)) for _ in range(2)]
            await asyncio.sleep(0)
        while len(order) < 50:
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(work("single", 5, 1)))
        await asyncio.gather(*tasks)
        assert order[0] == "high"
        assert Counter(order[:50]) == {"high": 39, "low": 10, "long": 1}
        assert "single" in order[50:53]
        assert 50 < len(order) - order[::-1].index("long") < 60  # its second, after ten of low
        assert turns.starts == {}

    asyncio.run(asyncio.wait_for(see(), 20))


def test_several_ingresses_share_the_slots_by_their_jobs_and_each_has_one() -> None:
    async def see() -> None:
        turns, sent = Turns(8), list[int]()
        turns.others = 24  # of another ingress

        async def work() -> None:
            async with turns.turn("a"):
                sent.append(turns.sent.total())
                await asyncio.sleep(0)

        await asyncio.gather(*(work() for _ in range(8)))
        assert max(sent) == 2
        turns.others = 10**6
        await work()

    asyncio.run(asyncio.wait_for(see(), 20))


def test_slots_suffice_to_start_all_replicas_and_to_keep_them_busy(tmp_path: Path) -> None:
    assert Replicas().slots == 2
    assert Replicas(max_replicas=4, target_requests=3).slots == 12
    assert Replicas(max_replicas=2, num_gpus=1).slots == 16
    store = Store(ServeSettings(output=str(tmp_path)).store_url)
    for number, owner in enumerate(["me", "another", "another"]):
        store.create(job(f"{number}", owner), b"image", 9, 9)
    assert store.count_of_others("me") == {"builtin:tiny": 2}
