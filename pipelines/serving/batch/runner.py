"""Works on batches: sends their lines as requests, a limited number at a time, and writes the output.

Everything that it knows is in the database: when this process dies, another one continues, and makes no video twice.
"""

import asyncio
import hashlib
import io
import json
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.serving import schema
from pipelines.serving.batch.batches import Batch, Batches, Counts, Line
from pipelines.serving.batch.files import THREADS, Files, in_thread, place_of
from pipelines.serving.http import errors
from pipelines.serving.http.errors import ApiError
from pipelines.serving.jobs.job import Job
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Store
from pipelines.sources import places

logger = logging.getLogger("ray.serve")

POLL_S = 1.0  # seconds between two looks at the jobs of a batch
SWEEP_EVERY_S = 60.0  # seconds between two deletions of what has expired
WINDOW = 100  # most open jobs of a batch; fewer if the owner's batches together had more than half of what it may have
MAX_STEP_S = 3600.0  # seconds; a read or write that takes longer counts as hanging, and loses its batch
MOST_PROBLEMS = 10  # most problems that are reported of an invalid file
AGAIN = (429, 503)  # status codes after which a line is sent again later
AWAY = ("image_away", "decoder_away")  # codes after which, as after status 500, a line is sent again
PATIENCE_S = 300.0  # seconds of such refusals without an accepted line, after which they are final

Send = Callable[[Mapping[str, Any], str, str], Awaitable[Job]]  # (fields, owner, idempotency key) -> its job


class Runner:
    """Works on the batches that this process has taken. Use it in one event loop."""

    def __init__(
        self, settings: ServeSettings, store: Store, files: Files, batches: Batches, name: str, send: Send,
        max_open: Callable[[str], int],
    ) -> None:  # fmt: skip
        """name: of this process. max_open: limit of an owner's open jobs."""
        self.settings, self.store, self.files, self.batches = settings, store, files, batches
        self.name, self.send, self.max_open = name, send, max_open
        self.threads = ThreadPoolExecutor(THREADS, "batches")
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.owners: Counter[str] = Counter()  # their batches on which this process works

    async def run(self) -> None:
        """Take batches and work on them; ends when it is cancelled."""
        swept = float("-inf")
        try:
            while True:
                try:
                    for batch, owner in await asyncio.to_thread(self.batches.take, self.name, self.settings.lease_s):
                        self._begin(batch, owner)
                    if time.monotonic() > swept + SWEEP_EVERY_S:
                        await asyncio.to_thread(self.files.delete_expired)
                        await asyncio.to_thread(self.batches.delete_expired)
                        swept = time.monotonic()
                except Exception:
                    logger.exception("batches wait for the database or the storage")
                await asyncio.sleep(POLL_S)
        finally:
            for task in self.tasks.values():
                task.cancel()
            self.threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, batch: Batch, owner: str) -> None:
        if batch.id not in self.tasks:
            task = asyncio.create_task(Run(self, batch, owner).work())
            self.tasks[batch.id] = task
            self.owners[owner] += 1
            task.add_done_callback(lambda _: self._end(batch.id, owner))

    def _end(self, batch_id: str, owner: str) -> None:
        self.tasks.pop(batch_id, None)
        self.owners[owner] -= 1


