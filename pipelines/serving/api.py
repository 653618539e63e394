"""The HTTP API, modelled on the OpenAI Videos API with this project's settings: routes and status codes.

The work of the routes is in service.py.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

import cinemo
from pipelines.animate.request import VideoFormat
from pipelines.serving import schema
from pipelines.serving.batch import routes
from pipelines.serving.http import body, dialect, errors, guard, pace
from pipelines.serving.http.dependencies import Owner, Sender, Shared
from pipelines.serving.http.errors import ApiError
from pipelines.serving.metrics import Metrics, queue_text
from pipelines.serving.schema import ERRORS
from pipelines.serving.served_models import Served
from pipelines.serving.service import Service, digest_of
from pipelines.serving.store import Job
from pipelines.serving.videos import results

MAX_REQUEST_ID = 128  # characters that are kept
Variant = Literal["video", "thumbnail", "spritesheet"]
ANIMATED = schema.request_body(dialect.IMAGE, dialect.REFERENCE, dialect.VIDEO)
VIDEO_TYPES = [results.MEDIA[f".{kind}"] for kind in get_args(VideoFormat)]
BINARY = {"schema": {"type": "string", "format": "binary"}}
CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": dict.fromkeys(results.MEDIA.values(), BINARY)},
    206: {"description": "the requested Range of bytes"},
    416: {"description": "the requested Range is outside the file"},
}
COUNTS_AGE_S = 2.0  # for this long /health/ready and /metrics, which several nodes may ask every second, reuse a count

videos = APIRouter(prefix="/v1/videos", tags=["videos"])
models = APIRouter(prefix="/v1/models", tags=["models"])
operations = APIRouter(tags=["operations"])


def create_app(service: Service, metrics: Metrics, ready: Any) -> FastAPI:
    """Create the application. ready: async function that returns the names of models without a ready replica."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        counting = asyncio.create_task(metrics.watch(service.store))
        yield
        counting.cancel()
        service.stop()

    app = FastAPI(
        title="Cinemo",
        version=cinemo.__version__,
        summary="Animates still images, in the shape of the OpenAI Videos API.",
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    app.state.service, app.state.metrics, app.state.ready = service, metrics, ready
    errors.install(app)
    app.add_middleware(pace.OpenLimit, owner=service.owner)
    app.middleware("http")(guard.observe_and_guard)
    for router in (videos, models, routes.files, routes.batches, operations):
        app.include_router(router)
    if origins := service.settings.allow_origins:
        allowed: dict[str, Any] = {"allow_origins": origins, "allow_methods": ["*"], "allow_headers": ["*"]}
        app.add_middleware(CORSMiddleware, **allowed, expose_headers=["X-Video-Id", "X-Warnings", "Retry-After"])
    app.add_middleware(pace.TransferLimit)
    return app


async def _job(video_id: str, service: Shared, owner: Owner) -> Job:
    return await service.find(video_id, owner)


FoundJob = Annotated[Job, Depends(_job)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$",
        description="the same key with the same request returns the first video",
    ),
]  # fmt: skip


@videos.post("", responses=ERRORS, openapi_extra=ANIMATED)
async def create(
    request: Request, service: Shared, owner: Sender, idempotency_key: IdempotencyKey = None
) -> schema.Video:
    """Queue an animation of an image. Returns at once; poll the video, or read its events, until it is completed."""
    return queued(*await submit(request, service, owner, idempotency_key))


Operation = Literal["animate", "edit", "extend"]


def queued(job: Job, warnings: list[str]) -> schema.Video:
    """The response to a request for a video that was stored."""
    return schema.to_video(job).model_copy(update={"warnings": warnings})


