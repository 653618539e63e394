"""A layer applied to its input a part at a time, where no gradients are wanted: for memory, and for the caches.

Knows tensors and their bytes. Knows nothing of layers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def in_parts(function: Callable[..., Tensor], states: Sequence[Tensor], dim: int, most_bytes: int) -> Tensor:
    """function(*states), for one that takes every index of `dim` by itself.

    Without gradients, of as many indices at a time as have most_bytes in all states together: what the function needs
    besides them and the result then never stands in memory whole.
    """
    length = states[0].shape[dim]
    some = max(1, most_bytes * length // sum(x.nbytes for x in states))
    if torch.is_grad_enabled() or some >= length:
        return function(*states)
    result: Tensor | None = None
    for begin in range(0, length, some):
        part = function(*(x.narrow(dim, begin, min(some, length - begin)) for x in states))
        if result is None:
            result = part.new_empty([length if axis == dim else size for axis, size in enumerate(part.shape)])
        result.narrow(dim, begin, part.shape[dim]).copy_(part)
    assert result is not None  # there is at least one index
    return result
