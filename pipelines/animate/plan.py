"""Turn a catalog into the tasks of the job: complete requests, each with a key that changes when its row does.

Images are not opened; keys use stamps of their files. Memory: 16 bytes per row.
"""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ValidationError

from cinemo.errors import redact
from cinemo.sidecar import Request
from pipelines.animate import request, requested_adapters
from pipelines.animate.config import AnimateConfig
from pipelines.animate.records import TASK, digest, table
from pipelines.core import hashing, models
from pipelines.core.hashing import Seen
from pipelines.core.output import Reason
from pipelines.dataset import manifest
from pipelines.sources import catalogs, images
from pipelines.sources.rows import Tally

CHUNK = 8192  # rows whose stamps are requested at a time
MAX_PROMPT = 2000  # characters; a text encoder reads far fewer
_FLAGS = {*request.Settings.model_fields}


class Plan(NamedTuple):
    """The tasks. files: those of OUT/catalog, and how many rows each has. keys: of all rows, hashed and sorted.

    rows: the index of each of these rows in the catalog. edited: whether some row has a source video.
    loras: where to load each adapter from, by its name in requests: the same place without passwords.
    """

    files: dict[str, int]
    keys: np.ndarray
    rows: np.ndarray
    edited: bool = False
    loras: Mapping[str, str] = {}


def made_with(config: AnimateConfig, model: models.Facts) -> dict[str, str]:
    """What determines a video in addition to its image and request; part of its id."""
    return {"model_fingerprint": model.fingerprint, "precision": config.arithmetic, "format": config.format}


def write(config: AnimateConfig, model: models.Facts, folder: str, tally: Tally | None = None) -> Plan:
    """Store the tasks below `folder`; the same catalog again changes nothing. Raises like catalogs.entries.

    tally: counts files that were skipped.
    """
    keys, rows = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    edited, fill = 0, Filler(config, model)

    def noted() -> Iterator[pa.Table]:
        nonlocal edited
        for chunk in tasks(config, model, fill, tally):
            keys.append(hashing.hash64(chunk["key"].to_pylist()))
            rows.append(chunk["row"].to_numpy())
            edited += chunk.num_rows - chunk["source_video"].null_count
            yield chunk

    files, _ = manifest.write(noted(), folder, itemgetter("key"))
    order = np.argsort(np.concatenate(keys))
    return Plan(files, np.concatenate(keys)[order], np.concatenate(rows)[order], edited > 0, fill.adapters.places())


