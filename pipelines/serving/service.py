"""The service behind the API and the page: accepts requests as jobs, finds and deletes them, returns their files.

Its errors carry the HTTP status code that a route answers with.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from opentelemetry import trace

from pipelines.core import storage
from pipelines.serving import schema, webhooks
from pipelines.serving.batch.batches import Batches
from pipelines.serving.batch.files import Files
from pipelines.serving.batch.runner import Runner
from pipelines.serving.dispatch import Dispatcher
from pipelines.serving.http import api_keys, dialect, request_files, uploads
from pipelines.serving.http.errors import ApiError
from pipelines.serving.http.links import Links
from pipelines.serving.http.slots import Slots
from pipelines.serving.jobs.ids import new_id
from pipelines.serving.polling import SharedQuery
from pipelines.serving.served_models import Served
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job, OtherRequestError, QueueFullError, Store
from pipelines.serving.videos import inputs, results

logger = logging.getLogger("ray.serve")

COPY_KEPT_S = 60.0  # a response that is being sent keeps its file open, so may take longer
THREADS = 32  # for calls of the database, which wait; Ray would give an ingress without CPUs five
AT_ONCE, AT_ONCE_OF_OWNER = 64, 16  # requests for videos that are read and checked at a time, each with its files
VIDEOS_AT_ONCE = (16, 4)  # the same of edits and extensions, whose videos are decoded one at a time
MAX_ID = 128  # characters
FOLLOW_S, GET_S = 0.2, 0.02  # least seconds between two queries: for event streams and the page, for other requests


class Service:
    """The operations that the API's routes and the page share."""

    def __init__(
        self,
        settings: ServeSettings,
        store: Store,
        dispatcher: Dispatcher,
        models: Mapping[str, Served],
        known_keys: Sequence[str] = (),
        webhook_secret: str = "",
    ) -> None:
        """known_keys: hashes of the API keys; without any, those of this process's CINEMO_API_KEYS.

        webhook_secret: without one, this process's CINEMO_WEBHOOK_SECRET, if webhooks are used.
        """
        self.settings, self.store, self.dispatcher, self.models = settings, store, dispatcher, models
        self.videos = storage.join(settings.place, "videos")
        self.keys = api_keys.Keys(settings, list(known_keys) or api_keys.from_environment(settings))
        dispatcher.priority = self.keys.priority
        dispatcher.loras = {
            name: {lora for lora, known in served.loras.items() if known is not None} for name, served in models.items()
        }
        self.links = Links(settings)
        self.began = int(time.time())
        self.followed, self.requested = SharedQuery(store, FOLLOW_S), SharedQuery(store, GET_S)
        secret = webhook_secret or webhooks.secret_from_environment(settings)
        self.outbox = webhooks.Outbox(settings, store.database, secret)
        self.slots, self.video_slots = Slots(AT_ONCE, AT_ONCE_OF_OWNER), Slots(*VIDEOS_AT_ONCE)
        self.files, self.batches = Files(settings, store.database), Batches(settings, store.database)
        self.runner = Runner(
            settings, store, self.files, self.batches, dispatcher.name, self.submit_line, self.keys.max_open
        )
        self.background: list[asyncio.Task[None]] = []
        # A video's frames may take uploads.MAX_FRAME_BYTES, and its decoding a minute: a child is left for images.
        self.with_video = asyncio.Semaphore(max(1, uploads.AT_ONCE - 1))
        self.copies = Path(tempfile.mkdtemp(prefix="cinemo-"))  # local copies of files in object storage

    def start(self) -> None:
        """Start to watch jobs, and to work on batches, and to deliver webhooks, in the running event loop."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "ingress"))
        self.dispatcher.start()
        works = (self.outbox.run, self.keys.run, self.runner.run)
        self.background = [asyncio.create_task(run()) for run in works]

    def stop(self) -> None:
        """Stop; what is not done yet is in the store."""
        self.dispatcher.stop()
        for task in self.background:
            task.cancel()
        self.files.threads.shutdown(wait=False, cancel_futures=True)

    def owner(self, authorization: str | None) -> str:
        """The owner whose jobs a request with this header may see. Raises ApiError (401) for an unknown key."""
        return self.keys.owner(authorization)

    async def submit(
        self,
        fields: Mapping[str, Any],
        image: bytes,
        owner: str,
        idempotency_key: str | None = None,
        extends: bool = False,
        request_id: str | None = None,
        sent_digest: str | None = None,
    ) -> Job:
        """Check a request, store it as a job, and queue it. Raises ApiError and pydantic's ValidationError.

        fields: of schema.VideoRequest, and videos (dialect.translate). extends: continue the video, instead of editing
        it. request_id: of the HTTP request. sent_digest: as of `find_sent`.
        """
        has_loras = "lora" in fields
        fields, source = await self._source(dict(fields), image, owner, extends)
        asked = schema.VideoRequest.model_validate(fields)
        webhook = webhooks.url_of_job(self.settings, asked.webhook_url)
        served = self.model(asked.model or next(iter(self.models)))
        if source.job is not None and not has_loras:
            request_files.check_inherited(source.job, served, self.models.get(source.job.model))
        reader = uploads.checker(self.settings.limits.max_pixels)
        has_video = source.video is not None or source.reference is not None
        async with self.with_video if has_video else contextlib.nullcontext():
            request, made_from = await request_files.prepare(asked, source, served, self.settings.limits, reader)
            stored = await asyncio.to_thread(inputs.pack, made_from)
        if request_id is not None:
            request = {**request, "request_id": request_id}
        now = int(time.time() * 1000) / 1000  # as in the id
        # As in earlier versions (no empty lora, bucket 10 if none is given), so that their idempotency keys match.
        given = asked.model_dump(exclude=None if asked.lora else {"lora"})
        given |= {"motion_bucket": 10} if asked.motion_bucket is None else {}
        digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode() + source.digest()).hexdigest()
        job = Job(
            id=new_id(now), owner=owner, model=served.name, request=request, lease_owner=self.dispatcher.name,
            created_at=now, idempotency_key=idempotency_key, request_digest=digest, sent_digest=sent_digest,
            webhook=webhook,
        )  # fmt: skip
        limits = self.settings.limits
        try:
            most_of_owner = self.keys.max_open(owner)
            job, is_new = await asyncio.to_thread(self.store.create, job, stored, limits.max_queue, most_of_owner)
        except OtherRequestError:
            sentence = "this Idempotency-Key was used for another request; send a new key"
            raise ApiError(409, sentence, "Idempotency-Key") from None
        except QueueFullError as error:
            seconds = str(self.dispatcher.retry_after(error.args[0]))
            sentence = f"{error.args[0]} videos are queued or in progress; send the request again in {seconds} s"
            raise ApiError(429, sentence, code="queue_full", headers={"Retry-After": seconds}) from None
        trace.get_current_span().set_attribute("job", job.id)
        if is_new:
            logger.info("queued", extra={"job": job.id, "key": owner})  # Serve adds the request's id
            self.dispatcher.submit(job)
        return job

    async def find_sent(self, owner: str, idempotency_key: str, sent_digest: str) -> Job | None:
        """Find the job of an earlier request with this key, if the same was sent; None if there is none.

        So a repeat works though its source is deleted, its URL gone, its model no longer served, or a default changed.
        """
        job = await asyncio.to_thread(self.store.find_by_idempotency_key, owner, idempotency_key)
        return job if job is not None and job.sent_digest == sent_digest else None

    async def submit_line(self, fields: Mapping[str, Any], owner: str, idempotency_key: str) -> Job:
        """Submit the body of a batch's line. Raises like submit.

        If an earlier process has submitted the line, its job is returned, whatever a second reading of the line would
        give: an image behind a URL may be gone, or settings may have changed.
        """
        if (job := await asyncio.to_thread(self.store.find_by_idempotency_key, owner, idempotency_key)) is not None:
            return job
        fields, image, _ = dialect.translate(await self.links.replace(dict(fields)), self.settings.strict)
        return await self.submit(fields, image, owner, idempotency_key)

    async def _source(
        self, fields: dict[str, Any], image: bytes, owner: str, extends: bool
    ) -> tuple[dict[str, Any], request_files.Source]:
        """Take the videos out of the fields: (the other fields, the files). Raises ApiError.

        What an edit or an extension of this service's own video leaves open is as in that video.
        """
        video, reference = fields.pop(dialect.VIDEO, None), fields.pop(dialect.REFERENCE, None)
        job = None
        if isinstance(video, str):
            job = await self.find(video, owner)
            path = await self.file(job, "video")
            video, model = await asyncio.to_thread(path.read_bytes), str(fields.get("model", job.model))
            served = self.models.get(self.settings.aliases.get(model, model))
            fields = request_files.inherited(job, fields, extends, served)
        return fields, request_files.Source(image, video, reference, job, extends)

    def model(self, name: str) -> Served:
        """The model that is served under a name or an alias. Raises ApiError (404)."""
        served = self.models.get(self.settings.aliases.get(name, name))
        if served is None:
            known = ", ".join([*self.models, *self.settings.aliases])
            raise ApiError(404, f"model {name[:100]} is not served; use {known}", "model", "model_not_found")
        return served

    async def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        """List (jobs of an owner after the one with the id `after`, whether there are more). Raises ApiError (404)."""
        after = after and after.replace("\0", "?")  # PostgreSQL refuses such text
        try:
            return await asyncio.to_thread(self.store.page, owner, after, limit, newest_first)
        except KeyError:
            raise ApiError(404, f"after: video {str(after)[:80]} does not exist", "after", "video_not_found") from None

    async def find(self, job_id: str, owner: str) -> Job:
        """Find a job of this owner. Raises ApiError (404) for one that was deleted, has expired or never existed."""
        # Databases refuse text such as \0 or half a surrogate pair, and the query is shared with other clients.
        if not (job_id.isascii() and job_id.isprintable() and len(job_id) <= MAX_ID):
            raise ApiError(404, "a video of this id does not exist", "video_id", "video_not_found")
        job = await self.requested.get(job_id)
        if job is not None and job.owner == owner:
            return job
        if await asyncio.to_thread(self.store.is_gone, job_id, owner):
            raise ApiError(404, f"video {job_id} was deleted or has expired", "video_id", "video_gone")
        raise ApiError(404, f"video {job_id[:80]} does not exist", "video_id", "video_not_found")

    async def delete(self, job_id: str, owner: str) -> None:
        """Delete a job and its files; a replica that works on it stops at the next step. Raises ApiError like find."""
        await self.find(job_id, owner)
        if (job := await asyncio.to_thread(self.store.delete, job_id, owner)) is not None:
            await asyncio.to_thread(results.remove, self.videos, job.id, job.attempt)
            for variant in results.ENDINGS:
                (self.copies / results.name(job.id, job.attempt, variant)).unlink(missing_ok=True)

    async def cancel(self, job_id: str, message: str) -> None:
        """Fail a job as cancelled; a replica that works on it stops at the next step."""
        await asyncio.to_thread(self.store.fail, job_id, None, "cancelled", message, self.settings.ttl_s)

    async def file(self, job: Job, variant: str) -> Path:
        """Local path of a completed job's file; a copy from object storage is there for COPY_KEPT_S seconds.

        Raises ApiError: 409 if the job is not completed, 404 if the file is gone, 503 if the storage does not respond.
        """
        if job.status != "completed":
            why = f"failed: {job.error['message']}" if job.error else f"is {job.status}, {job.progress} % done"
            raise ApiError(409, f"video {job.id} {why}", "video_id", "video_not_ready")
        variant = results.video_variant(job.request) if variant == "video" else variant
        name = results.name(job.id, job.attempt, variant)
        if storage.is_local(self.videos):
            path = Path(storage.join(self.videos, name))
        else:
            path = self.copies / name
            if not path.exists():
                await asyncio.to_thread(copy, storage.join(self.videos, name), path)
                asyncio.get_running_loop().call_later(COPY_KEPT_S, path.unlink, True)
        if not path.exists():
            raise ApiError(404, f"the {variant} of {job.id} is gone", "video_id", "video_gone")
        return path


def copy(uri: str, path: Path) -> None:
    """Copy a file from object storage, if it is there. Raises ApiError (503) if the storage does not respond."""
    try:
        data = storage.read(uri)
    except OSError as error:
        logger.warning("%s cannot be read: %s", uri, error)
        raise ApiError(503, "the storage does not respond; try again", headers={"Retry-After": "5"}) from None
    if data is not None:
        storage.put(str(path), data)


def digest_of(operation: str, given: dict[str, Any]) -> str:
    """SHA-256 of a request as it was sent, with its files."""
    sent = json.dumps([operation, given], sort_keys=True, default=lambda file: hashlib.sha256(file).hexdigest())
    return hashlib.sha256(sent.encode()).hexdigest()
