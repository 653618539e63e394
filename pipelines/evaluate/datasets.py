"""Datasets to compare models on: each becomes a fixed list of cases, a video with a prompt each.

synthetic:64 is drawn here from photos that no training clip shows (synthetic:64:pan,zoom: only these kinds), and its
motion is known. ucf101:FOLDER and msrvtt:FOLDER are the paper's, in their official layouts. Anything else is a source
of captioned videos, as the prepare job reads it. No video is decoded here.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from cinemo.video import VIDEO_SUFFIXES
from pipelines import sources
from pipelines.core import hashing, storage
from pipelines.dataset import records

Case = dict[str, Any]
UCF101_VIDEOS = 2048  # drawn at random, as in the paper; of MSR-VTT, the whole test split is used
SYNTHETIC = re.compile(r"synthetic:(?P<count>[1-9]\d*)(:(?P<kinds>[\w,]+))?")


def read(dataset: str, limit: int | None, seed: int) -> list[Case]:
    """List the cases, in a fixed order: name (of a file), uri, caption, kind, direction, fault.

    Names are unique. kind and direction are known only of synthetic clips; fault says why a video cannot be used.
    limit: number of cases, drawn at random from (seed, uri). Raises ValueError, one sentence that names --dataset.
    """
    kind, _, place = dataset.partition(":")
    try:
        if kind == "synthetic":
            return synthetic(dataset, limit)
        if kind == "ucf101":
            return chosen(ucf101(Path(place)), limit or UCF101_VIDEOS, seed)
        if kind == "msrvtt":
            return chosen(msrvtt(Path(place), seed), limit, seed)
        rows = [row for table in sources.iter_videos(dataset) for row in table.to_pylist()]
    except ValueError as error:
        raise ValueError(f"--dataset {dataset}: {str(error).removeprefix(f'--input {dataset}: ')}") from None
    cases = [{"name": name_of(records.name_of(row)), "kind": None, "direction": None, **row} for row in rows]
    return chosen(cases, limit, seed)


def draw(seed: int, *names: str) -> int:
    """A random number, 64 bits, from a hash of the arguments: the same on every machine."""
    text = "\n".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def chosen(cases: list[Case], limit: int | None, seed: int) -> list[Case]:
    """Draw at most `limit` cases at random, in the order of their names, without duplicate names."""
    cases = sorted({case["name"]: case for case in cases}.values(), key=lambda case: draw(seed, "case", case["uri"]))
    return sorted(cases[:limit], key=lambda case: str(case["name"]))


def name_of(uri: str) -> str:
    """Name for a case's files: the video's own, and a hash that distinguishes videos of the same name."""
    stem = re.sub(r"[^\w.-]", "_", uri.rsplit("/", 1)[-1].rsplit(".", 1)[0])
    return f"{stem[:80]}-{int(hashing.hash64([uri])[0]):016x}"


def synthetic(dataset: str, limit: int | None) -> list[Case]:
    """Cases of every kind in turn. Raises ValueError for a name without a number of clips, or an unknown kind."""
    from cinemo.synthetic import KINDS, make_plan  # torch

    parts = SYNTHETIC.fullmatch(dataset)
    if parts is None:
        raise ValueError("it has no number of clips; write synthetic:64, or synthetic:64:pan,zoom")
    kinds = tuple(parts["kinds"].split(",")) if parts["kinds"] else KINDS
    cases = []
    for number in range(min(int(parts["count"]), limit or int(parts["count"]))):
        kind = kinds[number % len(kinds)]
        plan = make_plan(number, kinds=(kind,), held_out=True)
        cases.append(
            {
                "name": f"synthetic-{number:05d}",
                "uri": f"synthetic:{kind}:{number}",
                "caption": plan.caption,
                "kind": plan.kind,
                "direction": plan.direction,
                "fault": None,
            }
        )
    return cases


def ucf101(folder: Path) -> list[Case]:
    """Cases of UCF-101/CLASS/v_CLASS_g01_c01.avi; the prompt is the class's name in words. Raises ValueError."""
    videos = sorted(path for path in folder.glob("*/v_*") if path.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise ValueError("it is not UCF-101 as it is published: no CLASS/v_CLASS_g01_c01.avi in it")
    return [case(path, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.parent.name).lower()) for path in videos]


def msrvtt(folder: Path, seed: int) -> list[Case]:
    """Cases of MSR-VTT's test split: test_videodatainfo.json (or videodatainfo_2017.json), videos named by video_id.

    One of each video's captions is drawn at random. Raises ValueError.
    """
    lists = [path for name in ("test_videodatainfo.json", "videodatainfo_2017.json") for path in folder.rglob(name)]
    if not lists:
        raise ValueError("it is not MSR-VTT as it is published: no test_videodatainfo.json in it")
    try:
        listed = json.loads(lists[0].read_text())
        names = sorted(video["video_id"] for video in listed["videos"] if video.get("split", "test") == "test")
        captions: dict[str, list[str]] = {name: [] for name in names}
        for line in listed["sentences"]:
            captions.get(line["video_id"], []).append(line["caption"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{lists[0].name} is not MSR-VTT's ({type(error).__name__}: {error})") from None
    files = {path.stem: path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES}
    cases = []
    for name in names:
        choices = sorted(set(captions[name]))
        path = files.get(name, folder / f"{name}.mp4")  # a missing video becomes a reject, and is counted
        cases.append(case(path, choices[draw(seed, "caption", name) % len(choices)] if choices else ""))
    return cases


def case(path: Path, caption: str) -> Case:
    """Make the case of a local video with a unique name."""
    uri = storage.absolute(str(path))
    return {"name": path.stem, "uri": uri, "caption": caption, "kind": None, "direction": None, "fault": None}
