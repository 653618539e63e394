"""Open and list places by their absolute URI (core/storage.py).

A place is a local path, one of fsspec's URLs (s3://, gs://, https://...), or a chain in which each link lies in the
next (`zip://a.mp4::s3://bucket/x.zip`).
"""

import contextlib
import errno
import functools
import ipaddress
import os
import re
import socket
import unicodedata
import urllib.parse
from typing import Any, BinaryIO, cast

import fsspec.core

from pipelines.core import storage
from pipelines.core.patience import REFUSED, patient, retried
from pipelines.sources.rows import is_utf8

STREAM_BLOCK = 4 << 20  # bytes per request, for files that are read from start to end
# IPv6 addresses that stand for an IPv4 address, in their last 32 bits: mapped, compatible, translated, NAT64.
_OF_IPV4 = [ipaddress.IPv6Network(one) for one in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96")]
PRIVATE_HOSTS = "CINEMO_PRIVATE_HOSTS"  # variable: private hosts that lists may name, separated by commas
# Schemes that a list may name in addition to its own. Others, such as ftp:// and webhdfs://, could reach any server.
_LISTED = {
    *("file", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"),
    *("zip", "tar", "simplecache", "filecache", "blockcache"),
}

# Folders of thumbnails, deleted files and archives' metadata, in lower case: of Synology, QNAP, Windows, Linux, macOS.
_SYSTEM_FOLDERS = ("@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx")

_WINDOWS = re.compile(r"[A-Za-z]:\\|\\\\")  # start of an absolute Windows path


def file_of(name: str, folder: str, cell: str) -> str:
    """The uri of a file that a cell names, relative to the folder of its table.

    A local file may also have the name in another Unicode form: NFD in archives from a Mac, NFC elsewhere.
    cell: its place, for messages. Raises ValueError for a value that cannot name a file.
    """
    if "\0" in name:
        raise ValueError(f"{cell} holds a zero byte")
    if _WINDOWS.match(name) and is_utf8(name):
        raise ValueError(f"{cell} is {name}, a path of a Windows machine; write it relative to the list")
    uri = storage.resolve(folder, name)
    try:
        check_listed(uri, folder)
    except ValueError as error:
        raise ValueError(f"{cell} is {name}: {error}") from None
    if name.isascii() or not storage.is_local(uri) or os.path.exists(uri):
        return uri
    other_forms = (storage.resolve(folder, unicodedata.normalize(form, name)) for form in ("NFC", "NFD"))
    return next(filter(os.path.exists, other_forms), uri)


def check_listed(uri: str, source: str) -> None:
    """Refuse an address in a list that a stranger may have written. source: uri of the list's folder.

    Host names that resolve to a private address are refused when they are opened. Raises ValueError for a private
    address, and for a scheme that is neither common nor the list's own.
    """
    links = [] if storage.is_local(uri) else uri.split("::")
    for link in (link for link in links if not os.path.isabs(link)):
        scheme = link.partition("://")[0]
        if scheme not in _LISTED and f"{scheme}://" not in source:
            raise ValueError(f"{scheme}:// is not opened for a list; use a folder, s3://, gs:// or https://")
        host = _host(link)
        if is_private(host) and host not in (_host(source), *_allowed()):
            raise ValueError(f"{host} {REFUSED}; to let lists name it, set {PRIVATE_HOSTS}={host}")


def is_private(host: str) -> bool:
    """Whether a host is written as an address of this machine or of a private network."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.version == 6 and any(address in network for network in _OF_IPV4):
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return not address.is_global or address.is_multicast or getattr(address, "is_site_local", False)
    return False


def _host(link: str) -> str:
    return urllib.parse.urlsplit(link).hostname or ""  # raises ValueError for IPv6, which :: splits as a chain


def _allowed() -> list[str]:
    return os.environ.get(PRIVATE_HOSTS, "").split(",")


def public_socket(
    address: Any, remedy: str = f"to open a host that leads there, set {PRIVATE_HOSTS}=HOST"
) -> socket.socket:
    """Make the socket for a connection, to a public address only: host names and redirects may lead anywhere."""
    family, kind, protocol, _, target = address
    if is_private(str(target[0]).partition("%")[0]):
        raise OSError(errno.EACCES, f"{target[0]} {REFUSED}; {remedy}")
    return socket.socket(family, kind, protocol)


async def _public_client(**arguments: Any) -> Any:
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=public_socket), **arguments)


def _options(uri: str) -> dict[str, Any]:
    """fsspec's arguments for a uri: web servers only at public addresses, unless the uri names a private one.

    Such a uri was given by the user, or has passed `check_listed`.
    """
    links = [link for link in uri.split("::") if link.startswith(("http://", "https://"))]
    if not links or any(is_private(host) or host in _allowed() for host in map(_host, links)):
        return {}
    guarded = {"get_client": _public_client}
    return guarded if "::" not in uri else {link.partition("://")[0]: guarded for link in links}


@functools.lru_cache(maxsize=8)
def _archive(root: str) -> Any:
    """The file system of an archive such as a zip, cached so that its directory is not read for each of its videos."""
    files = fsspec.core.url_to_fs(root, **_options(root))[0]
    _retry_reads(root, getattr(files, "fo", None))
    return files


def locate(uri: str) -> tuple[Any, str]:
    """Find fsspec's file system of an absolute uri, and the path in it.

    Raises ValueError, naming the package to install, when the driver is missing; OSError when an outer link of a chain
    cannot be opened.
    """
    if storage.is_local(uri):
        return fsspec.filesystem("file"), uri
    before, link, after = storage.split(uri)
    try:
        if after and not before:
            files = _archive(f"{link.partition('://')[0]}://{after}")
            return files, files._strip_protocol(link)
        return fsspec.core.url_to_fs(uri, **_options(uri))
    except ImportError as error:
        raise ValueError(f"{uri} cannot be opened: {error}; pip install that package on every node") from error
    except ValueError as error:
        raise ValueError(f"{uri} cannot be opened: {error}; use a path, or a URL such as s3:// or https://") from error


@patient
def open_binary(uri: str, block: int = STREAM_BLOCK, cache: str = "readahead") -> BinaryIO:
    """Open an absolute uri for reading; faults of a remote storage are retried, also those of later reads.

    block, cache: bytes per request and fsspec's cache type, for remote files.
    """
    if storage.is_local(uri):
        return open(uri, "rb")
    files, path = locate(uri)
    try:
        file = files.open(path, "rb", block_size=block, cache_type=cache)
    except FileNotFoundError as error:
        _raise_refusal(error)
        raise
    _retry_reads(uri, file)
    with contextlib.suppress(AttributeError):  # io.BytesIO has no attributes, and needs none
        file._files = files  # keep the file system: when an archive's is collected, it closes its files
    return cast(BinaryIO, file)


def _retry_reads(uri: str, file: Any) -> None:
    """Make a remote file that is read by several requests retry each of them."""
    if fetch := getattr(getattr(file, "cache", None), "fetcher", None):
        file.cache.fetcher = functools.partial(retried, uri, fetch)


def _raise_refusal(error: FileNotFoundError) -> None:
    """Raise OSError if a private address was refused: fsspec reports every failure over HTTP as a missing file."""
    if REFUSED in str(error.__cause__):
        raise OSError(str(error.__cause__)) from error


@patient
def is_file(uri: str) -> bool:
    if storage.is_local(uri):
        return os.path.isfile(uri)
    files, path = locate(uri)
    try:
        return bool(files.info(path)["type"] == "file")  # isfile returns False for every fault, and GETs over HTTP
    except FileNotFoundError as error:
        _raise_refusal(error)
        return False


@patient
def is_folder(uri: str) -> bool:
    if storage.is_local(uri):
        return os.path.isdir(uri)
    files, path = locate(uri)
    return bool(files.isdir(path))


@patient
def entries(folder: str) -> list[tuple[str, bool]]:
    """List (name, whether it is a folder) of a folder's entries, sorted by full name.

    Hidden entries and folders of the system (_SYSTEM_FOLDERS) are left out.
    """
    if storage.is_local(folder):
        with os.scandir(folder) as found:
            names = [(entry.name, entry.is_dir()) for entry in found if not _loops(folder, entry)]
    else:
        files, path = locate(folder)
        listed = files.ls(path, detail=True)
        files.invalidate_cache(path)  # the driver would keep every listing, of millions of names
        at = path.rstrip("/")
        inside = [(info["name"].rstrip("/"), info["type"] == "directory") for info in listed]
        names = [(name.rpartition("/")[2], is_folder) for name, is_folder in inside if name != at]
    shown = [
        (name, is_folder)
        for name, is_folder in names
        if not name.startswith(".") and not (is_folder and name.lower() in _SYSTEM_FOLDERS)
    ]
    return sorted(shown, key=lambda entry: entry[0] + "/" * entry[1])


def _loops(folder: str, entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a link to a folder that contains it."""
    if not entry.is_symlink() or not entry.is_dir():
        return False
    return f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(entry.path)}/")