async def submit(
    request: Request,
    service: Service,
    owner: str,
    key: str | None,
    operation: Operation = "animate",
    remixed: str | None = None,
) -> tuple[Job, list[str]]:
    """Read a request for a video and store it: (the job, warnings). Raises ApiError.

    remixed: id of the video in the path. The job of an earlier request with this key is returned without warnings, if
    the same was sent.
    """
    slots = service.slots if operation == "animate" else service.video_slots
    async with slots.hold(owner):
        given, digest = await body.read(request, service.settings.limits.max_bytes), None
        if remixed is not None:
            given[dialect.VIDEO] = {"id": remixed}
        if key is not None:
            digest = await asyncio.to_thread(digest_of, operation, given)
            if (first := await service.find_sent(owner, key, digest)) is not None:
                return first, []
        if remixed is not None:
            await service.find(remixed, owner)
        if operation != "animate" and not (given.get(dialect.VIDEO) or given.get("video[id]")):
            raise ApiError(422, f"{dialect.VIDEO} is required: a video file, or the id of a video", dialect.VIDEO)
        fields, image, warnings = dialect.translate(await service.links.replace(given), service.settings.strict)
        request_id = request.headers.get("x-request-id", "")[:MAX_REQUEST_ID] or None
        job = await service.submit(fields, image, owner, key, operation == "extend", request_id, digest)
        return job, warnings


@videos.post("/edits", responses=ERRORS, openapi_extra=schema.request_body(dialect.VIDEO, dialect.IMAGE))
async def edit(
    request: Request, service: Shared, owner: Sender, idempotency_key: IdempotencyKey = None
) -> schema.Video:
    """Give a video's motion to an image, its first frame after editing, or to another prompt."""
    return queued(*await submit(request, service, owner, idempotency_key, "edit"))


@videos.post("/extensions", responses=ERRORS, openapi_extra=schema.request_body(dialect.VIDEO))
async def extend(
    request: Request, service: Shared, owner: Sender, idempotency_key: IdempotencyKey = None
) -> schema.Video:
    """Continue a video from its last frame, by `seconds` or by one clip; the result has the whole."""
    return queued(*await submit(request, service, owner, idempotency_key, "extend"))


@videos.post("/{video_id}/remix", responses=ERRORS, openapi_extra=schema.request_body(None, dialect.IMAGE))
async def remix(
    video_id: str, request: Request, service: Shared, owner: Sender, idempotency_key: IdempotencyKey = None
) -> schema.Video:
    """Make a completed video again for another prompt, with its motion; or for another image, if one is sent."""
    return queued(*await submit(request, service, owner, idempotency_key, "edit", video_id))


@videos.post(
    "/sync",
    responses={**ERRORS, 200: {"content": dict.fromkeys(VIDEO_TYPES, BINARY)}},
    response_class=FileResponse,
    openapi_extra=ANIMATED,
)
async def create_and_wait(
    request: Request, service: Shared, owner: Sender, idempotency_key: IdempotencyKey = None
) -> FileResponse:
    """Animate an image and return the video's file. Disconnecting cancels it, unless an Idempotency-Key was sent.

    With a key, the same request may be repeated after an interruption; it then waits for the first one's video.
    """
    job, warnings = await submit(request, service, owner, idempotency_key)
    end = asyncio.create_task(service.dispatcher.ended(job.id))
    try:
        while not end.done():
            await asyncio.wait([end], timeout=0.5)
            if await request.is_disconnected():
                break
    finally:
        if not end.done():
            end.cancel()
            if idempotency_key is None:
                await asyncio.shield(service.cancel(job.id, "the client disconnected"))
    job = await service.find(job.id, owner)
    if job.error is not None:
        raise ApiError(500 if job.error["code"] == "server_error" else 409, job.error["message"], code="failed")
    path = await service.file(job, "video")
    ignored = {"X-Warnings": json.dumps(warnings)} if warnings else {}
    return FileResponse(path, media_type=results.MEDIA[path.suffix], headers={"X-Video-Id": job.id} | ignored)


