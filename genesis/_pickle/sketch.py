"""A state without its arrays: what is to be called for each is noted, and made for those that are
wanted. It reads no file.

The C unpickler builds the containers as they are; only the constructors of tensors and arrays are
replaced, by one that notes its arguments. Whatever such a note would be wrong in (an object that
looks at its tensors while it is built) makes the whole sketch be given up.
"""

from __future__ import annotations

import datetime
import fnmatch
import io
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NoReturn

from .._options import Only
from .._threads.interrupts import CollectorPaused
from .loading import PRIMER, storage_maker, unpickler_class
from .region import Region

_MAKERS = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.multiprocessing.reductions", "rebuild_typed_storage"),
    ("jax.numpy", "asarray"),
}
_NDARRAY = "numpy", "ndarray"

_PLAIN = {
    *(bool, int, float, complex, str, bytes, type(None)),
    *(datetime.date, datetime.datetime, datetime.timedelta),
}
_DICTS = {dict, OrderedDict}
_OF_TORCH = {"Size", "dtype", "device", "layout", "memory_format"}


class SketchError(Exception):
    """There is something in the state of which nobody can tell what it does with its arrays."""


_LATER = object()


def _later(function: Callable[..., Any]) -> Callable[..., Any]:
    """Stands for a function that makes a tensor, an array or a part of one: gives a call of it as a
    tuple, marked. There are thousands, and nothing else is made as quickly."""

    def note(*args: Any) -> Any:
        return _LATER, function, args

    return note


def _is_later(part: tuple[Any, ...]) -> bool:
    return len(part) == 3 and part[0] is _LATER


def _storage(data: object, order: object, size: int, low: int, dtype: object) -> NoReturn:
    """Stands for the constructor of storages over the data region."""
    raise AssertionError


def _array(shape: object, dtype: object, *where: object) -> NoReturn:
    """Stands for the constructor of arrays over the data region."""
    raise AssertionError


class _Data:
    """The whole data region."""


_DATA = _Data()


def part_of(skeleton: memoryview, only: Only, *, pickler: str, map_location: Any = None) -> Any:
    """The part of a skeleton's state that is asked for, with a note of each call that makes one of
    its tensors or arrays.

    Raises:
        SketchError: something raises where it is given such a note.
        KeyError: there is no such part.
    """
    pause = CollectorPaused()
    # All of the rest is gone again before the collector could look through it.
    with pause, pause:
        return chosen(_sketch(skeleton, pickler, map_location), only)


def _sketch(skeleton: memoryview, pickler: str, map_location: Any) -> Any:
    class Unpickler(unpickler_class(pickler)):  # type: ignore[misc]
        def find_class(self, module: str, name: str, /) -> Any:
            if (module, name) == _NDARRAY:
                return _later(_array)
            found = super().find_class(module, name)
            return _later(found) if (module, name) in _MAKERS else found

    # Buffered, for the unpickler looks ahead then, and calls Python for each opcode otherwise.
    file = io.BufferedReader(io.BytesIO(PRIMER + bytes(skeleton)))
    unpickler = Unpickler(file, buffers=[_DATA, _later(_storage)])
    unpickler.map_location = map_location
    unpickler.load()
    try:
        return unpickler.load()
    except Exception as exc:
        raise SketchError from exc


def chosen(tree: Any, only: Only) -> Any:
    """The part of a state that is asked for, in dicts like those it stands in.

    Args:
        only: a path of keys joined by ``/``, a pattern for such paths, or a function that says of a
            path whether what stands there is wanted, with all below.

    Raises:
        KeyError: there is no such part.
    """
    if not isinstance(only, str):
        found = _chosen(tree, only, "")
    else:
        found = _at(tree, only)
        if found is _NOTHING and not _MAGIC.isdisjoint(only):
            found = _chosen(tree, re.compile(fnmatch.translate(only)).match, "")
    if found is _NOTHING:
        keys = ", ".join(map(repr, list(tree)[:10])) if isinstance(tree, dict) else "no keys"
        raise KeyError(f"nothing in the state is what only={only!r} asks for; it has {keys}")
    return found


_NOTHING: Any = object()
_MAGIC = frozenset("*?[")


