"""Objects to pickle streams and back: the C pickler for what it does as dill would, dill for the
rest.

Arrays are taken out by the reducers of `_frameworks` and become references into the data region.
Nothing here copies an array, touches a file or starts a thread.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import EnumType
from operator import attrgetter, methodcaller
from types import FunctionType
from typing import Any, Protocol

from . import _culprit, _frameworks, _outside, _whereabouts
from ._errors import RebuildError, UnpicklableStateError
from ._interrupts import CollectorPaused
from ._options import Sharded
from ._plan import Call, DataRegion, Plan, RefusedObjectError

_PROTOCOL = 5

_PRIMER = b"\x80\x05\x97\x940\x97\x94."
"""A pickle that puts two out-of-band buffers into memo slots 0 and 1. The memo of a C unpickler
outlives a load but cannot be set from Python, so the slots are filled by unpickling this first."""


class _Skeleton(list[bytes]):
    """What a pickler writes, piece by piece; large bytes objects are kept, not copied."""

    def behind(self, opcodes: bytes) -> _Skeleton:
        if opcodes:
            self.insert(0, opcodes)
        return self

    def mentions_main(self) -> bool:
        """Whether it may name something of `__main__`, which dill saves by value. A string of that
        name does no harm: dill then saves what the C pickler would have."""
        return any(b"__main__" in part for part in self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.append(data if type(data) is bytes else bytes(data))


def plan(state: object, *, sharded: Sharded = "refuse") -> Plan:
    """Pickle the structure of `state` and lay out its arrays, without copying them.

    The plan refers to the arrays' memory: it holds the values they have when they are copied.

    Args:
        sharded: what to do with a tensor of which this process holds one part of several.
            ``"refuse"`` it; ``"allow"``: save the part, for a path of each rank's own.

    Raises:
        UnpicklableStateError: neither pickle nor dill can save something in it; names its place.
    """
    skeleton, region, pickler = _pickle(state, None, sharded)
    if region.lessons is not None:
        skeleton, region, pickler = _pickle(state, region.lessons, sharded)
    return Plan(region, skeleton, pickler=pickler, torch_storages=region.shared is not None)


def _pickle(state: object, hints: Any, sharded: Sharded) -> tuple[_Skeleton, DataRegion, str]:
    region = DataRegion(hints, sharded=sharded)
    try:
        skeleton = _dump(_c_pickler, state, region)
    except Exception as exc:
        # Whatever else made the C pickler fail, dill may know better, and if not, its error is the
        # one that counts.
        if _is_final(exc):
            raise _unpicklable(state, exc, sharded) from exc
    else:
        if not skeleton.mentions_main():
            return skeleton, region, "pickle"
    region = DataRegion(hints, sharded=sharded)
    try:
        return _dump(_dill_pickler(), state, region), region, "dill"
    except MemoryError:
        raise
    except Exception as exc:
        raise _unpicklable(state, exc, sharded) from exc


class _Pickler(Protocol):
    memo: Any

    def dump(self, obj: object, /) -> None: ...


def _dump(make: Callable[..., _Pickler], state: object, region: DataRegion) -> _Skeleton:
    opcodes, memo = _frameworks.opening(state, region)
    skeleton = _Skeleton()
    pickler = make(skeleton, region)
    pickler.memo = memo
    pickler.dump(state)
    region.close()
    return skeleton.behind(opcodes)


def _reducer_for(cls: type, region: DataRegion) -> _frameworks.Reducer | None:
    """How instances of a class are reduced by either pickler; asked once a class and pickler."""
    return _outside.reducer_for(cls) or _frameworks.reducer_for(cls, region)


_own_reduction = methodcaller("__reduce_ex__", _PROTOCOL)
_reduction_of_call = attrgetter("reduction")


class _Reducers(dict[type, _frameworks.Reducer]):
    """The dispatch table of one C pickler, filled with each class that is met.

    What most objects need is a call in C: only for arrays does the pickler come back to Python.
    """

    def __init__(self, region: DataRegion) -> None:
        super().__init__(copyreg.dispatch_table)
        self[Call] = _reduction_of_call
        self._region = region

    def __missing__(self, cls: type) -> _frameworks.Reducer:
        if issubclass(cls, type):
            raise KeyError(cls)  # a class: the pickler knows how
        reducer = _reducer_for(cls, self._region) or _own_reduction
        self[cls] = reducer
        return reducer


def _c_pickler(file: _Skeleton, region: DataRegion) -> _Pickler:
    pickler = pickle.Pickler(file, _PROTOCOL)
    pickler.dispatch_table = _Reducers(region)
    return pickler


def _dill_pickler() -> Callable[..., _Pickler]:
    """dill's pickler with our reducers. Made here because importing dill changes the pickle module
    for the whole process."""
    import dill

    class DillPickler(dill.Pickler):  # type: ignore[misc]
        def __init__(self, file: _Skeleton, region: DataRegion) -> None:
            super().__init__(file, protocol=_PROTOCOL)
            self._region = region
            self._found: dict[type, _frameworks.Reducer | None] = {Call: _reduction_of_call}

        def reducer_override(self, obj: Any) -> Any:
            cls = type(obj)
            if cls is range:  # which dill would have evaluated
                return obj.__reduce__()
            if (cls is FunctionType or issubclass(cls, type)) and _goes_by_name(obj):
                return obj.__qualname__
            if cls not in self._found:
                self._found[cls] = _reducer_for(cls, self._region)
            reducer = self._found[cls]
            return NotImplemented if reducer is None else reducer(obj)

    return DillPickler


def _goes_by_name(obj: Any) -> bool:
    """Whether dill should write a class or function as a name, as pickle does.

    What its module holds under its name should. dill asks the module's parent instead, which
    torch.optim for one does not let see its modules, and would write such a class by value, and
    with it half of torch. Of `__main__`, only enums: dill writes them by value in a way that it
    cannot read.
    """
    if obj.__module__ == "__main__" and not isinstance(obj, EnumType):
        return False
    found: Any = sys.modules.get(obj.__module__)
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    if isinstance(obj, EnumType) and found is not obj:
        raise pickle.PicklingError(f"{obj!r} is no attribute of its module, so it cannot be loaded")
    return found is obj


def _unpicklable(state: object, exc: Exception, sharded: Sharded) -> UnpicklableStateError:
    """The error that names the place of what cannot be saved; `exc` is what the pickler raised."""
    place, error = _culprit.find(state, _asked(sharded)) or ("", exc)
    return _named(place, error)


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


def _asked(sharded: Sharded) -> _culprit.Asked:
    """What the search for a culprit asks: the reducers of a pickling that places nothing."""
    region = DataRegion(sharded=sharded)
    reducers = _Reducers(region)

    def save(obj: Any) -> bool:
        make: Any = _dill_pickler()
        if type(obj) not in make.dispatch:
            return False
        make(_Skeleton(), region).dump(obj)
        return True

    return _culprit.Asked(lambda obj: reducers[type(obj)](obj), _goes_by_name, save)


def loads(
    skeleton: bytes,
    data: Any,
    *,
    pickler: str,
    path: str,
    base_offset: int,
    map_location: Any = None,
) -> Any:
    """Unpickle a skeleton over its data region.

    Args:
        skeleton: the pickle.
        data: the data region, a writable buffer; arrays become views of it.
        pickler: ``"pickle"`` or ``"dill"``, as the index says.
        path, base_offset: the file and the skeleton's offset in it, for the error.
        map_location: where tensors go, as `torch.load` takes it.

    Raises:
        RebuildError: an object cannot be built.
    """
    unpickler = _unpickler(pickler)(
        io.BytesIO(_PRIMER + skeleton), buffers=[data, _storage_maker(map_location)]
    )
    unpickler.map_location = map_location
    pause = CollectorPaused()
    with pause, pause:
        unpickler.load()
        with _building(unpickler, skeleton, path, base_offset):
            return unpickler.load()


def _unpickler(pickler: str) -> Any:
    base: Any = pickle.Unpickler
    if pickler == "dill":
        import dill

        base = dill.Unpickler

    class Unpickler(base):  # type: ignore[misc]
        map_location: Any = None

        def find_class(self, module: str, name: str, /) -> Any:
            if stand_in := _outside.constructor(module, name):
                return stand_in
            root = module.partition(".")[0]
            if _frameworks.is_another(root):
                return super().find_class(module, name)
            if root == "torch":
                from ._frameworks import torch

                if found := torch.constructor(module, name, self.map_location):
                    return found
            elif root == "numpy":
                from ._frameworks import numpy

                module = numpy.here(module)
            elif root == "jax":
                from ._frameworks import jax

                if found := jax.constructor(module, name):
                    return found
            return super().find_class(module, name)

    return Unpickler


def _storage_maker(map_location: Any) -> Callable[..., Any]:
    def make_storage(*args: Any) -> Any:
        from ._frameworks import torch

        return torch.make_storage(*args, map_location=map_location)

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
