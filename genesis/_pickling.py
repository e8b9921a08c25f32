"""Objects to pickle streams and back: the C pickler for what it does as dill would, dill for the
rest.

Arrays are taken out by the reducers of `_frameworks` and become references into the data region.
Nothing here copies an array, touches a file or starts a thread.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import _culprit, _frameworks, _outside, _whereabouts
from ._by_value import ByValue, NeedsByValueError, constructor, has_name
from ._errors import RebuildError, UnpicklableStateError
from ._interrupts import CollectorPaused
from ._once import Once
from ._options import Sharded
from ._picklers import Make, Reducers, Skeleton, by_dill, by_names, by_value, dump
from ._plan import DataRegion, Plan, RefusedObjectError
from ._proof import problem_of
from ._recursion import has_stack, recursion_limit
from ._region import Region

_DEEP = 10_000
"""Recursion limit of the C pickler for what is nested deeply: three levels of it are one of an
object's, and take 600 bytes of stack."""

_DEEP_IN_PYTHON = 60_000
"""The same of dill's pickler, most of whose frames are not on the stack: twelve are one of an
object's."""

_PRIMER = b"\x80\x05\x97\x940\x97\x94."
"""A pickle that puts two out-of-band buffers into memo slots 0 and 1. The memo of a C unpickler
outlives a load but cannot be set from Python, so the slots are filled by unpickling this first."""


def plan(state: object, *, sharded: Sharded = "refuse") -> Plan:
    """Pickle the structure of `state` and lay out its arrays, without copying them.

    The plan refers to the arrays' memory: it holds the values they have when they are copied.

    Args:
        sharded: what to do with a tensor of which this process holds one part of several.
            ``"refuse"`` it; ``"allow"``: save the part, for a path of each rank's own.

    Raises:
        UnpicklableStateError: neither pickle nor dill can save something in it; names its place.
    """
    attempts = _Attempts(state, sharded)
    skeleton, region, pickler = attempts.lay_out(None)
    if region.lessons is not None:
        skeleton, region, pickler = attempts.lay_out(region.lessons)
    return Plan(region, skeleton, pickler=pickler, torch_storages=region.shared is not None)


_Result = tuple[Skeleton, DataRegion, str]


class _Attempts:
    """The ways in which one state is pickled, from the quickest on, until one of them works.

    First the C pickler alone, which writes functions and classes as names. Where another program
    could not load those, or there are none, `ByValue` reduces them for it. What is left is dill's,
    and where dill fails too, names of ``__main__`` have to do. An object's own method that reduces
    it is called once in all of that.
    """

    def __init__(self, state: object, sharded: Sharded) -> None:
        self._state = state
        self._sharded = sharded
        self._once = Once()
        self._ways = [self._by_names, self._by_value, self._by_dill, self._by_names_of_main]
        self._as_names: set[int] = set()
        """Ids of functions and classes of ``__main__`` that cannot be saved by value."""
        self._error: Exception | None = None
        """What the way that got furthest raised."""

    def lay_out(self, hints: Any) -> _Result:
        """Pickle the state in the first way that works, which is the first one of the next time.

        Args:
            hints: what an earlier layout learned.
        """
        while self._ways:
            try:
                return self._ways[0](hints)
            except NeedsByValueError:
                pass
            except Exception as exc:
                self._judge(exc)
            del self._ways[0]
        error = self._error or pickle.PicklingError("no way")
        raise self._unpicklable(error) from error

    def _judge(self, exc: Exception) -> None:
        """Return where another way may do better."""
        if isinstance(exc, MemoryError | UnpicklableStateError) or not self._once.blames(exc):
            raise exc
        own = exc is self._once.error and not isinstance(exc, RecursionError)
        if own or _is_final(exc):
            raise self._unpicklable(exc) from exc
        if self._ways[0] != self._by_names_of_main:
            self._error = exc
        if isinstance(exc, RecursionError):
            self._ways[1:] = [way for way in self._ways[1:] if way == self._by_dill]

    def _dump(self, make: Make, hints: Any) -> tuple[Skeleton, DataRegion]:
        region = DataRegion(hints, sharded=self._sharded)
        try:
            return dump(make, self._state, region), region
        except RecursionError:
            # From Python 3.12 on, C code has a limit of its own.
            if sys.version_info >= (3, 12) or not has_stack():
                raise
        region = DataRegion(hints, sharded=self._sharded)
        with recursion_limit(_DEEP):
            return dump(make, self._state, region), region

    def _by_names(self, hints: Any) -> _Result:
        skeleton, region = self._dump(by_names(self._once, main=False), hints)
        if skeleton.names_main():
            raise NeedsByValueError
        return skeleton, region, "pickle"

    def _by_names_of_main(self, hints: Any) -> _Result:
        return *self._dump(by_names(self._once, main=True), hints), "pickle"

    def _by_value(self, hints: Any) -> _Result:
        return self._proven(by_value, hints)

    def _by_dill(self, hints: Any) -> _Result:
        with recursion_limit(_DEEP_IN_PYTHON if has_stack() else 0):
            return self._proven(by_dill, hints)

    def _proven(self, make: Callable[[Once, ByValue], Make], hints: Any) -> _Result:
        """Pickle by value, until all that was pickled so can be made again."""
        while True:
            words = ByValue(self._as_names)
            problem: Exception | None = None
            try:
                skeleton, region = self._dump(make(self._once, words), hints)
                problem = problem_of(words.objects, self._once, self._as_names)
            except Exception as exc:
                whole = isinstance(exc, RecursionError) or _is_of_a_change(exc)
                if whole or not self._once.blames(exc):
                    raise
                problem = exc
            if problem is None:
                return skeleton, region, "dill" if words.used else "pickle"
            if not self._learn(words.objects):
                raise problem

    def _learn(self, objects: list[Any]) -> bool:
        """Find what cannot be saved by value alone, the innermost first, and can be named."""
        known = len(self._as_names)
        for obj in reversed(objects):
            if has_name(obj) and not self._can_be_saved(obj):
                self._as_names.add(id(obj))
        return len(self._as_names) > known

    def _can_be_saved(self, obj: Any) -> bool:
        """Whether a function or class can be saved by value, apart from the state."""
        try:
            region = DataRegion(sharded=self._sharded)
            dump(by_value(self._once, ByValue(self._as_names)), obj, region)
        except Exception as exc:
            if not self._once.blames(exc):
                raise
            return False
        return problem_of([obj], self._once, self._as_names) is None

    def _unpicklable(self, exc: Exception) -> UnpicklableStateError:
        """The error that names the place of what cannot be saved; `exc` is a pickler's."""
        pause = CollectorPaused()
        with pause, pause:
            place, error = _culprit.find(self._state, self._asked()) or ("", exc)
        return _named(place, error)

    def _asked(self) -> _culprit.Asked:
        """What the search for a culprit asks: the reducers of a pickling that places nothing."""
        region = DataRegion(sharded=self._sharded)
        words = ByValue(self._as_names)
        reducers = Reducers(self._once, region, words)

        def save(obj: Any) -> bool:
            make: Any = by_dill(self._once, words)
            if type(obj) not in make.dispatch:
                return False
            make(Skeleton(), region).dump(obj)
            return True

        return _culprit.Asked(lambda obj: reducers[type(obj)](obj), words.leaves, save)


