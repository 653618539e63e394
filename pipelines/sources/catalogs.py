"""What the catalog job reads: images to animate, each with what is wished for it, streamed.

A catalog is a folder of images, a .csv, .jsonl, .ndjson (each also .gz) or .parquet table, a folder of .parquet files,
or a pattern such as catalog/{000..127}.parquet; local or anything that fsspec opens, and so may each image. A column
holds the image's uri or, in Parquet, its bytes; another one the uri of the video whose motion the image shall get;
others hold settings for the row.

Knows what columns are called. Opens no image, and knows no ranges of settings: what is wrong with a value is found by
who uses it. What is wrong with a row stands in it; what is wrong with the catalog is a ValueError.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines.sources import folder, images, places, tables, webdataset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
IMAGE_COLUMNS = ("image", "image_uri", "image_url", "photo", "uri", "url", "path", "file_name")
# What a row may wish for, and the columns that say it. `video` is that whose motion the image gets.
WISHES = {
    "prompt": ("prompt", "caption", "text"),
    "negative_prompt": ("negative_prompt",),
    "motion_bucket": ("motion_bucket",),
    "seed": ("seed",),
    "num_inference_steps": ("num_inference_steps", "steps"),
    "guidance_scale": ("guidance_scale", "guidance"),
    "size": ("size",),
    "video": ("video", "video_uri", "video_url"),
}
_HEAD = 100  # rows that `check` looks at for a prompt
_TRIED = 4  # images whose storage `check` asks for them
_PARQUET = (".parquet",)


class Entry(NamedTuple):
    """A row of a catalog: the image's uri, and what it wishes for, as it stands there; empty values are left out.

    A video that is wished for is an absolute uri.
    fault: what is wrong with the row, None when nothing is; then image may be the place of the row.
    """

    image: str
    wishes: dict[str, Any]
    fault: str | None = None


def entries(
    catalog: str, image_column: str | None = None, prompt_column: str | None = None, video_column: str | None = None
) -> Iterator[Entry]:
    """The rows of a catalog in its order, those of a folder by name; the same rows twice are two entries.

    Raises ValueError as `check` does; OSError when storage fails on the way.
    """
    with _naming(catalog):
        uri = places.absolute(catalog)
        files = _files(uri)
        if files is None:
            if image_column or prompt_column or video_column:
                raise ValueError("it is a folder of images, and has no columns; leave out the names of columns")
            for image, prompt, fault in folder.captioned_files(uri, IMAGE_SUFFIXES):
                yield Entry(image, {"prompt": prompt} if prompt else {}, fault)
            return
        for index, file in enumerate(files):
            try:
                yield from _table(file, image_column, prompt_column, video_column)
            except (ValueError, FileNotFoundError) as error:
                if index == 0:
                    raise
                yield Entry(file, {}, f"it cannot be read: {error}")


def check(
    catalog: str,
    image_column: str | None,
    prompt_column: str | None,
    prompt: str | None,
    video_column: str | None = None,
) -> None:
    """Refuse a catalog that cannot be read, before a cluster is touched. Reads only its beginning.

    prompt: of rows without one; None for none. Raises ValueError, one sentence that starts with `--catalog {catalog}`,
    when it does not exist, is of no known kind, lacks a column, lists no image, has neither prompts nor a prompt for
    all, or when its storage or that of its first images lets nobody in.
    """
    with _naming(catalog):
        try:
            head = list(itertools.islice(entries(catalog, image_column, prompt_column, video_column), _HEAD))
            _check_reachable([entry.image for entry in head if entry.fault is None][:_TRIED])
        except ValueError as error:
            raise ValueError(str(error).removeprefix(_name(catalog))) from error
        # Drivers have exceptions of their own, such as botocore's NoCredentialsError, that share no class.
        except Exception as error:
            raise ValueError(f"it cannot be read: {type(error).__name__}: {error}") from error
        if not head:
            raise ValueError(f"it lists no image; images end in {', '.join(IMAGE_SUFFIXES)}")
        good = [entry for entry in head if entry.fault is None]
        if prompt is None and good and not any("prompt" in entry.wishes for entry in good):
            raise ValueError("it has no prompts; give --prompt TEXT for all images, which may be empty")


def _check_reachable(uris: list[str]) -> None:
    """Ask for some images; raises what the last one's storage raised, where all of them raise."""
    for place, uri in enumerate(uris, 1):
        try:
            images.stamp(uri)
            return
        except Exception:
            if place == len(uris):
                raise


