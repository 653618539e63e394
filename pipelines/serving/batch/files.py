"""Files: requests of batches, as clients upload them, and their results; in the output, with a row each."""

import asyncio
import io
import re
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal, TypeVar

import sqlalchemy as sa
from pydantic import BaseModel

from pipelines.core import storage
from pipelines.serving.http.api_keys import EVERYONE
from pipelines.serving.http.errors import ApiError
from pipelines.serving.jobs.database import Database
from pipelines.serving.jobs.tables import batches, files
from pipelines.serving.settings import ServeSettings
from pipelines.sources import places

FILES_OF_OWNER = 10  # a key may store this many times limits.max_file_bytes
MOST_FILES = 10_000  # of a key, however small
MAX_ROWS = 100  # files that are deleted at a time
PART = 1 << 20  # bytes that are read, and held, at a time
THREADS = 4  # that store and open files; as many read and write those of batches
AT_ONCE, AT_ONCE_OF_OWNER = 32, 4  # uploads and downloads at a time, of a process and of one owner
TEMPORARY_KEPT_S = 86_400.0  # seconds after which temporary files are deleted; no write takes so long
USED = sa.select(batches.c.input_file_id).where(batches.c.ended_at.is_(None))  # inputs of batches that still run


T = TypeVar("T")


class FileObject(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FilePage(BaseModel):
    """A part of the list of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(BaseModel):
    """Answer to the deletion of a file."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def place_of(settings: ServeSettings, file_id: str) -> str:
    """URI of a file's content."""
    return storage.join(settings.place, "files", f"{file_id}.jsonl")


def away() -> ApiError:
    """Error while the storage is unavailable."""
    return ApiError(503, "the storage does not respond; try again", headers={"Retry-After": "5"})


async def in_thread(threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
    """Call a slow function in one of these threads; those of asyncio.to_thread are for short calls."""
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


class Files:
    """The files of a database and an output. Methods may be called from any thread."""

    def __init__(self, settings: ServeSettings, database: Database) -> None:
        self.settings, self.database = settings, database
        self.threads = ThreadPoolExecutor(THREADS, "files")
        self.transfers: Counter[str] = Counter()  # uploads and downloads that run, by owner
        self.lock = threading.RLock()  # re-entrant: the garbage collector may close a download while this thread has it

    @contextmanager
    def transfer(self, owner: str) -> Iterator[None]:
        """Count an upload or a download while a block runs. Raises ApiError (429) if too many run already."""
        most = AT_ONCE if owner == EVERYONE else AT_ONCE_OF_OWNER
        with self.lock:
            if self.transfers[owner] >= most or self.transfers.total() >= AT_ONCE:
                sentence = "too many files are sent or fetched at a time; try again when one of them has ended"
                raise ApiError(429, sentence, code="rate_limit_exceeded", headers={"Retry-After": "5"})
            self.transfers[owner] += 1
        try:
            yield
        finally:
            with self.lock:
                self.transfers[owner] -= 1
                self.transfers = +self.transfers

    def add(self, file_id: str, owner: str, filename: str, purpose: str, data: BinaryIO) -> FileObject:
        """Store a file; may be repeated. Raises ApiError: 413 when the owner has too much stored, 503.

        data: an open file, whose whole content is stored.
        """
        most, size = FILES_OF_OWNER * self.settings.limits.max_file_bytes, data.seek(0, io.SEEK_END)

        def insert() -> Any:
            with self.database.transaction() as connection:
                if row := connection.execute(sa.select(files).where(files.c.id == file_id)).first():
                    return row
                self.database.advisory_lock(connection, f"files of {owner}")
                sums = sa.func.coalesce(sa.func.sum(files.c.bytes), 0), sa.func.count()
                stored, number = connection.execute(sa.select(*sums).where(files.c.owner == owner)).one()
                if purpose == "batch" and number >= MOST_FILES:
                    raise ApiError(413, f"this key has {number:,} files; delete some", "file")
                if purpose == "batch" and stored + size > most:
                    raise ApiError(413, f"the files of this key have more than {most:,} bytes; delete some", "file")
                values = {"id": file_id, "owner": owner, "filename": filename, "purpose": purpose, "bytes": size}
                until = self.database.now + self.settings.file_ttl_s
                insert = files.insert().values(**values, created_at=self.database.now, expires_at=until)
                return connection.execute(insert.returning(*files.c)).one()

        # The row is first: a content without one would never be deleted.
        row = self.database.patiently(insert)
        try:
            storage.put_file(place_of(self.settings, file_id), data)
        except OSError:
            self._remove_rows([file_id])
            raise away() from None
        return to_object(row)

    def find(self, file_id: str, owner: str) -> FileObject:
        """Find a file of this owner. Raises ApiError (404)."""
        row = None
        if re.fullmatch("file_[0-9a-f]{32}", file_id):
            query = sa.select(files).where(files.c.id == file_id, files.c.owner == owner)
            row = self.database.patiently(lambda: self.database.first(query))
        if row is None:
            raise ApiError(404, f"file {file_id[:80]} does not exist", "file_id", "file_not_found")
        return to_object(row)

    def exists(self, file_id: str) -> bool:
        """Whether a file is known, even if its content cannot be read now."""
        query = sa.select(files.c.id).where(files.c.id == file_id)
        return self.database.patiently(lambda: self.database.first(query)) is not None

    def page(
        self, owner: str, after: str | None, limit: int, newest_first: bool, purpose: str | None
    ) -> tuple[list[FileObject], bool]:
        """List at most `limit` files of an owner: (files, whether there are more). Raises ApiError (404, 503).

        after: id of the file before the page; None: the first page. purpose: None for all.
        """
        position = sa.tuple_(files.c.created_at, files.c.id)
        query = sa.select(files).where(files.c.owner == owner)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        if after is not None:
            self.find(after, owner)
            start = sa.select(files.c.created_at, files.c.id).where(files.c.id == after)
            at = tuple(self.database.patiently(lambda: self.database.first(start)))
            query = query.where(position < at if newest_first else position > at)
        order = [sa.desc(column) if newest_first else sa.asc(column) for column in (files.c.created_at, files.c.id)]
        query = query.order_by(*order).limit(limit + 1)
        rows = self.database.patiently(lambda: self.database.all(query))
        return [to_object(row) for row in rows[:limit]], len(rows) > limit

    def open(self, file_id: str, owner: str) -> tuple[int, Generator[bytes, None, None]]:
        """Open a file: (size in bytes, generator of parts; the caller closes it). Raises ApiError (404, 429, 503)."""
        size, parts = self.find(file_id, owner).bytes, self._parts(file_id, owner)
        next(parts)
        return size, parts

    def _parts(self, file_id: str, owner: str) -> Generator[bytes, None, None]:
        """Yield b"" once the file is open, then its parts. The file is closed at its end, or with the generator."""
        with self.transfer(owner):
            try:
                file = places.open_binary(place_of(self.settings, file_id), PART, "none")
            except FileNotFoundError:
                raise ApiError(404, f"file {file_id} is gone", "file_id", "file_not_found") from None
            except OSError:
                raise away() from None
            with file:
                yield b""
                while part := file.read(PART):
                    yield part

    def delete(self, file_id: str, owner: str) -> None:
        """Delete a file. Raises ApiError: 404; 409 for the requests of a batch that has not ended; 503."""
        self.find(file_id, owner)
        is_used = USED.where(batches.c.input_file_id == file_id)
        if self.database.patiently(lambda: self.database.first(is_used)) is not None:
            raise ApiError(409, "a batch that has not ended needs this file; cancel the batch first", "file_id")
        try:
            self._remove([file_id])
        except OSError:
            raise away() from None

    def delete_expired(self) -> None:
        """Delete files that have expired, and temporary files that killed processes left. Raises OSError.

        Inputs of batches that have not ended are kept.
        """
        is_old = sa.and_(files.c.expires_at < self.database.now, files.c.id.not_in(USED))
        expired = sa.select(files.c.id).where(is_old).limit(MAX_ROWS)
        while rows := self.database.all(expired):
            self._remove([row.id for row in rows])
        storage.remove_temporary_files(storage.join(self.settings.place, "files"), TEMPORARY_KEPT_S)

    def _remove(self, file_ids: list[str]) -> None:
        for file_id in file_ids:
            storage.remove(place_of(self.settings, file_id))
        self._remove_rows(file_ids)

    def _remove_rows(self, file_ids: list[str]) -> None:
        which = files.c.id.in_(file_ids)
        self.database.patiently(lambda: self.database.change(files.delete().where(which)))


def to_object(row: Any) -> FileObject:
    """The object that clients see of a row."""
    values = {name: row._mapping[name] for name in ("id", "filename", "purpose", "bytes")}
    return FileObject(**values, created_at=int(row.created_at), expires_at=int(row.expires_at))