class Run:
    """The work of this process on one batch."""

    def __init__(self, runner: Runner, batch: Batch, owner: str) -> None:
        self.runner, self.batch, self.owner = runner, batch, owner
        self.uri = place_of(runner.settings, batch.input_file_id)
        self.spans: list[tuple[int, int]] = []  # of the lines in the file: offset, bytes
        self.open: dict[str, Line] = {}  # by job
        self.unsent: list[int] = []  # numbers of lines, the next one last
        self.away_since: float | None = None  # time of the first refusal of AWAY since a line was taken
        self.completed = self.failed = 0
        self.renewed = time.monotonic()  # time of the last renewal by the work itself, between two reads or writes

    async def work(self) -> None:
        """Work until the batch has ended, or is another process's."""
        keeping = asyncio.create_task(self._keep())
        try:
            await self._work()
        finally:
            keeping.cancel()

    async def _keep(self) -> None:
        """Renew the lease during long reads and writes, until one has taken MAX_STEP_S."""
        lease_s = self.runner.settings.lease_s
        while time.monotonic() < self.renewed + MAX_STEP_S:
            await asyncio.sleep(lease_s / 3)
            try:
                await asyncio.to_thread(self.runner.batches.renew_lease, self.batch.id, self.runner.name, lease_s)
            except Exception as error:  # the work itself fails, too, or finds that another process has the batch
                logger.warning("the lease of a batch was not renewed: %s", error, extra={"batch": self.batch.id})

    async def _work(self) -> None:
        try:
            limits, is_cancelled = self.runner.settings.limits, self.batch.status == "cancelling"
            if is_cancelled:  # before the file is read, because the storage may be away
                await asyncio.to_thread(self._load)
                await asyncio.to_thread(self._fail_open_jobs)
            self.spans, problems = await in_thread(
                self.runner.threads, read_spans, self.uri, limits.max_lines, limits.max_bytes
            )
            waits = time.time() < self.batch.expires_at
            if waits and problems and problems[0]["code"] == "file_not_found" and await self._is_file_known():
                raise FileNotFoundError(f"{self.uri}: the storage is away")
            if problems:
                end = "cancelled" if is_cancelled else "failed"
                await asyncio.to_thread(self._finish, end, errors=json.dumps(problems))
                return
            await asyncio.to_thread(self._load)
            while (status := await asyncio.to_thread(self._renew)) == "in_progress":
                await self._send()
                await asyncio.sleep(POLL_S)
                await asyncio.to_thread(self._collect)
                if not self.unsent and not self.open:
                    await in_thread(self.runner.threads, self._write, "completed")
                    return
            if status == "cancelling":
                await in_thread(self.runner.threads, self._cancel)
        except Exception:  # of the database or the storage: when the lease has expired, it goes on
            logger.exception("a batch waits", extra={"batch": self.batch.id})

    async def _is_file_known(self) -> bool:
        return await asyncio.to_thread(self.runner.files.exists, self.batch.input_file_id)

    def _load(self) -> None:
        """Find out what an earlier process has done."""
        known = self.runner.batches.lines(self.batch.id)
        self.open = {line.job: line for line in known if line.job and line.outcome is None}
        ended = [line for line in known if line.outcome is not None]
        self.completed, self.failed = sum(line.ok for line in ended), sum(not line.ok for line in ended)
        self.unsent = sorted(set(range(len(self.spans))) - {line.number for line in known}, reverse=True)

    def _renew(self) -> str | None:
        self.renewed = time.monotonic()
        counts = Counts(total=len(self.spans), completed=self.completed, failed=self.failed)
        return self.runner.batches.renew(self.batch.id, self.runner.name, self.runner.settings.lease_s, counts)

    async def _send(self) -> None:
        """Send lines while there is room."""
        share = self.runner.max_open(self.owner) // 2 // self.runner.owners[self.owner]
        room = max(1, min(WINDOW, share)) - len(self.open)
        until = time.monotonic() + self.runner.settings.lease_s / 3  # then look for ended jobs and a cancellation
        while self.unsent and room > 0 and time.monotonic() < until:
            number = self.unsent[-1]
            line = await asyncio.to_thread(read_line, self.uri, *self.spans[number])
            try:
                job = await self.runner.send(line["body"], self.owner, f"{self.batch.id} {number}")
                self.open[job.id] = sent = Line(number, job.id, None, 0)
                room, self.away_since = room - 1, None
            except Exception as error:
                refusal = errors.from_exception(error)
                if refusal.status in AGAIN:
                    return
                if self._may_be_back(refusal):
                    self.unsent.insert(0, self.unsent.pop())  # the others first
                    return
                sent = Line(number, None, outcome(self.batch, number, line["custom_id"], refusal), 0)
                self.failed += 1
            self.unsent.pop()
            await asyncio.to_thread(self.runner.batches.record, self.batch.id, sent)

    def _may_be_back(self, refusal: ApiError) -> bool:
        """Whether a line is to be sent again: a host or a decoder is away, or a 500, for less than PATIENCE_S."""
        if refusal.status != 500 and refusal.code not in AWAY:
            return False
        self.away_since = self.away_since or time.monotonic()
        return time.monotonic() < self.away_since + PATIENCE_S

    def _collect(self) -> None:
        """Record the jobs that have ended."""
        found = {job.id: job for job in self.runner.store.get_all(list(self.open))}
        for job_id, line in list(self.open.items()):
            job = found.get(job_id)
            if job is not None and job.is_open:
                continue
            custom_id = read_line(self.uri, *self.spans[line.number])["custom_id"]
            ok = job is not None and job.status == "completed"
            ended = line._replace(outcome=outcome(self.batch, line.number, custom_id, job), ok=int(ok))
            self.runner.batches.record(self.batch.id, ended)
            self.completed, self.failed = self.completed + ok, self.failed + (not ok)
            del self.open[job_id]

    def _fail_open_jobs(self) -> None:
        for job_id in self.open:
            message, ttl_s = "the batch was cancelled", self.runner.settings.ttl_s
            self.runner.store.fail(job_id, None, "cancelled", message, ttl_s)

    def _cancel(self) -> None:
        self._fail_open_jobs()
        self._collect()
        self._write("cancelled")

    def _write(self, status: str) -> None:
        """Write the output and the errors, and end the batch."""
        written = dict[str, str]()
        for column, ok, expected in (("output_file_id", 1, self.completed), ("error_file_id", 0, self.failed)):
            with tempfile.TemporaryFile() as file:  # the results of 50,000 lines would take much memory
                count = 0
                for line in self.runner.batches.outcomes(self.batch.id, ok):
                    count += file.write(line.encode() + b"\n") > 0
                if count != expected:  # another process has ended the batch meanwhile, and deleted its lines
                    raise RuntimeError(f"{count} outcomes of {expected} are in the database")
                if file.tell():
                    file_id = f"file_{hashlib.sha256(f'{self.batch.id} {column}'.encode()).hexdigest()[:32]}"
                    name = f"{self.batch.id}-{column.partition('_')[0]}.jsonl"
                    self.runner.files.add(file_id, self.owner, name, "batch_output", file)
                    written[column] = file_id
        self._finish(status, **written, total=len(self.spans), completed=self.completed, failed=self.failed)

    def _finish(self, status: str, **values: Any) -> None:
        self.runner.batches.finish(self.batch.id, self.runner.name, status, **values)
        logger.info("batch %s", status, extra={"batch": self.batch.id, "key": self.owner})


