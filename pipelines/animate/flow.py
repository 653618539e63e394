"""Turn tasks into videos on Ray Data: read and fit images -> animate -> write files -> rows of the listing.

Defines the stages and their resources; rows.py, replica.py and files.py do the work on a row.
"""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cinemo.memory import keep_freed_memory
from pipelines.animate import files, rows
from pipelines.animate.config import AnimateConfig
from pipelines.animate.plan import made_with
from pipelines.animate.records import light, table
from pipelines.core import hashing, models
from pipelines.core.progress import to_stderr
from pipelines.dataset import manifest
from pipelines.dataset.records import iter_rows

if TYPE_CHECKING:  # seconds to import, and `--help` does not need it
    import ray.data

CLAIMED = 8  # rows claimed from the ledger at once
_BLOCK = 1 << 20  # bytes


class Ledger:
    """State shared by the processes of a job: which row makes which video, and processes that died working on it."""

    def __init__(self) -> None:
        self.owners = hashing.Owners()  # id -> key of the row that makes its video
        self.begun: dict[str, int] = {}  # id -> processes that began to work on it and did not finish

    def claim(self, names: list[str], keys: list[str]) -> list[bool]:
        """Whether each row makes its video: of rows with one id, the first that asks, even if it asks again."""
        hashes = zip(hashing.hash64(names), hashing.hash64(keys), strict=True)
        return [self.owners.first(name, key) == key for name, key in hashes]

    def begin(self, names: list[str]) -> list[int]:
        """Record that a process begins to work on these ids; returns how many began before and did not finish."""
        before = [self.begun.get(name, 0) for name in names]
        for name in names:
            self.begun[name] = self.begun.get(name, 0) + 1
        return before

    def end(self, names: list[str]) -> None:
        """Record that a process has finished these ids, with or without a video."""
        for name in names:
            self.begun.pop(name, None)

    def died(self, names: list[str]) -> int:
        """Number of processes that began to work on one of these ids and have not finished."""
        return sum(self.begun.get(name, 0) for name in names)


class RemoteLedger:
    """The job's ledger, called from another process."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def begin(self, names: list[str]) -> list[int]:
        """See Ledger."""
        import ray

        return list(ray.get(self.actor.begin.remote(names)))

    def end(self, names: list[str]) -> None:
        """See Ledger. Does not wait."""
        self.actor.end.remote(names)

    def died(self, names: list[str]) -> int:
        """See Ledger."""
        import ray

        return int(ray.get(self.actor.died.remote(names)))


class Replica:
    """An Animator in a Ray actor, with the job's ledger."""

    def __init__(
        self, config: AnimateConfig, facts: dict[str, Any], ledger: Any, loras: Mapping[str, str] | None = None
    ) -> None:
        from pipelines.animate.replica import Animator

        self.animate = Animator(config, facts, RemoteLedger(ledger), loras)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """See Animator."""
        yield from self.animate(block)


