"""Read catalogs: a stream of images to animate, each with its settings.

A catalog is a folder of images, a table (.csv, .tsv, .json, .jsonl, .ndjson, each also .gz, or .parquet), a folder of
.parquet files, or a pattern such as catalog/{000..127}.parquet. The catalog and its images may each be local or at any
URI that fsspec opens. A column holds the image's uri or, in Parquet, its bytes; another the uri of the video whose
motion the image gets; others hold settings of the row. A folder may also hold Hugging Face's metadata.csv, .jsonl or
.parquet.

Images are not opened and values not checked here. An error in one row is stored in its `fault`; an error of the whole
catalog is a ValueError.
"""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from cinemo.image import IMAGE_SUFFIXES
from pipelines.core import storage
from pipelines.core.patience import limited
from pipelines.sources import cells, columns, folder, images, late, places, tables, webdataset
from pipelines.sources.rows import Tally, is_utf8, named, or_fault

# Settings that a row may have, and the names of their columns: fields of animate's request.Settings and, as `video`,
# the video whose motion the image gets. A column may have one of several names, in order of preference.
ROW_SETTINGS: dict[str, columns.Groups] = {
    "prompt": columns.PROMPT,
    "negative_prompt": (("negative_prompt",),),
    "motion_bucket": (("motion_bucket",),),
    "seed": (("seed",),),
    "num_inference_steps": (("num_inference_steps",), ("steps",)),
    "guidance_scale": (("guidance_scale",), ("guidance",)),
    "size": (("size",),),
    "fit": (("fit",),),
    "lora": (("lora",), ("loras",)),
    "video": columns.MOTION,
}
_HEAD = 100  # rows in which `check` looks for a prompt
_TRIED = 4  # images that `check` tries to reach
_PARQUET = (".parquet",)


class Entry(NamedTuple):
    """A row of a catalog: the image's uri, and the row's settings as written there, without empty values.

    A video among the settings is an absolute uri.
    fault: the error in the row, None for a good one. For a faulty row, `image` may say where the row is: FILE#line-N.
    """

    image: str
    settings: dict[str, Any]
    fault: str | None = None


def entries(
    catalog: str,
    image_column: str | None = None,
    prompt_column: str | None = None,
    video_column: str | None = None,
    tally: Tally | None = None,
) -> Iterator[Entry]:
    """Yield the rows of a catalog in order, those of a folder by name; equal rows are separate entries.

    tally: counts and notes what was skipped. Raises ValueError like `check`; OSError when storage fails.
    """
    asked = (image_column, prompt_column, video_column)
    with named(f"--catalog {catalog}: "):
        uri, tally = storage.absolute(catalog), tally or Tally()
        files = _files(uri, tally)
        if files is None:
            yield from _folder(uri, asked, tally)
            return
        for index, file in enumerate(files):
            yield from or_fault(_table(file, *asked), index == 0, partial(Entry, file, {}))


@limited(15)
def check(
    catalog: str,
    image_column: str | None,
    prompt_column: str | None,
    prompt: str | None,
    video_column: str | None = None,
) -> None:
    """Refuse a catalog that cannot be read, before a cluster is used. Reads only its beginning.

    prompt: for rows without one; None for none. Raises ValueError, one sentence that starts with
    `--catalog {catalog}`, when it does not exist, is of no known kind, lacks a column, lists no image, has no prompts
    while `prompt` is None, or when access to its storage or that of its first images is denied.
    """
    with named(f"--catalog {catalog}: "):
        try:
            head = list(itertools.islice(entries(catalog, image_column, prompt_column, video_column), _HEAD))
            _check_reachable([entry.image for entry in head if entry.fault is None][:_TRIED])
        except ValueError:
            raise
        # Drivers raise their own exceptions, such as botocore's NoCredentialsError, without a common base class.
        except Exception as error:
            raise ValueError(f"it cannot be read: {type(error).__name__}: {error}") from error
        if not head:
            raise ValueError(f"it lists no image; images end in {', '.join(IMAGE_SUFFIXES)}")
        good = [entry for entry in head if entry.fault is None]
        if prompt is None and good and not any("prompt" in entry.settings for entry in good):
            raise ValueError("it has no prompts; give --prompt TEXT for all images, which may be empty")


def _check_reachable(uris: list[str]) -> None:
    """Try to reach one of these images. If all fail, raises the exception of the last one."""
    for place, uri in enumerate(uris, 1):
        try:
            images.stamp(uri)
            return
        except Exception:
            if place == len(uris):
                raise