def outcome(batch: Batch, number: int, custom_id: str, result: Job | ApiError | None) -> str:
    """A line of the output. result: job that has ended, or None if it was deleted, or why the request was refused."""
    line: dict[str, Any] = {"id": f"{batch.id}-{number}", "custom_id": custom_id, "response": None, "error": None}
    if isinstance(result, ApiError):
        body = {"error": errors.detail(result)}
        line["response"] = {"status_code": result.status, "request_id": line["id"], "body": body}
    elif result is None:
        line["error"] = {"code": "video_gone", "message": "the video was deleted or has expired"}
    elif result.error is not None:
        line["error"] = {**result.error, "video": result.id}
    else:
        line["response"] = {"status_code": 200, "request_id": result.id, "body": schema.to_video(result).model_dump()}
    return json.dumps(line)


def read_line(uri: str, offset: int, size: int) -> Any:
    """Read a line of a file of requests."""
    with places.open_binary(uri) as file:
        file.seek(offset)
        return json.loads(file.read(size))


def read_spans(uri: str, most: int, longest: int) -> tuple[list[tuple[int, int]], list[dict[str, Any]]]:
    """Read a file of at most `most` requests: ((offset, bytes) of each line, problems in OpenAI's shape).

    longest: bytes of a line. Parsing JSON takes many times its bytes of memory.
    """
    spans, problems, names, offset = list[tuple[int, int]](), list[dict[str, Any]](), set[str](), 0
    try:
        # Buffered, because fsspec's readline takes no size.
        with places.open_binary(uri) as file, io.BufferedReader(file) as buffered:  # type: ignore[type-var]
            for number, line in enumerate(iter(lambda: buffered.readline(longest + 1), b""), 1):
                if (is_long := len(line) > longest) or line.strip():
                    spans.append((offset, len(line)))
                    if problem := f"the line has more than {longest:,} bytes" if is_long else problem_of(line, names):
                        problems.append({"code": "invalid_request", "line": number, "message": problem, "param": None})
                offset += len(line)
                if is_long or len(problems) == MOST_PROBLEMS or len(spans) > most:
                    break
    except FileNotFoundError:
        problems.append({"code": "file_not_found", "line": None, "message": "the file was deleted", "param": None})
    if len(spans) > most or not (spans or problems):
        message = f"the file has more than {most} requests; split it" if spans else "the file has no requests"
        problems.append({"code": "invalid_request", "line": None, "message": message, "param": None})
    return spans, problems


def problem_of(line: bytes, names: set[str]) -> str | None:
    """Why a line is not a request, or None. names: custom ids of the lines before; this line's is added."""
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):
        return "the line is not JSON"
    if not isinstance(asked, dict) or not isinstance(asked.get("body"), dict):
        return 'the line is not {"custom_id", "method", "url", "body": {...}}'
    custom_id = asked.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= 512:
        return "custom_id should be text of 1 to 512 characters"
    if custom_id in names:
        shown = custom_id[:80].encode(errors="replace").decode()  # without lone surrogates, which no answer can contain
        return f"custom_id {shown} is given twice"
    names.add(custom_id)
    if (asked.get("method"), asked.get("url")) != ("POST", "/v1/videos"):
        return "method and url should be POST and /v1/videos"
    return None