def _at(part: Any, path: str) -> Any:
    """What stands at a path, in dicts of that alone."""
    if type(part) not in _DICTS:
        return _NOTHING
    steps = path.split("/")
    for count in range(1, len(steps) + 1):
        head, rest = "/".join(steps[:count]), "/".join(steps[count:])
        for key in (head, int(head)) if _NUMBER.fullmatch(head) else (head,):
            if key in part:
                found = _at(part[key], rest) if rest else part[key]
                if found is not _NOTHING:
                    return type(part)([(key, found)])
    return _NOTHING


_NUMBER = re.compile(r"-?[0-9]{1,18}")


def _chosen(part: Any, wanted: Callable[[str], object], path: str) -> Any:
    if path and wanted(path):
        return part
    if type(part) not in _DICTS:
        return _NOTHING
    below = f"{path}/" if path else ""
    found = [(key, _chosen(value, wanted, f"{below}{key}")) for key, value in part.items()]
    kept = [(key, value) for key, value in found if value is not _NOTHING]
    return type(part)(kept) if kept else _NOTHING


def ranges(part: Any) -> list[tuple[int, int]]:
    """Where the bytes of a sketch stand in the data region: first and last but one.

    Raises:
        SketchError: it holds something that is not known.
    """
    found: list[tuple[int, int]] = []
    seen: set[int] = set()
    waiting = [part]
    while waiting:
        one = waiting.pop()
        kind = type(one)
        if kind in _PLAIN or id(one) in seen:
            continue
        seen.add(id(one))
        if kind is tuple and _is_later(one):
            _, function, args = one
            if function is _storage:
                _, _, size, low, _ = args
                found.append((low, low + size))
                continue
            if function is _array and len(args) > 2:
                found.append(_extent(*args))
            waiting += args
        elif kind in _DICTS:
            waiting += one.keys()
            waiting += one.values()
        elif kind in (list, tuple):
            waiting += one
        elif not _is_known(one):
            raise SketchError(f"a {kind.__module__}.{kind.__qualname__}")
    return found


def _extent(
    shape: tuple[int, ...], dtype: Any, _data: object, low: int, strides: Any = None
) -> tuple[int, int]:
    if strides is None:
        size = dtype.itemsize
        for length in shape:
            size *= length
        return low, low + size
    steps = [(length - 1) * step for length, step in zip(shape, strides, strict=True)]
    before, after = sum(min(step, 0) for step in steps), sum(max(step, 0) for step in steps)
    return low + before, low + after + dtype.itemsize


def _is_known(thing: Any) -> bool:
    """Whether a thing has no arrays of its own in it."""
    kind = type(thing)
    if thing is _DATA:
        return True
    root = kind.__module__.partition(".")[0]
    if root == "torch":
        return kind.__name__ in _OF_TORCH
    dtype = getattr(thing, "dtype", thing)
    return root == "numpy" and not getattr(dtype, "hasobject", True)


def made(part: Any, region: Region, *, map_location: Any = None) -> Any:
    """A sketch with its arrays, over a region that holds their bytes.

    Raises:
        SketchError: one cannot be made; who loads the whole hears why.
    """
    try:
        return _Making(region, map_location).make(part)
    except MemoryError:
        raise
    except Exception as exc:
        raise SketchError from exc


class _Making:
    def __init__(self, region: Region, map_location: Any) -> None:
        self._region = region
        self._storage = storage_maker(region, map_location)
        self._made: dict[int, Any] = {}
        self._rest: Any = None

    def make(self, part: Any) -> Any:
        kind = type(part)
        if kind in _PLAIN:
            return part
        if id(part) not in self._made:
            if kind in _DICTS or kind is list:
                self._made[id(part)] = part  # first: it may hold itself
                self._fill(part)
            else:
                self._made[id(part)] = self._of(part)
        return self._made[id(part)]

    def _fill(self, container: Any) -> None:
        places = container.items() if type(container) in _DICTS else enumerate(container)
        for place, value in list(places):
            container[place] = self.make(value)

    def _of(self, part: Any) -> Any:
        if part is _DATA:
            return self._region.rest()
        if type(part) is not tuple:
            return part
        if not _is_later(part):
            return tuple(map(self.make, part))
        _, function, args = part
        if function is _storage:
            return self._storage(*args)
        arguments = map(self.make, args)
        return self._array(*arguments) if function is _array else function(*arguments)

    def _array(self, shape: Any, dtype: Any, *where: Any) -> Any:
        import numpy

        from .numpy import maker

        if not where:
            return numpy.ndarray(shape, dtype)
        data, low, *strides = where
        return maker(self._region)(shape, dtype, data, low, strides[0] if strides else None)
