"""Objects to pickle streams and back: the C pickler for what it does as dill would, dill for the
rest.

Arrays are taken out by the reducers of `_pickle` and become references into the data region.
Nothing here copies an array, touches a file or starts a thread.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .._errors import RebuildError
from .._threads.interrupts import CollectorPaused
from . import arrays, outside, whereabouts
from .by_value import constructor
from .region import NoSuchDeviceError, Region

PRIMER = b"\x80\x05\x97\x940\x97\x94."
"""A pickle that puts two out-of-band buffers into memo slots 0 and 1. The memo of a C unpickler
outlives a load but cannot be set from Python, so the slots are filled by unpickling this first."""


def loads(
    skeleton: bytes | memoryview,
    region: Region,
    *,
    pickler: str,
    path: str,
    base_offset: int,
    map_location: Any = None,
    let_go: LetGo | None = None,
) -> Any:
    """Unpickle a skeleton over its data region.

    Args:
        skeleton: the pickle.
        region: the data region; arrays become parts of it, or copies.
        pickler: ``"pickle"`` or ``"dill"``, as the index says.
        path, base_offset: the file and the skeleton's offset in it, for the error.
        map_location: where tensors go, as `torch.load` takes it.
        let_go: called as the skeleton is read, with the offsets of bytes that are not needed any
            more: objects made of them would else take the same memory again.

    Raises:
        RebuildError: an object cannot be built.
    """
    source = _Source(let_go)
    unpickler = unpickler_class(pickler)(
        io.BufferedReader(source, _READ_AHEAD),
        buffers=[region.rest(), storage_maker(region, map_location)],
    )
    unpickler.map_location = map_location
    unpickler.region = region if arrays.begins_with(skeleton, arrays.ARRAYS) else None
    pause = CollectorPaused()
    with pause, pause:
        unpickler.load()
        source.turn_to(memoryview(skeleton), eager=len(skeleton) > whereabouts.MAX_SIZE)
        with _building(unpickler, skeleton, path, base_offset):
            state = unpickler.load()
    source.forget()
    return state


LetGo = Callable[[int, int], None]

_READ_AHEAD = 8 << 10
"""Bytes. The C unpickler copies all of what is read ahead again, once or twice a frame."""

_STEP = 4 << 20
"""Bytes that are read before they are let go of."""


class _Source(io.RawIOBase):
    """The primer and then a skeleton in memory, as the file of an unpickler. Large objects are read
    into memory of their own at once, and nothing is held that was read long ago."""

    def __init__(self, let_go: LetGo | None) -> None:
        self._let_go = let_go
        self.turn_to(memoryview(PRIMER), eager=False)

    def turn_to(self, view: memoryview, *, eager: bool) -> None:
        self._view = view
        self._eager = eager
        self._read = self._gone = 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        low = self._read
        self._read = high = min(low + min(len(target), _STEP), len(self._view))
        target[: high - low] = self._view[low:high]
        if self._eager and high - self._gone >= _STEP:
            self.forget()
        return high - low

    def forget(self) -> None:
        """Let go of what was read."""
        if self._let_go is not None:
            self._let_go(self._gone, self._read)
        self._gone = self._read


def unpickler_class(pickler: str) -> Any:
    """The unpickler for what a pickler wrote."""
    base: Any = pickle.Unpickler
    if pickler == "dill":
        import dill

        base = dill.Unpickler

    class Unpickler(base):  # type: ignore[misc]
        map_location: Any = None
        region: Region | None = None
        """Where the arrays are that memo slot 2 makes, the first global of a skeleton."""

        def find_class(self, module: str, name: str, /) -> Any:
            if self.region is not None and (module, name) == ("numpy", "ndarray"):
                from . import numpy

                region, self.region = self.region, None
                return numpy.maker(region)
            if found := _constructor(module, name, self.map_location):
                return found
            return super().find_class(_module_here(module), name)

    return Unpickler


def _constructor(module: str, name: str, map_location: Any) -> Any:
    """What is called in place of a global, ``None`` where it is that itself."""
    if stand_in := outside.constructor(module, name) or constructor(module, name):
        return stand_in
    root = module.partition(".")[0]
    if arrays.is_another(root):
        return None
    if root == "torch":
        from . import torch

        return torch.constructor(module, name, map_location)
    if root == "jax":
        from . import jax

        return jax.constructor(module, name)
    return None


def _module_here(module: str) -> str:
    if not module.startswith("numpy.") or arrays.is_another("numpy"):
        return module
    from . import numpy

    return numpy.here(module)


def storage_maker(region: Region, map_location: Any) -> Callable[..., Any]:
    """What memo slot 1 is for a load. A tensor and a raw storage may name the same bytes: these
    get one storage."""
    make: Any = None
    made: dict[tuple[int, int], Any] = {}

    def make_storage(_data: object, _order: object, size: int, offset: int, dtype: Any) -> Any:
        nonlocal make
        if make is None:
            from .torch import storage_maker

            make = storage_maker()
        place = offset, size
        if place not in made:
            made[place] = make(region, size, offset, dtype, map_location)
        return made[place]

    return make_storage


@contextmanager
def _building(unpickler: Any, skeleton: Any, path: str, base_offset: int) -> Iterator[None]:
    """Raise a `RebuildError` for whatever the objects of a pickle raise.

    That must be no other error: a FileNotFoundError of an object's own would say that there is no
    checkpoint, a CorruptCheckpointError that this one is damaged.
    """
    known = len(unpickler.memo.copy())
    try:
        yield
    except MemoryError:
        raise
    except Exception as exc:
        found = whereabouts.find(skeleton, len(unpickler.memo.copy()), known, exc)
        by = f"{found.name}: " if found.name else ""
        raise RebuildError(
            path,
            f"state{found.place} cannot be built ({by}{type(exc).__name__}: {exc})",
            None if found.offset is None else base_offset + found.offset,
            exc.hint if isinstance(exc, NoSuchDeviceError) else None,
            found.place,
            found.name,
        ) from exc


def load_foreign(stream: bytes, *, path: str, map_location: Any = None) -> Any:
    """Unpickle what plain ``pickle.dump`` or ``dill.dump`` wrote.

    Raises:
        RebuildError: an object cannot be built.
    """
    unpickler = unpickler_class("dill")(io.BytesIO(stream))
    unpickler.map_location = map_location
    pause = CollectorPaused()
    with pause, pause, _building(unpickler, stream, path, 0):
        return unpickler.load()