def _named(place: str, error: Exception) -> UnpicklableStateError:
    if isinstance(error, _outside.OutsideError | RefusedObjectError):
        return UnpicklableStateError(place, str(error), error.hint)
    problem = f"{type(error).__name__}: {error}"
    if _is_of_a_change(error):
        problem = f"a dict, set or deque was changed while it was saved ({error})"
        hint = "another thread writes to it: save a copy made under that thread's lock, or wait"
        return UnpicklableStateError(place, problem, hint)
    return UnpicklableStateError(place, problem)


def _is_final(error: Exception) -> bool:
    """Whether dill would meet the same thing."""
    refused = isinstance(error, _outside.OutsideError | RefusedObjectError)
    return refused or _is_of_a_change(error)


def _is_of_a_change(error: Exception) -> bool:
    """Whether a container changed while the pickler went through it."""
    return isinstance(error, RuntimeError) and "during iteration" in str(error)


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
    unpickler = _unpickler(pickler)(
        io.BufferedReader(source, _READ_AHEAD),
        buffers=[region.rest(), _storage_maker(region, map_location)],
    )
    unpickler.map_location = map_location
    unpickler.region = region if _begins(skeleton, _frameworks.ARRAYS) else None
    pause = CollectorPaused()
    with pause, pause:
        unpickler.load()
        source.turn_to(memoryview(skeleton), eager=len(skeleton) > _whereabouts.MAX_SIZE)
        with _building(unpickler, skeleton, path, base_offset):
            state = unpickler.load()
    source.forget()
    return state


def keeps_arrays_apart(skeleton: bytes | memoryview) -> bool:
    """Whether its writer promises that no two arrays share a byte of the data region."""
    return any(_begins(skeleton, preamble) for preamble in _frameworks.PREAMBLES)


def _begins(skeleton: bytes | memoryview, opcodes: bytes) -> bool:
    return skeleton[: len(opcodes)] == opcodes


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
        self.turn_to(memoryview(_PRIMER), eager=False)

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


def _unpickler(pickler: str) -> Any:
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
                from ._frameworks import numpy

                region, self.region = self.region, None
                return numpy.maker(region)
            if found := _constructor(module, name, self.map_location):
                return found
            return super().find_class(_module_here(module), name)

    return Unpickler


def _constructor(module: str, name: str, map_location: Any) -> Any:
    """What is called in place of a global, ``None`` where it is that itself."""
    if stand_in := _outside.constructor(module, name) or constructor(module, name):
        return stand_in
    root = module.partition(".")[0]
    if _frameworks.is_another(root):
        return None
    if root == "torch":
        from ._frameworks import torch

        return torch.constructor(module, name, map_location)
    if root == "jax":
        from ._frameworks import jax

        return jax.constructor(module, name)
    return None


def _module_here(module: str) -> str:
    if not module.startswith("numpy.") or _frameworks.is_another("numpy"):
        return module
    from ._frameworks import numpy

    return numpy.here(module)


def _storage_maker(region: Region, map_location: Any) -> Callable[..., Any]:
    """A tensor and a raw storage may name the same bytes: these get one storage."""
    make: Any = None
    made: dict[tuple[int, int], Any] = {}

    def make_storage(_data: object, _order: object, size: int, offset: int, dtype: Any) -> Any:
        nonlocal make
        if make is None:
            from ._frameworks.torch import storage_maker

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
        found = _whereabouts.find(skeleton, len(unpickler.memo.copy()), known, exc)
        by = f"{found.name}: " if found.name else ""
        raise RebuildError(
            path,
            f"state{found.place} cannot be built ({by}{type(exc).__name__}: {exc})",
            None if found.offset is None else base_offset + found.offset,
            place=found.place,
            name=found.name,
        ) from exc


def load_foreign(stream: bytes, *, path: str, map_location: Any = None) -> Any:
    """Unpickle what plain ``pickle.dump`` or ``dill.dump`` wrote.

    Raises:
        RebuildError: an object cannot be built.
    """
    unpickler = _unpickler("dill")(io.BytesIO(stream))
    unpickler.map_location = map_location
    pause = CollectorPaused()
    with pause, pause, _building(unpickler, stream, path, 0):
        return unpickler.load()
