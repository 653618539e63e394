"""Check uploaded images: decode them in child processes, two at a time, with bounded memory and time.

A file of some kB may decode to a gigabyte, and decoders of images have crashed on hostile files. An ingress that ran
out of memory would bring down its node.
"""

import asyncio
import functools
import threading
from concurrent.futures import ThreadPoolExecutor

from cinemo.image import read_image
from pipelines.core.isolation import DeadChildError, Sandbox
from pipelines.serving import dialect
from pipelines.serving.errors import ApiError

AT_ONCE = 2  # images of one process; others wait
TIMEOUT_S = 60.0
_BYTES_A_PIXEL, _REST = 26, 512 << 20  # most that reading takes (cinemo/image.py); for the file and libraries


class ImageChecker:
    """A few child processes that decode images. Use it from one event loop."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._threads, self._own = ThreadPoolExecutor(AT_ONCE, "image"), threading.local()

    async def size(self, image: bytes) -> tuple[int, int]:
        """Height and width of an image in pixels. Raises ApiError (422) for one that cannot be read within limits."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._size, image)

    def _size(self, image: bytes) -> tuple[int, int]:
        if not hasattr(self._own, "sandbox"):
            self._own.sandbox = Sandbox(memory=_BYTES_A_PIXEL * self.max_pixels + _REST)
        try:
            tall, wide = self._own.sandbox.call(size_of, image, self.max_pixels, timeout=TIMEOUT_S)
            return tall, wide
        except ValueError as error:
            message = str(error)
        except (MemoryError, TimeoutError, DeadChildError) as error:
            message = f"image cannot be decoded ({error or 'it takes too much memory'}); save it as JPEG, PNG or WebP"
        raise ApiError(422, f"{dialect.IMAGE}: {message}", dialect.IMAGE, "invalid_image")


@functools.cache
def checker(max_pixels: int) -> ImageChecker:
    """Return the checker of this process, which its services share."""
    return ImageChecker(max_pixels)


def size_of(image: bytes, max_pixels: int) -> tuple[int, int]:
    """Decode an image; returns its height and width. Raises ImageError."""
    tall, wide, _ = read_image(image, max_pixels).shape
    return tall, wide
