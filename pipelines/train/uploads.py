"""Checkpoints uploaded by a thread while the next steps are taken.

A step waits only until each worker has written its shard to its local disk, and, where an upload takes longer than the
steps between two checkpoints, until the upload before has ended. Ray Train lists a checkpoint once the uploads of all
workers have ended, and resumes from one that is listed, never from an incomplete one.
"""

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray.train
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode

from cinemo.errors import first_line
from pipelines.core.patience import StorageError, retried


class Uploads:
    """The checkpoints that this worker has written to its local disk and uploads, one at a time."""

    def __init__(self, output: str) -> None:
        """output: of the run. Deletes what a killed worker of the run has left on this node."""
        self.output = output
        self.prefix = f"cinemo-checkpoint-{hashlib.sha256(output.encode()).hexdigest()[:16]}-"
        if ray.train.get_context().get_local_rank() == 0:
            for left in Path(tempfile.gettempdir()).glob(f"{self.prefix}*"):
                shutil.rmtree(left, ignore_errors=True)
        self.idle = threading.Semaphore()

    def folder(self) -> str:
        """Make a local folder for a checkpoint; first waits until the one before is uploaded."""
        self.idle.acquire()
        return tempfile.mkdtemp(prefix=self.prefix)

    def start(self, folder: str, progress: dict[str, Any], before: Callable[[], object] | None = None) -> None:
        """Upload a folder as this worker's part of a checkpoint; every worker calls it. Ray deletes the folder then.

        progress: with the number of steps. before: called first, in the same thread. An error ends the worker.
        """
        store = ray.train.get_context().get_storage()

        def upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            try:
                if before is not None:
                    before()
                uploaded = retried(self.output, store.persist_current_checkpoint, checkpoint, name)
            except StorageError:
                raise
            except (OSError, RuntimeError) as error:
                raise not_written(progress["steps"], error) from error
            # Not after an error: Ray calls this again after some of them, and ends the worker after the last.
            self.idle.release()
            return uploaded

        ray.train.report(
            progress,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step_{progress['steps']:07d}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )

    @staticmethod
    def last() -> ray.train.Checkpoint:
        """Wait until the last checkpoint of all workers is uploaded; returns it."""
        reported = ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        return reported[-1].checkpoint


@contextmanager
def local_copy(checkpoint: ray.train.Checkpoint, output: str) -> Iterator[str]:
    """Folder of a checkpoint on this node, downloaded if the output is remote; retried while the storage fails."""
    with ExitStack() as stack:
        yield retried(output, lambda: stack.enter_context(checkpoint.as_directory()))


def not_written(steps: int, error: Exception) -> OSError:
    """Make the error of a checkpoint that cannot be written, with the remedy."""
    last_line = str(error).strip().split("\n")[-1] or first_line(error)
    return OSError(
        f"the checkpoint of step {steps} cannot be written ({last_line}); the one before it is kept: "
        "make room, and give the same command again"
    )
