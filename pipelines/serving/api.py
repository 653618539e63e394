"""The HTTP API: the OpenAI Videos API's shape, with this project's settings, over the store and the dispatcher.

Knows routes and status codes. Knows nothing of Ray, or of how a video is made.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

import cinemo
from cinemo.image import read_image
from pipelines.core import storage
from pipelines.serving import body, errors, results, schema
from pipelines.serving.dispatch import Dispatcher
from pipelines.serving.errors import ApiError
from pipelines.serving.metrics import Metrics
from pipelines.serving.served_models import Served, complete
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job, OtherRequestError, QueueFullError, Store

EVERYONE = "everyone"  # owner of jobs where no keys are set
POLL_S = 0.2  # how often an event stream looks for news
Variant = Literal["video", "thumbnail", "spritesheet"]
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": schema.ErrorBody} for code in (400, 401, 404, 405, 409, 410, 413, 415, 422, 429, 503)
}


class Service:
    """What routes share: all that is needed to keep a job, and to answer for it."""

    def __init__(
        self, settings: ServeSettings, store: Store, dispatcher: Dispatcher, models: Mapping[str, Served]
    ) -> None:
        self.settings, self.store, self.dispatcher, self.models = settings, store, dispatcher, models
        self.videos = storage.join(settings.place, "videos")
        self.keys = [key.strip() for key in os.environ.get("CINEMO_API_KEYS", "").split(",") if key.strip()]
        self.began = schema.now()
        self.copies = Path(tempfile.mkdtemp(prefix="cinemo-"))  # of files that are kept elsewhere

    def owner(self, key: str | None) -> str:
        """Whose jobs an API key sees. Raises ApiError (401) for a key that is none."""
        if not self.keys:
            return EVERYONE
        given = (key or "").encode()
        known = [hmac.compare_digest(given, own.encode()) for own in self.keys]  # all of them: time tells nothing
        if not any(known):
            raise ApiError(401, "send Authorization: Bearer KEY with a key of this service", code="invalid_api_key")
        return hashlib.sha256(given).hexdigest()[:32]

    async def submit(
        self, fields: Mapping[str, Any], image: bytes, owner: str, idempotency_key: str | None = None
    ) -> Job:
        """Check a request, keep it as a job, and hand it on. Raises ApiError and pydantic's ValidationError."""
        asked = schema.VideoRequest.model_validate(fields)
        name = asked.model or next(iter(self.models))
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f"model {name[:100]} is not served; there is {known}", "model", "model_not_found")
        request = complete(asked, self.models[name], self.settings.limits)
        await asyncio.to_thread(check_image, image, self.settings.limits.max_pixels)
        now = time.time()
        digest = hashlib.sha256(json.dumps(asked.model_dump(), sort_keys=True).encode() + image).hexdigest()
        job = Job(
            id=f"video_{uuid.uuid4().hex}", owner=owner, model=name, request=request, lease_owner=self.dispatcher.name,
            lease_until=now + self.settings.lease_s, created_at=now, idempotency_key=idempotency_key,
            request_digest=digest,
        )  # fmt: skip
        limits = self.settings.limits
        most = limits.max_queue_per_key or limits.max_queue
        try:
            job, is_new = await asyncio.to_thread(self.store.create, job, image, limits.max_queue, most)
        except OtherRequestError:
            raise ApiError(409, "this Idempotency-Key came with another request before", "Idempotency-Key") from None
        except QueueFullError as full:
            seconds = str(self.dispatcher.retry_after(full.args[0]))
            sentence = f"{full.args[0]} videos wait or run already; send it again in {seconds} s"
            raise ApiError(429, sentence, code="queue_full", headers={"Retry-After": seconds}) from None
        if is_new:
            self.dispatcher.submit(job)
        return job

    async def find(self, job_id: str, owner: str) -> Job:
        """A job of this owner. Raises ApiError: 410 for one that was deleted, 404 for one that never was."""
        if (job := await asyncio.to_thread(self.store.get, job_id, owner)) is not None:
            return job
        if await asyncio.to_thread(self.store.is_gone, job_id, owner):
            raise ApiError(410, f"video {job_id} was deleted, or its time was over", "video_id", "video_gone")
        raise ApiError(404, f"there is no video {job_id[:80]}", "video_id", "video_not_found")

    async def delete(self, job_id: str, owner: str) -> None:
        """Take a job out, wherever it is; its replica stops at the next step. Raises ApiError as find."""
        await self.find(job_id, owner)
        if (job := await asyncio.to_thread(self.store.delete, job_id, owner)) is not None:
            await asyncio.to_thread(results.remove, self.videos, job.id, job.attempt)

    async def cancel(self, job_id: str, message: str) -> None:
        """End a job that nobody waits for any more; its replica stops at the next step."""
        await asyncio.to_thread(self.store.fail, job_id, None, "cancelled", message, self.settings.ttl_s)

    async def file(self, job: Job, variant: str) -> Path:
        """A file of a finished job, on this machine. Raises ApiError: 409 before that, 410 when it is gone."""
        if job.status != "completed":
            why = f"failed: {job.error['message']}" if job.error else f"is {job.status}, {job.progress} % done"
            raise ApiError(409, f"video {job.id} {why}", "video_id", "video_not_ready")
        name = results.name(job.id, job.attempt, variant)
        if storage.is_local(self.videos):
            path = Path(storage.join(self.videos, name))
        else:
            path = self.copies / name
            if not path.exists() and (data := await asyncio.to_thread(storage.read, storage.join(self.videos, name))):
                storage.put(str(path), data)
        if not path.exists():
            raise ApiError(410, f"the {variant} of {job.id} is gone", "video_id", "video_gone")
        return path