@videos.get("", responses=ERRORS)
async def page(
    service: Shared,
    owner: Owner,
    after: Annotated[str | None, Query(description="id of the last video of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="largest number of videos per page")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="by creation time; desc: newest first")] = "desc",
) -> schema.VideoPage:
    """List the videos of an API key, page by page."""
    jobs, more = await service.page(owner, after, limit, order == "desc")
    listed = [schema.to_video(job) for job in jobs]
    first, last = (listed[0].id, listed[-1].id) if listed else (None, None)
    return schema.VideoPage(data=listed, first_id=first, last_id=last, has_more=more)


@videos.get("/{video_id}", responses=ERRORS)
async def retrieve(job: FoundJob) -> schema.Video:
    """Retrieve a video's status and progress."""
    return schema.to_video(job)


@videos.get("/{video_id}/content", responses={**ERRORS, **CONTENT}, response_class=FileResponse)
async def content(
    service: Shared,
    job: FoundJob,
    variant: Annotated[Variant, Query(description="video, thumbnail (webp) or spritesheet (jpg)")] = "video",
) -> FileResponse:
    """Download a file of a completed video; Range requests are supported."""
    path = await service.file(job, variant)
    return FileResponse(path, media_type=results.MEDIA[path.suffix], filename=job.id + path.suffix)


@videos.delete("/{video_id}", responses=ERRORS)
async def delete(video_id: str, service: Shared, owner: Owner) -> schema.DeletedVideo:
    """Delete a video and its files, cancelling it if it is queued or in progress."""
    await service.delete(video_id, owner)
    return schema.DeletedVideo(id=video_id)


@videos.get("/{video_id}/events", responses=ERRORS, response_class=EventSourceResponse)
async def events(service: Shared, job: FoundJob) -> AsyncIterator[ServerSentEvent]:
    """Stream server-sent events: the video object at every change, until it is completed, failed or deleted.

    If it was requested with `preview`, events of this name, with a schema.Preview, come between them.
    """
    last: Job | None = job
    sent = picture = None
    while last is not None:
        if (last.status, last.progress) != sent:
            sent = (last.status, last.progress)
            yield ServerSentEvent(raw_data=schema.to_video(last).model_dump_json(), event=last.status)
        if (newer := schema.to_preview(last)) is not None and newer.b64_json != picture:
            picture = newer.b64_json
            yield ServerSentEvent(raw_data=newer.model_dump_json(), event="preview")
        if not last.is_open:
            return
        last = await service.followed.get(job.id)
    yield ServerSentEvent(raw_data=schema.DeletedVideo(id=job.id).model_dump_json(), event="deleted")


@models.get("", name="models", responses={401: ERRORS[401]})
async def list_models(service: Shared, owner: Owner) -> schema.ModelList:
    """List the models that are served; the first is the default."""
    return schema.ModelList(data=[to_model(served, service.began) for served in service.models.values()])


@models.get("/{model_id:path}", name="model", responses={401: ERRORS[401], 404: ERRORS[404]})
async def retrieve_model(model_id: str, service: Shared, owner: Owner) -> schema.Model:
    """Retrieve a model by its name or an alias."""
    return to_model(service.model(model_id), service.began)


def to_model(served: Served, began: int) -> schema.Model:
    """Convert to the API's model object. began: start of the service, in seconds since 1970."""
    return schema.Model(
        id=served.name,
        created=began,
        fingerprint=served.fingerprint,
        sizes=[f"{width}x{height}" for height, width in served.card.sizes] if served.card.sizes else None,
        lengths=served.card.lengths,
        num_inference_steps=served.card.steps,
        guidance_scale=served.card.guidance,
        motion_bucket=served.card.bucket,
        prompts=served.card.prompts,
        loras=[
            schema.Adapter(id=name, trigger_words=known.card.trigger_words or None)
            for name, known in served.loras.items()
            if known is not None
        ],
    )


@operations.get("/health/live")
async def live() -> dict[str, str]:
    """Liveness: this process responds."""
    return {"status": "live"}


@operations.get("/health/ready", responses={503: ERRORS[503]})
async def is_ready(request: Request, service: Shared) -> dict[str, Any]:
    """Readiness: the database responds, and every model that should have a replica has one."""
    if waiting := await request.app.state.ready():
        raise ApiError(503, f"no replica is ready yet for {', '.join(waiting)}", headers={"Retry-After": "5"})
    return {"status": "ready", "jobs": await asyncio.to_thread(service.store.counts, COUNTS_AGE_S)}


@operations.get("/metrics", response_class=Response)
async def prometheus(service: Shared) -> Response:
    """Return the number of videos by status in Prometheus's text format; Ray exports all other metrics."""
    data, media_type = await asyncio.to_thread(queue_text, service.store, COUNTS_AGE_S)
    return Response(data, media_type=media_type)


@operations.get("/", include_in_schema=False)
async def front(request: Request) -> RedirectResponse:
    """Redirect a browser to the page, or to the API's documentation if there is no page."""
    has_page = any(getattr(route, "path", "") == "/ui" for route in request.app.routes)
    return RedirectResponse("/ui" if has_page else "/docs")
