"""Files: requests of batches, as clients upload them, and their results; in the output, with a row each."""

import re
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel

from pipelines.core import storage
from pipelines.serving.http.errors import ApiError
from pipelines.serving.jobs.database import Database
from pipelines.serving.jobs.tables import batches, files
from pipelines.serving.settings import ServeSettings

FILES_OF_OWNER = 10  # a key may store this many times limits.max_file_bytes
MAX_ROWS = 100  # files that are deleted at a time
USED = sa.select(batches.c.input_file_id).where(batches.c.ended_at.is_(None))  # inputs of batches that still run


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


class Files:
    """The files of a database and an output. Methods may be called from any thread."""

    def __init__(self, settings: ServeSettings, database: Database) -> None:
        self.settings, self.database = settings, database

    def add(self, file_id: str, owner: str, filename: str, purpose: str, data: bytes) -> FileObject:
        """Store a file; may be repeated. Raises ApiError: 413 when the owner has too much stored, 503."""
        most = FILES_OF_OWNER * self.settings.limits.max_file_bytes

        def insert() -> Any:
            with self.database.transaction() as connection:
                if row := connection.execute(sa.select(files).where(files.c.id == file_id)).first():
                    return row
                stored = sa.select(sa.func.coalesce(sa.func.sum(files.c.bytes), 0)).where(files.c.owner == owner)
                if purpose == "batch" and connection.execute(stored).scalar_one() + len(data) > most:
                    raise ApiError(413, f"the files of this key have more than {most:,} bytes; delete some", "file")
                values = {"id": file_id, "owner": owner, "filename": filename, "purpose": purpose, "bytes": len(data)}
                until = self.database.now + self.settings.file_ttl_s
                insert = files.insert().values(**values, created_at=self.database.now, expires_at=until)
                return connection.execute(insert.returning(*files.c)).one()

        # The row is first: a content without one would never be deleted.
        row = self.database.patiently(insert)
        try:
            storage.put(place_of(self.settings, file_id), data)
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

    def content(self, file_id: str, owner: str) -> bytes:
        """The bytes of a file. Raises ApiError (404, 503)."""
        self.find(file_id, owner)
        try:
            data = storage.read(place_of(self.settings, file_id))
        except OSError:
            raise away() from None
        if data is None:
            raise ApiError(404, f"file {file_id} is gone", "file_id", "file_not_found")
        return data

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
        """Delete files that have expired, except the requests of batches that have not ended. Raises OSError."""
        is_old = sa.and_(files.c.expires_at < self.database.now, files.c.id.not_in(USED))
        expired = sa.select(files.c.id).where(is_old).limit(MAX_ROWS)
        self._remove([row.id for row in self.database.all(expired)])

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