def build(
    config: AnimateConfig,
    model: models.Facts,
    slices: pa.Table,
    done: np.ndarray,
    animator: type | None = None,
    edited: bool = False,
    loras: Mapping[str, str] | None = None,
) -> "ray.data.Dataset":
    """Build the lazy dataflow from slices of OUT/catalog to rows of STATE: finished videos, twins of them, or rejects.

    done: sorted hashes of keys to skip. animator: replaces the class Replica. edited: whether some rows have a source
    video, whose frames travel with them. loras: as in plan.Plan.
    """
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    replicas = most_replicas(config, slices.num_rows)
    bound_memory(config, model, cpus, edited)
    # On the driver's node, whose loss the job does not survive anyway.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ledger = ray.remote(num_cpus=0, scheduling_strategy=here)(Ledger).remote()

    # 1. Slices of the catalog: each a file name and two numbers, however many rows there are.
    tasks = ray.data.from_arrow([slices.slice(i, 1) for i in range(slices.num_rows)])

    # 2. Images and source videos, read and fitted, with content ids; finished rows are skipped here. Little work
    #    compared with the model's, so two processes per replica keep it busy; each has a child process that decodes.
    ready = tasks.map_batches(
        take_slice,
        fn_args=(config, made_with(config, model), ray.put(done), ledger),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=max(2, min(cpus, 2 * replicas))),
        num_cpus=0.3,
    )

    # 3. Frames, from replicas that scale with the work. On CPUs each reserves more than half a core, so that there is
    #    one per core and room for the other stages.
    made = ready.map_batches(
        animator or Replica,
        fn_constructor_args=(config, model_facts(config, model), ledger, loras),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=min(config.min_replicas, replicas), max_size=replicas),
        num_gpus=config.num_gpus,
        num_cpus=1 if config.num_gpus else 0.6,
    )

    # 4. Files; frames are dropped here. Encoding takes a core for a moment.
    return made.map_batches(
        write_block,
        fn_args=(config.output, config.ending),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=max(1, min(cpus, replicas) // 2)),
        num_cpus=0.2,
    )


def model_facts(config: AnimateConfig, model: models.Facts) -> dict[str, Any]:
    """The fields about the model that each sidecar gets."""
    return {
        "model": models.plain(config.model),
        "model_fingerprint": model.fingerprint,
        "model_lineage": model.card.lineage,
        "precision": config.arithmetic,
    }


def most_replicas(config: AnimateConfig, slices: int) -> int:
    """Largest number of replicas: the flag's, else what the cluster has room for now; at most one per slice."""
    import ray

    have = ray.cluster_resources()
    room = have.get("GPU", 0) // config.num_gpus if config.num_gpus else have.get("CPU", 1)
    most = config.max_replicas or max(config.min_replicas, int(room))
    if config.num_gpus and have.get("GPU", 0) < config.num_gpus:
        to_stderr(f"waiting for {config.num_gpus:g} GPUs for a replica; the cluster has {have.get('GPU', 0):g} now")
    return max(1, min(most, slices))


def bound_memory(config: AnimateConfig, model: models.Facts, cpus: int, edited: bool) -> None:
    """Limit the data in flight to some batches, however many rows wait: blocks are a batch or a few rows."""
    import ray.data

    height, width = model.card.size
    pixels = height * width * 3 * np.dtype(np.float32).itemsize
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = False  # a slow row does not hold up others
    frames = model.card.length * height * width * 3 * config.batch_size
    context.target_max_block_size = max(_BLOCK, config.batch_size * pixels + edited * frames)
    room = max(256 << 20, 8 * cpus * max(frames, context.target_max_block_size))
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(object_store_memory=room)


def take_slice(
    slices: pa.Table, config: AnimateConfig, made: dict[str, str], done: Any, ledger: Any
) -> Iterator[pa.Table]:
    """Yield tables of a few rows of the slices: with pixels, finished, twins of other rows, or rejects."""
    import ray

    keep_freed_memory()  # the next row's pixels need as much
    run = rows.in_sandbox(config.image_timeout)
    finished = ray.get(done)
    for part in slices.to_pylist():
        tasks = list(manifest.read_slice(**part))
        fresh = ~hashing.is_among(hashing.hash64(task["key"] for task in tasks), finished)
        left = [task for task, new in zip(tasks, fresh, strict=True) if new]
        for first in range(0, len(left), CLAIMED):
            ready = [rows.prepare(task, made, run) for task in left[first : first + CLAIMED]]
            yield table(claimed(ready, config.output, config.ending, ledger))


def claimed(ready: list[rows.Row], output: str, ending: str, ledger: Any) -> list[rows.Row]:
    """Claim the rows with pixels: those whose video exists become finished, those whose video another makes, twins."""
    import ray

    asking = [row for row in ready if not row["reason"]]
    if not asking:
        return ready
    mine = ray.get(ledger.claim.remote([row["id"] for row in asking], [row["key"] for row in asking]))
    for row, first in zip(asking, mine, strict=True):
        found = files.sidecar(output, row["id"], ending)
        if found is not None:
            row |= {**light(row), "facts": json.dumps(found)}
        elif not first:
            row |= {**light(row), "twin": True}
    return ready


def write_block(block: pa.Table, output: str, ending: str) -> Iterator[pa.Table]:
    """Write the files of rows with frames, and yield rows for the listing; other rows pass through."""
    if block["frames"].null_count == block.num_rows:
        yield block
        return
    for row in iter_rows(block):
        yield table([row if row["frames"] is None else files.write(row, output, ending)])
