"""Distinguish a storage that fails from a file that is missing or damaged, and retry what the storage failed at.

A reset, a timeout, 503 SlowDown, a failing name server or expired credentials say nothing about the file: they are
retried with exponential backoff and jitter. If they last, a StorageError stops the job; it never becomes a reject.
"""

import contextlib
import errno
import functools
import math
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Concatenate, ParamSpec, TypeVar

import tenacity

from cinemo.errors import first_line

# Variable: seconds for which faults are retried. Jobs set it for all their processes; without it, as in the service,
# nothing is retried.
VARIABLE = "CINEMO_STORAGE_PATIENCE_S"
JOB_PATIENCE_S = 300
LONGEST_WAIT_S = 30.0  # between two tries
REFUSED = "is a private address"  # part of an error of sources/places.py, for which waiting does not help

# Names of exceptions, or of their base classes: of Python, botocore, aiohttp, google.auth and requests.
_FAULTS = {
    *("ConnectionError", "TimeoutError", "HTTPClientError", "ResponseParserError", "IncompleteRead"),
    *("ClientConnectionError", "ClientPayloadError", "TransportError", "GoogleAuthError", "NoCredentialsError"),
    *("PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError", "SSOError"),
}
_NUMBERS = {
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    socket.EAI_AGAIN,
}
_STATUSES = {408, 425, 429}  # and all from 500 on
_CODES = {  # of S3; 400 is what a HEAD with an expired token gets
    *("400", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    *("RequestTimeTooSkewed", "RequestTimeout", "SlowDown"),
}
_MESSAGES = re.compile(  # of pyarrow, whose exceptions have no attributes
    r"AWS Error (?!ACCESS_DENIED|NO_SUCH_|RESOURCE_NOT_FOUND|INVALID_)"
    r"|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNKNOWN|ABORTED)"
)

P = ParamSpec("P")
R = TypeVar("R")
_limit: ContextVar[float] = ContextVar("limit", default=math.inf)
_under_way: ContextVar[int] = ContextVar("under_way", default=0)


class StorageError(OSError):
    """The storage failed, which says nothing about the file. The message names the place."""

    waited = False  # whether this process has already retried


def is_fault(error: BaseException) -> bool:
    """Whether an exception, or its cause, means that the storage failed, and that waiting may help."""
    if isinstance(error, StorageError):
        return not error.waited
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ if cause.__suppress_context__ else cause.__context__
    if any(REFUSED in str(link) for link in chain):
        return False
    if isinstance(error, FileNotFoundError) and any(getattr(link, "errno", 0) == socket.EAI_NONAME for link in chain):
        return False  # a web address whose host does not exist
    return any(map(_is_fault, chain))


def _is_fault(error: BaseException) -> bool:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's ClientError
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = response.get("Error", {}).get("Code")
    else:
        status, code = getattr(error, "status", None) or getattr(error, "code", None), None
    if isinstance(status, int) and (status >= 500 or status in _STATUSES):
        return True
    if code in _CODES or _FAULTS & {kind.__name__ for kind in type(error).__mro__}:
        return True
    number = error.errno if isinstance(error, OSError) else 0
    return number in _NUMBERS or (number is None and bool(_MESSAGES.search(str(error))))


def retried(place: str, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Call a function, retry it while the storage fails. place: URI for messages. Raises StorageError if that lasts."""
    patience, limit = float(os.environ.get(VARIABLE) or 0), _limit.get()
    # Only remote places are waited for: if reading a local file hangs, such as a pipe, the file is at fault.
    mark = _under_way.set(_under_way.get() + ("://" in place))
    try:
        try:
            return function(*arguments, **options)  # first without tenacity: its 40 us add up over millions of files
        except Exception as error:
            if not is_fault(error) or not min(patience, limit):
                raise
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_fault),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_S),
            stop=tenacity.stop_after_delay(min(patience, limit)),
            reraise=True,
        )(function, *arguments, **options)
    except Exception as error:
        if not is_fault(error) or limit < math.inf:
            raise
        what = f"the storage fails at {place} ({type(error).__name__}: {first_line(error)})"
        what = str(error) if isinstance(error, StorageError) else what
        more = f", also after {patience:g} s; when it answers again, the same command continues from here"
        failed = StorageError(what + more * bool(patience))
        failed.waited = bool(patience)
        raise failed from error
    finally:
        _under_way.reset(mark)


def patient(function: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
    """Decorate a function whose first argument is a URI, so that it is retried while the storage fails."""

    @functools.wraps(function)
    def call(uri: str, *arguments: P.args, **options: P.kwargs) -> R:
        return retried(uri, function, uri, *arguments, **options)

    return call


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Within the block, in this thread, retry faults for at most so many seconds, and raise exceptions unchanged."""
    mark = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(mark)


def is_waiting() -> bool:
    """Whether this thread waits for a remote storage."""
    return _under_way.get() > 0
