"""What a job reads: a folder of videos or a CSV file becomes rows (uri, caption, fault).

Knows manifests and captions. Opens no video: a file that is missing or broken is found, and becomes a reject, later.
A uri is the absolute path of the video: unique across sources, whichever folder or CSV file lists it. A video listed
twice is taken once, with its first caption. A video without a caption gets the empty prompt; one whose caption file
cannot be read carries the fault, and becomes a reject.
"""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa

from cinemo.video import VIDEO_SUFFIXES
from pipelines import storage

VIDEO = pa.schema([("uri", pa.string()), ("caption", pa.string()), ("fault", pa.string())])

# WebVid's columns: videoid, contentUrl, name (the caption), page_dir, duration. These are the ones a clip needs.
_NEEDED = ("contentUrl", "name")


def read(source: str) -> pa.Table:
    """All videos of a source as a table (uri, caption, fault), sorted by uri; fault is null where there is none.

    source: a folder (searched recursively; captions from its captions.csv, or from a .txt or .json file beside each
    video) or a .csv file with WebVid's columns, whose paths are relative to the file.
    Raises ValueError when there is no such source, when it is of another kind, or when it lists no video.
    """
    if not storage.is_local(source):
        raise ValueError(f"--input {source} is not on this machine; mount it, or copy it, and give the path")
    path = Path(storage.absolute(source))
    if path.is_dir():
        rows = _read_folder(path)
    elif path.suffix.lower() == ".csv" and path.is_file():
        rows = _read_csv(path)
    elif path.exists():
        raise ValueError(f"--input {source} is neither a folder nor a .csv file; give one of these")
    else:
        raise ValueError(f"--input {source} does not exist; give a folder of videos or a .csv file")
    if not rows:
        raise ValueError(
            f"--input {source} lists no video; a folder needs files that end in {', '.join(VIDEO_SUFFIXES)}"
        )
    return pa.Table.from_pylist([{"uri": uri, **rows[uri]} for uri in sorted(rows)], schema=VIDEO)


def _read_folder(folder: Path) -> dict[str, dict[str, str]]:
    manifest = folder / "captions.csv"
    captions = _read_csv(manifest) if manifest.is_file() else {}
    uris = storage.list_files(str(folder), tuple(VIDEO_SUFFIXES))
    # A file that the manifest names and the folder lacks stays in the list: it becomes a reject, not a silence.
    return {uri: captions.get(uri) or _caption_beside(Path(uri)) for uri in [*uris, *captions]}


def _read_csv(path: Path) -> dict[str, dict[str, str]]:
    """Absolute path -> caption. A contentUrl on the web stands for the downloaded file, page_dir/videoid.mp4."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--input {path} cannot be read: {error}; save it as UTF-8 CSV") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    found = list(reader.fieldnames or [])
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise ValueError(
            f"--input {path} lacks {', '.join(missing)}; found the columns {', '.join(found) or '(none)'}, "
            f"needed are {', '.join(_NEEDED)}"
        )
    rows: dict[str, dict[str, str]] = {}
    for row in reader:
        name = (row["contentUrl"] or "").strip()
        if name.startswith(("http://", "https://")):
            name = f"{row.get('page_dir') or '.'}/{row.get('videoid') or Path(name).stem}.mp4"
        if name:
            rows.setdefault(storage.absolute(str(path.parent / name)), {"caption": (row["name"] or "").strip()})
    return rows


def _caption_beside(video: Path) -> dict[str, str]:
    """The caption in video.txt, or under "caption" or "text" in video.json; empty when there is none."""
    beside = next((file for end in (".txt", ".json") if (file := video.with_suffix(end)).is_file()), None)
    if beside is None:
        return {"caption": ""}
    try:
        text = beside.read_text(encoding="utf-8")
        if beside.suffix == ".json":
            value = json.loads(text)
            text = value.get("caption", value.get("text", ""))
        return {"caption": text.strip()}
    except (OSError, ValueError, AttributeError) as error:
        return {"caption": "", "fault": f"{beside.name} holds no caption: {error}"}
