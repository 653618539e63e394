"""What the catalog job reads: images to animate, each with what is wished for it, streamed.

A catalog is a folder of images, a table (.csv, .tsv, .json, .jsonl, .ndjson, each also .gz, or .parquet), a folder of
.parquet files, or a pattern such as catalog/{000..127}.parquet; local or anything that fsspec opens, and so may each
image. A column holds the image's uri or, in Parquet, its bytes; another one the uri of the video whose motion the image
shall get; others hold settings for the row. A folder may hold Hugging Face's metadata.csv, .jsonl or .parquet as well.

Knows what columns are called. Opens no image, and knows no ranges of settings: what is wrong with a value is found by
who uses it. What is wrong with a row stands in it; what is wrong with the catalog is a ValueError.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from cinemo.image import IMAGE_SUFFIXES
from pipelines.core import storage
from pipelines.sources import cells, columns, folder, images, manifests, places, tables, webdataset
from pipelines.sources.rows import is_utf8
from pipelines.sources.tally import Tally

# What a row may wish for, and the columns that say it. `video` is that whose motion the image gets.
WISHES: dict[str, columns.Groups] = {
    "prompt": columns.PROMPT,
    "negative_prompt": (("negative_prompt",),),
    "motion_bucket": (("motion_bucket",),),
    "seed": (("seed",),),
    "num_inference_steps": (("num_inference_steps",), ("steps",)),
    "guidance_scale": (("guidance_scale",), ("guidance",)),
    "size": (("size",),),
    "fit": (("fit",),),
    "video": columns.MOTION,
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
    catalog: str,
    image_column: str | None = None,
    prompt_column: str | None = None,
    video_column: str | None = None,
    tally: Tally | None = None,
) -> Iterator[Entry]:
    """The rows of a catalog in its order, those of a folder by name; the same rows twice are two entries.

    tally: counts files that were passed over. Raises ValueError as `check` does; OSError when storage fails on the way.
    """
    asked = (image_column, prompt_column, video_column)
    with _naming(catalog):
        uri = storage.absolute(catalog)
        files = _files(uri)
        if files is None:
            yield from _folder(uri, asked, tally or Tally())
            return
        for index, file in enumerate(files):
            try:
                yield from _table(file, *asked)
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
    return f"{storage.absolute(uri)}/".startswith(f"{storage.absolute(catalog)}/")


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


def _folder(uri: str, asked: tuple[str | None, str | None, str | None], tally: Tally) -> Iterator[Entry]:
    """What lists in a folder of images say of them, and the images that no list names."""
    listed: set[str] = set()

    def lists(place: str, names: folder.Names) -> Iterator[Entry]:
        found = list(folder.metadata_of(place, names, columns.IMAGE, "--image-column", asked[0], tally))
        if place == uri and any(asked) and not found:
            raise ValueError("it is a folder of images, and has no columns; leave out the names of columns")
        for table in found:
            for entry in _table(table, *asked):
                listed.add(entry.image)
                yield entry

    for row in folder.captioned_files(uri, IMAGE_SUFFIXES, tally, lists):
        if isinstance(row, Entry):
            yield row
        elif row.uri not in listed:
            yield Entry(row.uri, {"prompt": row.caption} if row.caption else {}, row.fault)


def _table(uri: str, image_column: str | None, prompt_column: str | None, video_column: str | None) -> Iterator[Entry]:
    name, place = storage.base_name(uri), storage.parent(uri)
    found = tables.columns(uri)
    try:
        image, kept = _columns(found, image_column, {"prompt": prompt_column, "video": video_column})
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
    embedded = cells.holds_bytes(uri, image)
    if "video" in kept and cells.holds_bytes(uri, kept["video"]):
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
            named = cells.uri_of(uri, image, number) if embedded else _file(record[image], place, at, image)
            if "video" in wishes:
                wishes["video"] = _file(wishes["video"], place, at, kept["video"])
        except ValueError as error:
            yield Entry(here, {}, str(error))
        else:
            yield Entry(named, wishes)


def _columns(found: list[str], asked: str | None, flags: dict[str, str | None]) -> tuple[str, dict[str, str]]:
    """The column of the image, and those of wishes. asked, flags: the columns that flags name. Raises ValueError."""
    image = columns.pick(found, asked, columns.IMAGE, "the image", "--image-column")
    if image is None:
        raise ValueError(
            f"has no column for the image; found are {columns.listed(found)}, needed is one of "
            f"{columns.usual_names(columns.IMAGE)}, or name it with --image-column"
        )
    kept = {}
    for wish, usual in WISHES.items():
        flag = f"--{wish}-column" if wish in flags else ""
        column = columns.pick(found, flags.get(wish), usual, f"the {wish.replace('_', ' ')}", flag)
        if column is not None:
            kept[wish] = column
    return image, kept


def _file(value: Any, folder: str, at: str, column: str) -> str:
    """The uri of a file that a column of a row names. Raises ValueError for what is no name."""
    if not isinstance(value, str):
        raise ValueError(f"{at}: {column} is of type {type(value).__name__}, not text")
    text = value.strip()
    if "\0" in text or not is_utf8(text):
        raise ValueError(f"{at}: {column} is no name of a file")
    return manifests.file_of(text, folder, f"{at}: {column}")


def _is_empty(value: Any) -> bool:
    """What stands for nothing: null, blank text, and the NaN that pandas writes for a missing number."""
    return value is None or (isinstance(value, str) and not value.strip()) or (
        isinstance(value, float) and math.isnan(value)
    )  # fmt: skip


def _name(catalog: str) -> str:
    return f"--catalog {catalog}: "


@contextmanager
def _naming(catalog: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(_name(catalog)) else _name(catalog) + text) from error