def is_below(uri: str, catalog: str) -> bool:
    """Whether a place is inside the catalog's folder, so that files written there would be listed."""
    return f"{storage.absolute(uri)}/".startswith(f"{storage.absolute(catalog)}/")


def _files(uri: str, tally: Tally) -> Iterator[str] | None:
    """Find the tables of a catalog; None for a folder of images. Raises ValueError if it is neither."""
    kinds = f"a folder of images, or a table ({', '.join(tables.SUFFIXES)})"
    first = next(webdataset.expand(uri))
    if tables.kind(first) is not None and places.is_file(first):
        return webdataset.expand(uri)
    if not places.is_folder(first):
        if places.is_file(first):
            raise ValueError(f"it is neither a folder nor a file of a known kind; give {kinds}")
        raise ValueError(f"{first} does not exist; give {kinds}")
    parquet = False
    for _, name, _ in folder.walk(uri, tally):
        if name.lower().endswith(IMAGE_SUFFIXES):
            return None
        parquet = parquet or name.lower().endswith(_PARQUET)
    return folder.files(uri, *_PARQUET, tally) if parquet else None


def _folder(uri: str, asked: tuple[str | None, str | None, str | None], tally: Tally) -> Iterator[Entry]:
    """Yield the entries of lists in a folder of images, and the images that no list names."""
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
    chooser = _chooser(uri, image_column, {"prompt": prompt_column, "video": video_column})
    image, kept = chooser.first
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
        try:
            image, kept = chooser.choice(record)
        except ValueError as error:
            yield Entry(here, {}, f"{at}: {error}")
            continue
        settings = {setting: record.get(column) for setting, column in kept.items()}
        settings = {setting: value for setting, value in settings.items() if not _is_empty(value)}
        try:
            if not embedded and _is_empty(record.get(image)):
                raise ValueError(f"{at} names no image: {image} is empty or missing")
            image_uri = cells.uri_of(uri, image, number) if embedded else _file(record[image], place, at, image)
            if "video" in settings:
                settings["video"] = _file(settings["video"], place, at, kept["video"])
        except ValueError as error:
            yield Entry(here, {}, str(error))
        else:
            yield Entry(image_uri, settings)


def _chooser(uri: str, asked: str | None, flags: dict[str, str | None]) -> late.Chooser[tuple[str, dict[str, str]]]:
    """Choose the columns of a table, and of its records. Arguments and errors are those of `_columns`."""

    def choose(found: list[str]) -> tuple[str, dict[str, str]]:
        try:
            return _columns(found, asked, flags)
        except ValueError as error:
            raise ValueError(f"{storage.base_name(uri)} {error}") from None

    usual = (columns.IMAGE, *ROW_SETTINGS.values())
    return late.Chooser(tables.columns(uri), choose, usual, (asked, *flags.values()))


def _columns(found: list[str], asked: str | None, flags: dict[str, str | None]) -> tuple[str, dict[str, str]]:
    """Find the columns of the image and of settings. asked, flags: the columns that flags name. Raises ValueError."""
    image = columns.pick(found, asked, columns.IMAGE, "the image", "--image-column")
    if image is None:
        raise ValueError(
            f"has no column for the image; found are {columns.listed(found)}, needed is one of "
            f"{columns.usual_names(columns.IMAGE)}, or name it with --image-column"
        )
    kept = {}
    for setting, usual in ROW_SETTINGS.items():
        flag = f"--{setting}-column" if setting in flags else ""
        column = columns.pick(found, flags.get(setting), usual, f"the {setting.replace('_', ' ')}", flag)
        if column is not None:
            kept[setting] = column
    return image, kept


def _file(value: Any, base: str, at: str, column: str) -> str:
    """The uri of a file that a cell names, perhaps relative to `base`. Raises ValueError for what is not a name."""
    if not isinstance(value, str):
        raise ValueError(f"{at}: {column} is of type {type(value).__name__}, not text")
    text = value.strip()
    if "\0" in text or not is_utf8(text):
        raise ValueError(f"{at}: {column} is no name of a file")
    return places.file_of(text, base, f"{at}: {column}")


def _is_empty(value: Any) -> bool:
    """Whether a value is missing: null, blank text, or the NaN that pandas writes for a missing number."""
    return value is None or (isinstance(value, str) and not value.strip()) or (
        isinstance(value, float) and math.isnan(value)
    )  # fmt: skip
