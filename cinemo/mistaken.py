"""Recognise what is often mistaken for a video, a photo or an archive, by its first bytes and its size."""

HEAD = 1024  # first bytes that are enough
_WEB_PAGE = (b"<!doctype html", b"<html")
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # that an MP4 or a QuickTime file may begin with


def mistaken(head: bytes, size: int) -> str | None:
    """A phrase such as "is empty (0 bytes)"; None for a file that may be what its name says.

    head: its first bytes. size: bytes of the whole file.
    """
    if size == 0:
        return "is empty (0 bytes)"
    start = head[:HEAD].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, which `git lfs pull` replaces by the file itself"
    return "is a web page, perhaps of a login or an error" if start.startswith(_WEB_PAGE) else None


def lacks_index(head: bytes, size: int) -> bool:
    """Whether a file is an MP4 that ends before its index (moov): cut off, or still being written."""
    at = 0
    while head[at + 4 : at + 8]:
        length, kind = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8]
        if at == 0 and kind not in _MP4_BOXES:
            return False
        if length == 1:  # the length needs 64 bits, which follow
            length = int.from_bytes(head[at + 8 : at + 16], "big")
        if kind in (b"mdat", b"moov"):
            return length == 0 or at + length + (kind == b"mdat") > size  # moov must follow mdat
        if length < 8:
            return False
        at += length
    return 0 < at >= size