def tasks(config: AnimateConfig, model: models.Facts, fill: "Filler", tally: Tally | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a catalog as tables of schema TASK, at most CHUNK rows each, grouped by shape."""
    seen, repeats = Seen(), Counter[str]()
    made = made_with(config, model)
    columns = (config.image_column, config.prompt_column, config.video_column)
    found = itertools.islice(catalogs.entries(config.catalog, *columns, tally), config.limit)
    first = 0
    while chunk := list(itertools.islice(found, CHUNK)):
        stamps = images.stamps([entry.image for entry in chunk])
        made_of = [fill(entry) for entry in chunk]
        videos = sorted({part["source_video"] for part in made_of if "source_video" in part})
        video_stamps = dict(zip(videos, images.stamps(videos), strict=True))
        names = []
        for entry, stamp, part in zip(chunk, stamps, made_of, strict=True):
            video = part.get("source_video")
            source = [] if video is None else [video, video_stamps[video]]
            names.append(digest([entry.image, stamp, part.get("request"), part.get("message"), made, *source]))
        rows = []
        for place, (name, fresh) in enumerate(zip(names, seen.add(names), strict=True)):
            if not fresh:  # equal rows get different keys
                repeats[name] += 1
                name = digest([name, repeats[name]])
            rows.append({**made_of[place], "row": first + place, "key": name, "image": chunk[place].image})
        rows.sort(key=lambda row: row["shape"])
        yield table(rows, TASK)
        first += len(chunk)


class Filler:
    """Completes the request of a catalog's entry: as JSON, with its shape; or the reason why it has none."""

    def __init__(self, config: AnimateConfig, model: models.Facts) -> None:
        self.prompt, self.model, self.ending = config.prompt, model, config.ending
        self.defaults, self.loras = config.model_dump(include=_FLAGS - {"lora"}), config.lora
        self.asked = {name for name in config.model_fields_set & _FLAGS if self.defaults.get(name) is not None}
        self.adapters = requested_adapters.CatalogAdapters(config)
        self.completed = functools.lru_cache(4096)(self._complete)  # most rows differ only in image and prompt

    def __call__(self, entry: catalogs.Entry) -> dict[str, Any]:
        if entry.fault is not None:
            return _fault(Reason.BAD_ROW, entry.fault)
        own = dict(entry.settings)
        video = own.pop("video", None)
        prompt = own.pop("prompt", self.prompt)
        if (wrong := _wrong_prompt(prompt)) is not None:
            return _fault(Reason.BAD_PROMPT, wrong)
        wrong_kind = next((name for name, value in own.items() if isinstance(value, (bool, dict, list, bytes))), None)
        if wrong_kind is not None:
            return _fault(Reason.BAD_SETTING, f"{wrong_kind} is of type {type(own[wrong_kind]).__name__}")
        try:
            settings, shape = self.completed(tuple(sorted(own.items())), video is not None)
        except (ValidationError, request.SettingError) as error:
            return _fault(Reason.BAD_SETTING, _sentence(error))
        made = {"request": json.dumps({**settings, "prompt": prompt.strip()}), "shape": shape}
        return made if video is None else {**made, "source_video": video}

    def _complete(self, own: tuple[tuple[str, Any], ...], edited: bool) -> tuple[Request, str]:
        usual: dict[str, Any] = {}
        if edited:
            edit = {**request.EDITED, "num_inference_steps": self.model.card.inversion_steps}
            usual = {name: value for name, value in edit.items() if name not in self.asked}
        if "num_inference_steps" in dict(own):  # the row's own steps override the job's speed
            usual["speed"] = None
        asked = request.Settings.model_validate({**self.defaults, **usual, **dict(own)})
        if edited and asked.speed:
            raise request.SettingError(
                "speed", "speed does not apply to a row with a video, which DDIM inverts; leave it out"
            )
        if edited and asked.fit == "pad":
            raise request.SettingError("fit", "fit pad does not apply to a row with a video, whose frames have no bars")
        settings = request.complete(asked, "", self.model, self.ending)
        # The flag's places are absolute by now, and may have commas, at which a validation would split them.
        if loras := requested_adapters.chosen(asked.lora if "lora" in dict(own) else self.loras, self.adapters.find):
            settings = cast(Request, {**settings, "lora": [{**one, "name": redact(one["name"])} for one in loras]})
        if edited and "motion_bucket" not in {*self.asked, *dict(own)}:
            settings = cast(Request, {**settings, "motion_bucket": None})  # to be measured in the video
        return settings, request.shape_of(settings, edited)


class _Prompt(BaseModel):
    text: request.Text


def _wrong_prompt(prompt: Any) -> str | None:
    """Message about an invalid prompt; None for a valid one."""
    if prompt is None:
        return "the row has no prompt; give it one, or --prompt for all such rows"
    if not isinstance(prompt, str):
        return f"the prompt is of type {type(prompt).__name__}, not text"
    if len(prompt) > MAX_PROMPT:
        return f"the prompt has {len(prompt):,} characters; {MAX_PROMPT:,} are taken"
    try:
        _Prompt(text=prompt)
        prompt.encode()
    except (ValidationError, UnicodeEncodeError):
        return "the prompt holds the character NUL, or is not UTF-8"
    return None


def _fault(reason: Reason, message: str) -> dict[str, Any]:
    message = redact(message.encode("utf-8", "backslashreplace").decode())
    return {"reason": reason.value, "message": message, "shape": ""}


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{problem['loc'][0]} {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"
    assert isinstance(error, request.SettingError)
    return f"{error.field}: {error}"
