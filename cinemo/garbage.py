"""Control of Python's garbage collector: a full collection searches all objects, and stops all threads meanwhile.

torch, transformers and diffusers make 700,000 objects that live as long as the process. Searching them takes half a
second in each full collection.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def exempt_from_collections() -> None:
    """Collect garbage once, then exempt every object that exists now from later collections."""
    gc.collect()
    gc.freeze()


@contextmanager
def without_collections() -> Iterator[None]:
    """Switch collections off during a block, then exempt every object that exists from later ones.

    For blocks that import and load much: collections would take a quarter of the time of the imports.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