def is_below(uri: str, catalog: str) -> bool:
    """Whether a place lies in the folder that a catalog is, so that what is written there would be listed."""
    return f"{places.absolute(uri)}/".startswith(f"{places.absolute(catalog)}/")


def _files(uri: str) -> Iterator[str] | None:
    """The tables that a catalog is made of, None for a folder of images. Raises ValueError for what is no catalog."""
    kinds = f"a folder of images, or a table ({', '.join(tables.SUFFIXES)})"
    first = next(webdataset.expand(uri))
    if tables.kind(first) is not None and places.is_file(first):
        return webdataset.expand(uri)
    if not places.is_folder(first):
        if places.is_file(first):
            raise ValueError(f"it is neither a folder nor a file of a known kind; give {kinds}")
        raise ValueError(f"{first} does not exist; give {kinds}")
    parquet = False
    for _, name, _ in folder.walk(uri):
        if name.lower().endswith(IMAGE_SUFFIXES):
            return None
        parquet = parquet or name.lower().endswith(_PARQUET)
    return folder.files(uri, *_PARQUET) if parquet else None


def _table(uri: str, image_column: str | None, prompt_column: str | None, video_column: str | None) -> Iterator[Entry]:
    name, place = places.base_name(uri), places.parent(uri)
    found = tables.columns(uri)
    image = _column(name, found, image_column, IMAGE_COLUMNS, "--image-column")
    if image is None:
        raise ValueError(
            f"{name} has no column for the image; found are {', '.join(found) or '(none)'}, needed is one of "
            f"{', '.join(IMAGE_COLUMNS)}, or name it with --image-column"
        )
    columns = {wish: _column(name, found, None, names, "") for wish, names in WISHES.items()}
    columns["prompt"] = _column(name, found, prompt_column, WISHES["prompt"], "--prompt-column")
    columns["video"] = _column(name, found, video_column, WISHES["video"], "--video-column")
    kept = {wish: column for wish, column in columns.items() if column is not None}
    schema = tables.schema(uri) if tables.kind(uri) == ".parquet" else None
    embedded = schema is not None and _holds_bytes(schema.field(image).type)
    if schema is not None and "video" in kept and _holds_bytes(schema.field(kept["video"]).type):
        raise ValueError(
            f"{name} holds videos themselves in the column {kept['video']}; only paths and URIs of videos are taken"
        )
    names = list(dict.fromkeys([*kept.values(), *([] if embedded else [image])]))
    for number, (where, record) in enumerate(tables.records(uri, names)):
        here, at = f"{uri}#{where.replace(' ', '-')}", f"{name} {where}"
        if isinstance(record, str):
            yield Entry(here, {}, record if tables.is_damage(where) else f"{at}: {record}")
            continue
        wishes = {wish: record.get(column) for wish, column in kept.items()}
        wishes = {wish: value for wish, value in wishes.items() if not _is_empty(value)}
        try:
            if not embedded and _is_empty(record.get(image)):
                raise ValueError(f"{at} names no image: {image} is empty or missing")
            named = images.cell(uri, image, number) if embedded else _file(record[image], place, at, image)
            if "video" in wishes:
                wishes["video"] = _file(wishes["video"], place, at, kept["video"])
        except ValueError as error:
            yield Entry(here, {}, str(error))
        else:
            yield Entry(named, wishes)


def _file(value: Any, folder: str, at: str, column: str) -> str:
    """The uri of a file that a column of a row names. Raises ValueError for what is no name."""
    if not isinstance(value, str):
        raise ValueError(f"{at}: {column} is of type {type(value).__name__}, not text")
    text = value.strip()
    if "\0" in text or not _is_utf8(text):
        raise ValueError(f"{at}: {column} is no name of a file")
    return places.below(folder, text)


def _column(name: str, found: list[str], named: str | None, usual: tuple[str, ...], flag: str) -> str | None:
    if named is not None and named not in found:
        raise ValueError(f"{name} lacks the column {named} that {flag} names; found are {', '.join(found) or '(none)'}")
    return named or next((column for column in usual if column in found), None)


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds images themselves: bytes, or a struct with bytes, as Hugging Face datasets write them."""
    if pa.types.is_struct(kind):
        return any(field.name == images.BYTES for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_empty(value: Any) -> bool:
    """What stands for nothing: null, blank text, and the NaN that pandas writes for a missing number."""
    return value is None or (isinstance(value, str) and not value.strip()) or (
        isinstance(value, float) and math.isnan(value)
    )  # fmt: skip


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(catalog: str) -> str:
    return f"--catalog {catalog}: "


@contextmanager
def _naming(catalog: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(_name(catalog)) else _name(catalog) + text) from error
