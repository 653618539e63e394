"""Usual names of columns for videos, images, captions and times.

Case, spaces and punctuation do not matter: `Video Path` is `video_path`.
"""

from collections.abc import Iterable, Sequence

# Earlier groups take precedence; two columns of one group are ambiguous. `*caption` is any name with that ending.
Groups = Sequence[Sequence[str]]

_FILES = ("uri", "url", "path", "file", "file_name", "file_path", "file_uri", "file_url", "full_path", "media")
_LAST = ("relpath", "relative_path", "rel_path", "link")
VIDEO: Groups = (
    ("contentUrl",),  # WebVid's
    ("video_path", "video_uri", "video_url", "video_file", "video_file_path", "video_file_name", "clip_path",
     "clip_uri", "clip_url", "clip_file", "media_path", "mp4"),
    ("video", "clip", *_FILES),
    ("video_name", "clip_name", "video_link", *_LAST),
)  # fmt: skip
IMAGE: Groups = (
    ("image", "image_path", "image_uri", "image_url", "image_file", "image_file_path", "image_file_name", "img",
     "img_path", "img_url", "photo", "photo_path", "photo_url", "picture", "jpg", "png"),
    _FILES,
    ("image_name", "image_link", *_LAST),
)  # fmt: skip
CAPTION: Groups = (
    ("caption", "captions", "cap", "text", "texts", "prompt", "prompts", "text_prompt", "description", "descriptions",
     "sentence", "sentences", "caption_text", "text_caption"),
    ("*caption", "*captions", "video_description", "image_description", "alt_text"),
    ("name", "title"),
)  # fmt: skip
PROMPT: Groups = (("prompt",), *CAPTION[:2])  # in a catalog, where a name or title is not a prompt
MOTION: Groups = (("video_path", "video_uri", "video_url", "video_file", "video_file_name"), ("video",))

_START = ("start", "begin", "start_time", "begin_time", "start_timestamp", "time_start", "t_start", "clip_start",
          "segment_start")  # fmt: skip
_END = ("end", "stop", "end_time", "stop_time", "end_timestamp", "time_end", "t_end", "clip_end", "segment_end")
_SECONDS = ("s", "sec", "secs", "second", "seconds")
_START_S = (*_START, *(f"start_{unit}" for unit in _SECONDS), *(f"start_time_{unit}" for unit in _SECONDS))
_END_S = (*_END, *(f"end_{unit}" for unit in _SECONDS), *(f"end_time_{unit}" for unit in _SECONDS))
# Unit of a video's segment -> names of the columns for its start, its end, and its length (in place of an end).
SEGMENTS: dict[str, tuple[Groups, Groups, Groups]] = {
    "frames": (
        (("start_frame", "begin_frame", "frame_start", "start_frame_index"),),
        (("end_frame", "stop_frame", "frame_end", "end_frame_index"),),
        (("num_frames", "frame_count", "n_frames"),),
    ),
    "milliseconds": (
        (("start_ms", "start_time_ms", "begin_ms"),),
        (("end_ms", "end_time_ms", "stop_ms"),),
        (("duration_ms", "length_ms"),),
    ),
    "seconds": ((_START_S,), (_END_S,), (("duration", "length", *(f"duration_{unit}" for unit in _SECONDS)),)),
}
# Columns with all segments of a video: pairs of start and end in seconds.
PAIRS = ("timestamps", "timestamp", "segments", "segment")


def plain(name: str) -> str:
    """Normalise a column's name for comparisons: without case, spaces and punctuation."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def find(found: Sequence[str], usual: Groups, what: str, flag: str) -> str | None:
    """Find the column with one of the usual names; None when there is none.

    what, flag: what the column holds and the flag that names it, for messages. Raises ValueError when several columns
    match one group; the message lacks its subject, the name of the table.
    """
    for group in usual:
        names = {plain(name) for name in group if not name.startswith("*")}
        endings = tuple(plain(name) for name in group if name.startswith("*"))
        columns = [column for column in found if plain(column) in names or plain(column).endswith(endings)]
        if len(columns) > 1:
            remedy = f"name the right one with {flag}" if flag else "rename or remove the others"
            raise ValueError(f"has several columns that may hold {what}: {', '.join(columns)}; {remedy}")
        if columns:
            return columns[0]
    return None


def pick(found: Sequence[str], asked: str | None, usual: Groups, what: str, flag: str) -> str | None:
    """Find the column that a flag names, by its exact spelling or, if unique, a similar one; without a flag, `find` it.

    Raises ValueError like `find`, and when the column named by the flag is missing or ambiguous.
    """
    if asked is None:
        return find(found, usual, what, flag)
    alike = [column for column in found if column == asked] or [name for name in found if plain(name) == plain(asked)]
    if not alike:
        raise ValueError(f"lacks the column {asked} that {flag} names; found are {listed(found)}")
    if len(alike) > 1:
        raise ValueError(
            f"has several columns like {asked}, which {flag} names: {', '.join(alike)}; rename all but one"
        )
    return alike[0]


def listed(names: Iterable[str]) -> str:
    """Format names for a message: the first 30, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return ", ".join(names[:30]) + more if names else "(none)"


def usual_names(usual: Groups) -> str:
    """Format all usual names for a message."""
    return ", ".join(name for group in usual for name in group if not name.startswith("*"))
