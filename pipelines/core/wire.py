"""Encode a child's answers as JSON and raw buffers: reading a pickle would run code that a hostile child put there.

Decoding creates only numbers, text, bytes, arrays, lists, dictionaries, tuples and exceptions. Named tuples and
exceptions are of this project's classes or Python's built-in ones.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

_OURS = ("cinemo.", "pipelines.")


def pack(value: Any) -> list[Any]:
    """Encode a value: JSON, then the buffers of its arrays and bytes. Raises TypeError for a value of another type."""
    buffers: list[Any] = []
    tree = _tree(value, buffers)
    return [json.dumps(tree).encode(), *buffers]


def unpack(parts: Sequence[bytearray]) -> Any:
    """Decode what `pack` made; arrays share memory with the buffers. Raises ValueError for anything else."""
    try:
        return _value(json.loads(parts[0]), parts[1:])
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"not an answer: {error}") from error


def _tree(value: Any, buffers: list[Any]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_tree(one, buffers) for one in value]
    if isinstance(value, tuple):
        kind = _name(type(value)) if hasattr(value, "_fields") else None
        return {"tuple": [_tree(one, buffers) for one in value], "type": kind}
    if isinstance(value, dict):
        return {"dict": [[key, _tree(one, buffers)] for key, one in value.items()]}
    if isinstance(value, bytes | bytearray):
        buffers.append(value)
        return {"bytes": len(buffers) - 1}
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        buffers.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        return {"array": len(buffers) - 1, "dtype": value.dtype.str, "shape": value.shape}
    if isinstance(value, Exception):
        return {"error": _error(value, buffers)}
    raise TypeError(f"{type(value).__name__} cannot be returned by a child process")


def _error(error: Exception, buffers: list[Any]) -> list[Any]:
    """Encode an exception: [class, argument, ...]; one of another library as its nearest base class that is known."""
    cls = next(cls for cls in type(error).__mro__ if _is_known(cls))
    if cls is not type(error):
        return [_name(cls), f"{type(error).__name__}: {error}"]
    try:
        return [_name(cls), *(_tree(one, buffers) for one in error.__reduce__()[1])]
    except TypeError:
        return [_name(cls), str(error)]


def _value(tree: Any, buffers: Sequence[bytearray]) -> Any:
    if isinstance(tree, list):
        return [_value(one, buffers) for one in tree]
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"tuple": values, "type": None}:
            return tuple(_value(values, buffers))
        case {"tuple": values, "type": name}:
            return _class(name, tuple)(*_value(values, buffers))
        case {"dict": pairs}:
            return {key: _value(one, buffers) for key, one in pairs}
        case {"bytes": index}:
            return bytes(buffers[index])
        case {"array": index, "dtype": name, "shape": shape}:
            dtype = np.dtype(name)
            if dtype.hasobject:
                raise TypeError("an array of objects")
            return np.ndarray(shape, dtype, buffers[index])
        case {"error": [name, *values]}:
            return _class(name, Exception)(*_value(values, buffers))
    raise ValueError(f"a value of {sorted(tree)}")


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _is_known(cls: type) -> bool:
    return cls.__module__ == "builtins" or cls.__module__.startswith(_OURS)


def _class(name: str, base: type) -> Any:
    """Find a class by its name, in the modules that are loaded already. Raises TypeError for one not allowed."""
    module, _, qualname = name.partition(":")
    found = getattr(sys.modules.get(module), qualname, None)
    if not (isinstance(found, type) and issubclass(found, base) and _is_known(found)):
        raise TypeError(f"{name} is no {base.__name__} that a child may return")
    return found