def check_image(image: bytes, most_pixels: int) -> None:
    """Raises ApiError (422) for bytes that are no picture, or too large a one."""
    try:
        read_image(image, most_pixels)
    except ValueError as error:
        raise ApiError(422, f"{body.IMAGE}: {error}", body.IMAGE, "invalid_image") from None


def create_app(service: Service, metrics: Metrics, ready: Any) -> FastAPI:
    """The application. ready(): whether replicas can be asked for; started and stopped with the application."""

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.dispatcher.start()
        yield
        service.dispatcher.stop()

    app = FastAPI(
        title="Cinemo",
        version=cinemo.__version__,
        summary="Animates still images, in the shape of the OpenAI Videos API.",
        lifespan=life,
        separate_input_output_schemas=False,
    )
    errors.install(app)

    def bearer(
        authorization: Annotated[str | None, Header(description="Bearer KEY, where keys are set")] = None,
    ) -> str:
        kind, _, key = (authorization or "").partition(" ")
        return service.owner(key.strip() if kind.lower() == "bearer" else None)

    Owner = Annotated[str, Depends(bearer)]
    Key = Annotated[
        str | None,
        Header(
            alias="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$",
            description="the same key with the same request returns the first video",
        ),
    ]  # fmt: skip

    async def found(video_id: str, owner: Owner) -> Job:
        return await service.find(video_id, owner)

    Found = Annotated[Job, Depends(found)]
    Wanted = Annotated[Variant, Query(description="video (mp4), thumbnail (webp) or spritesheet (jpg)")]

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        began = time.perf_counter()
        response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "other")  # a pattern: as many series as routes
        metrics.answered(request.method, route, response.status_code, time.perf_counter() - began)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers.setdefault("X-Frame-Options", "DENY")
        if request.url.path.startswith("/ui"):  # gradio's page runs code of its own; nothing from elsewhere
            own = "'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
            response.headers["Content-Security-Policy"] = f"default-src {own}; frame-ancestors 'none'"
        return response

    @app.post("/v1/videos", responses=ERRORS, openapi_extra=schema.request_body(), tags=["videos"])
    async def create(request: Request, owner: Owner, idempotency_key: Key = None) -> schema.Video:
        """Animate an image. Answers at once; poll the video, or read its events, until it is completed."""
        fields, image = await body.read(request, service.settings.limits.max_bytes)
        return schema.to_video(await service.submit(fields, image, owner, idempotency_key))

    @app.post(
        "/v1/videos/sync",
        responses={**ERRORS, 200: {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}}},
        response_class=FileResponse,
        openapi_extra=schema.request_body(),
        tags=["videos"],
    )
    async def create_and_wait(request: Request, owner: Owner) -> FileResponse:
        """Animate an image, and answer with the mp4. A client that goes away cancels it."""
        fields, image = await body.read(request, service.settings.limits.max_bytes)
        job = await service.submit(fields, image, owner)
        end = asyncio.create_task(service.dispatcher.ended(job.id))
        try:
            while not end.done():
                await asyncio.wait([end], timeout=0.5)
                if await request.is_disconnected():
                    break
        finally:
            if not end.done():
                end.cancel()
                await asyncio.shield(service.cancel(job.id, "the client went away"))
        job = await service.find(job.id, owner)
        if job.error is not None:
            raise ApiError(500 if job.error["code"] == "server_error" else 409, job.error["message"], code="failed")
        return FileResponse(
            await service.file(job, "video"), media_type=results.MEDIA["video"], headers={"X-Video-Id": job.id}
        )

    @app.get("/v1/videos", responses=ERRORS, tags=["videos"])
    async def page(
        owner: Owner,
        after: Annotated[str | None, Query(description="id of the last video of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=100, description="most videos")] = 20,
        order: Annotated[Literal["asc", "desc"], Query(description="by time: desc has the newest first")] = "desc",
    ) -> schema.VideoPage:
        """The videos of an API key, a page at a time."""
        jobs, more = await asyncio.to_thread(service.store.page, owner, after, limit, order == "desc")
        videos = [schema.to_video(job) for job in jobs]
        first, last = (videos[0].id, videos[-1].id) if videos else (None, None)
        return schema.VideoPage(data=videos, first_id=first, last_id=last, has_more=more)

    @app.get("/v1/videos/{video_id}", responses=ERRORS, tags=["videos"])
    async def retrieve(job: Found) -> schema.Video:
        """How far a video is."""
        return schema.to_video(job)

    @app.get(
        "/v1/videos/{video_id}/content",
        responses={
            **ERRORS,
            200: {
                "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in results.MEDIA.values()}
            },
            206: {"description": "the bytes that Range asks for"},
            416: {"description": "Range asks for what is not there"},
        },
        response_class=FileResponse,
        tags=["videos"],
    )
    async def content(job: Found, variant: Wanted = "video") -> FileResponse:
        """A file of a completed video; Range is understood."""
        path = await service.file(job, variant)
        return FileResponse(path, media_type=results.MEDIA[variant], filename=job.id + path.suffix)

    @app.delete("/v1/videos/{video_id}", responses=ERRORS, tags=["videos"])
    async def delete(video_id: str, owner: Owner) -> schema.DeletedVideo:
        """Cancel a video if it waits or runs, and delete all of it."""
        await service.delete(video_id, owner)
        return schema.DeletedVideo(id=video_id)

    @app.get("/v1/videos/{video_id}/events", responses=ERRORS, response_class=EventSourceResponse, tags=["videos"])
    async def events(job: Found) -> AsyncIterator[ServerSentEvent]:
        """Server-sent events: the video object at every change, until the event is completed, failed or deleted."""
        last: Job | None = job
        seen = None
        while last is not None:
            if (last.status, last.progress) != seen:
                seen = (last.status, last.progress)
                yield ServerSentEvent(raw_data=schema.to_video(last).model_dump_json(), event=last.status)
            if not last.is_open:
                return
            await asyncio.sleep(POLL_S)
            last = await asyncio.to_thread(service.store.get, job.id)
        yield ServerSentEvent(raw_data=schema.DeletedVideo(id=job.id).model_dump_json(), event="deleted")

    @app.get("/v1/models", responses={401: ERRORS[401]}, tags=["models"])
    async def models(owner: Owner) -> schema.ModelList:
        """The models that are served; the first is the default."""
        return schema.ModelList(data=[to_model(served, service.began) for served in service.models.values()])

    @app.get("/health/live", tags=["operations"])
    async def live() -> dict[str, str]:
        """This process answers."""
        return {"status": "live"}

    @app.get("/health/ready", responses={503: ERRORS[503]}, tags=["operations"])
    async def is_ready() -> dict[str, Any]:
        """The store answers, and every model that should have a replica has one."""
        waiting = await ready()
        if waiting:
            raise ApiError(503, f"no replica is ready yet for {', '.join(waiting)}", headers={"Retry-After": "5"})
        return {"status": "ready", "jobs": await asyncio.to_thread(service.store.counts)}

    @app.get("/metrics", response_class=Response, tags=["operations"])
    async def prometheus() -> Response:
        """Prometheus's text format."""
        data, kind = await asyncio.to_thread(metrics.text, service.store)
        return Response(data, media_type=kind)

    @app.get("/", include_in_schema=False)
    async def front() -> RedirectResponse:
        return RedirectResponse("/ui" if any(getattr(route, "path", "") == "/ui" for route in app.routes) else "/docs")

    return app


def to_model(served: Served, began: int) -> schema.Model:
    """A model as clients see it."""
    return schema.Model(
        id=served.name,
        created=began,
        fingerprint=served.fingerprint,
        sizes=[f"{width}x{height}" for height, width in served.card.sizes] if served.card.sizes else None,
        lengths=served.card.lengths,
        num_inference_steps=served.card.steps,
        guidance_scale=served.card.guidance,
    )
