"""Routes of batches and their files: the part of OpenAI's Batch and Files APIs that a batch needs."""

import asyncio
import uuid
from collections.abc import Generator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.types import Receive, Scope, Send

from pipelines.animate.request import Text
from pipelines.serving import schema
from pipelines.serving.batch.batches import Batch
from pipelines.serving.batch.files import DeletedFile, FileObject, FilePage, in_thread
from pipelines.serving.http import body
from pipelines.serving.http.dependencies import Owner, Sender, Shared
from pipelines.serving.http.errors import ApiError

files = APIRouter(prefix="/v1/files", tags=["batches"])
batches = APIRouter(prefix="/v1/batches", tags=["batches"])

Note = Annotated[Text, Field(max_length=512)]
MOST_BYTES = 1 << 16  # of the body of a request for a batch
UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON lines"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                }
            }
        },
    }
}


class BatchRequest(BaseModel):
    """Body of a request that creates a batch."""

    model_config = ConfigDict(extra="ignore")
    input_file_id: Text = Field(description="id of the uploaded file")
    endpoint: Literal["/v1/videos"] = Field(description="route of its requests")
    completion_window: Literal["24h"] = Field("24h", description="taken for compatibility; not enforced")
    metadata: dict[Annotated[str, Field(max_length=64)], Note] | None = Field(
        None, max_length=16, description="your notes; returned as they are"
    )


CREATION: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": BatchRequest.model_json_schema()}},
    }
}


class BatchPage(BaseModel):
    """A part of the list of batches."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Download(StreamingResponse):
    """A file as a response. However it ends, the file is closed and its place among the transfers is freed."""

    def __init__(self, parts: Generator[bytes, None, None], size: int) -> None:
        self.parts = parts
        super().__init__(parts, media_type="application/jsonl", headers={"Content-Length": str(size)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the parts."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.parts.close()


@files.post("", responses=schema.ERRORS, openapi_extra=UPLOAD)
async def upload(request: Request, service: Shared, owner: Owner) -> FileObject:
    """Upload the requests of a batch: JSON lines, in a form with the fields `file` and `purpose` ("batch")."""
    with service.files.transfer(owner):
        async with body.read_form(request, service.settings.limits.max_file_bytes, "file") as fields:
            data = fields.get("file")
            if not isinstance(data, UploadFile):
                raise ApiError(422, "file is required, as a file of a form", "file")
            if fields.get("purpose") != "batch":
                raise ApiError(422, 'purpose: only "batch" is taken', "purpose")
            file_id, name = f"file_{uuid.uuid4().hex}", (data.filename or "")[:255]
            name = name.replace("\0", "").encode(errors="replace").decode()  # as databases can store it
            return await in_thread(service.files.threads, service.files.add, file_id, owner, name, "batch", data.file)


@files.get("", responses=schema.ERRORS)
async def list_files(
    service: Shared,
    owner: Owner,
    after: Annotated[str | None, Query(description="id of the last file of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="largest number of files per page")] = 10_000,
    order: Annotated[Literal["asc", "desc"], Query(description="by creation time; desc: newest first")] = "desc",
    purpose: Annotated[str | None, Query(description="only files of this purpose: batch, or batch_output")] = None,
) -> FilePage:
    """List the files of an API key, page by page."""
    purpose = purpose and purpose.replace("\0", "?")  # PostgreSQL refuses such text
    bounds = (after, limit, order == "desc", purpose)
    listed, more = await asyncio.to_thread(service.files.page, owner, *bounds)
    first, last = (listed[0].id, listed[-1].id) if listed else (None, None)
    return FilePage(data=listed, first_id=first, last_id=last, has_more=more)


@files.get("/{file_id}", responses=schema.ERRORS)
async def retrieve_file(file_id: str, service: Shared, owner: Owner) -> FileObject:
    """Retrieve what is known of a file."""
    return await asyncio.to_thread(service.files.find, file_id, owner)


@files.get("/{file_id}/content", responses=schema.ERRORS, response_class=Response)
async def content(file_id: str, service: Shared, owner: Owner) -> StreamingResponse:
    """Download a file."""
    size, parts = await in_thread(service.files.threads, service.files.open, file_id, owner)
    return Download(parts, size)


@files.delete("/{file_id}", responses=schema.ERRORS)
async def delete_file(file_id: str, service: Shared, owner: Owner) -> DeletedFile:
    """Delete a file."""
    await asyncio.to_thread(service.files.delete, file_id, owner)
    return DeletedFile(id=file_id)


@batches.post("", responses=schema.ERRORS, openapi_extra=CREATION)
async def create(request: Request, service: Shared, owner: Sender) -> Batch:
    """Make a video of each line of a file. Poll the batch until it has ended; then download its output."""
    asked = BatchRequest.model_validate(await body.read(request, MOST_BYTES, "metadata"))
    await asyncio.to_thread(service.files.find, asked.input_file_id, owner)
    batch_id = f"batch_{uuid.uuid4().hex}"
    return await asyncio.to_thread(service.batches.create, batch_id, owner, asked.input_file_id, asked.metadata)


@batches.get("", responses=schema.ERRORS)
async def page(
    service: Shared,
    owner: Owner,
    after: Annotated[str | None, Query(description="id of the last batch of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="largest number of batches per page")] = 20,
) -> BatchPage:
    """List the batches of an API key, newest first."""
    listed, more = await asyncio.to_thread(service.batches.page, owner, after, limit)
    first, last = (listed[0].id, listed[-1].id) if listed else (None, None)
    return BatchPage(data=listed, first_id=first, last_id=last, has_more=more)


@batches.get("/{batch_id}", responses=schema.ERRORS)
async def retrieve(batch_id: str, service: Shared, owner: Owner) -> Batch:
    """Retrieve a batch: its status, and the number of its requests that have ended."""
    return await asyncio.to_thread(service.batches.find, batch_id, owner)


@batches.post("/{batch_id}/cancel", responses=schema.ERRORS)
async def cancel(batch_id: str, service: Shared, owner: Owner) -> Batch:
    """Cancel the requests of a batch that have not ended. Videos that are completed are kept."""
    await asyncio.to_thread(service.batches.cancel, batch_id, owner)
    return await asyncio.to_thread(service.batches.find, batch_id, owner)
