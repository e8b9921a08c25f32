"""Objects to pickle streams and back: the C pickler for what it does as dill would, dill for the
rest.

Arrays are taken out by the reducers of `_frameworks` and become references into the data region.
Nothing here copies an array, touches a file or starts a thread.
"""

from __future__ import annotations

import gc
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Protocol

from . import _frameworks
from ._errors import UnpicklableStateError
from ._plan import DATA, DataRegion, Plan

_PROTOCOL = 5

_PRIMER = b"\x80\x05\x97\x940\x97\x94."
"""A pickle that puts two out-of-band buffers into memo slots 0 and 1. The memo of a C unpickler
outlives a load but cannot be set from Python, so the slots are filled by unpickling this first."""

_DIFFERS = (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError)


class _NeedsDillError(Exception):
    """The C pickler would write a reference where dill writes the thing itself."""


class _Slot1:
    """Holds memo slot 1 where torch is not loaded."""


_NO_TORCH = _Slot1()


class _Skeleton(list[bytes]):
    """What a pickler writes, piece by piece; large bytes objects are kept, not copied."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.append(data if type(data) is bytes else bytes(data))


def plan(state: object) -> Plan:
    """Pickle the structure of `state` and lay out its arrays, without copying them.

    The plan refers to the arrays' memory: it holds the values they have when they are copied.

    Raises:
        UnpicklableStateError: neither pickle nor dill can save something in it; names its place.
    """
    region = DataRegion()
    with _gc_paused():
        skeleton, pickler = _dump(state, region)
        if region.lessons is not None:
            region = DataRegion(region.lessons)
            skeleton, pickler = _dump(state, region)
    torch_storages = _slot_1() is not _NO_TORCH and region.shared is not None
    return Plan(region, skeleton, pickler=pickler, torch_storages=torch_storages)


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Pickling makes many tuples and no garbage; a collection in its middle costs more than it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _dump(state: object, region: DataRegion) -> tuple[_Skeleton, str]:
    try:
        return _dump_with(_CPickler, state, region), "pickle"
    except (_NeedsDillError, *_DIFFERS):
        _start_over(region)
    try:
        return _dump_with(_dill_pickler(), state, region), "dill"
    except Exception as exc:
        raise _unpicklable(state, exc) from exc


def _start_over(region: DataRegion) -> None:
    region.__init__(region.hints)  # type: ignore[misc]


class _Pickler(Protocol):
    memo: Any

    def dump(self, obj: object, /) -> None: ...


def _dump_with(make: Callable[..., _Pickler], state: object, region: DataRegion) -> _Skeleton:
    skeleton = _Skeleton()
    pickler = make(skeleton, region)
    slot_1 = _slot_1()
    pickler.memo = {id(DATA): (0, DATA), id(slot_1): (1, slot_1)}
    pickler.dump(state)
    return skeleton


def _slot_1() -> object:
    if "torch" not in sys.modules:
        return _NO_TORCH
    from ._frameworks import torch

    return torch.FROM_BUFFER


def _refuse_by_value(obj: Any, region: DataRegion) -> Any:
    """dill saves what `__main__` defines by value, the C pickler by name."""
    if getattr(obj, "__module__", None) == "__main__":
        raise _NeedsDillError
    return NotImplemented


class _CPickler(pickle.Pickler):
    """The C pickler, calling back for whatever is no plain container or scalar."""

    def __init__(self, file: _Skeleton, region: DataRegion) -> None:
        super().__init__(file, _PROTOCOL)
        self._region = region
        self._reducers: dict[type, _frameworks.Reducer | None] = {
            FunctionType: _refuse_by_value,
            type: _refuse_by_value,
        }

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        try:
            reducer = self._reducers[cls]
        except KeyError:
            reducer = _refuse_by_value if issubclass(cls, type) else _frameworks.reducer_for(cls)
            self._reducers[cls] = reducer
        return NotImplemented if reducer is None else reducer(obj, self._region)


def _dill_pickler() -> Callable[..., _Pickler]:
    """dill's pickler with our reducers. Made here because importing dill changes the pickle module
    for the whole process."""
    import dill

    class DillPickler(dill.Pickler):  # type: ignore[misc]
        def __init__(self, file: _Skeleton, region: DataRegion) -> None:
            super().__init__(file, protocol=_PROTOCOL)
            self._region = region
            self._found: dict[type, _frameworks.Reducer | None] = {}

        def reducer_override(self, obj: Any) -> Any:
            cls = type(obj)
            if cls not in self._found:
                self._found[cls] = _frameworks.reducer_for(cls)
            reducer = self._found[cls]
            return NotImplemented if reducer is None else reducer(obj, self._region)

    return DillPickler


def _unpicklable(state: object, exc: BaseException) -> UnpicklableStateError:
    """Find the innermost thing that cannot be saved by saving the parts one by one."""
    make = _dill_pickler()
    place = ""
    while True:
        for step, part in _parts(state):
            try:
                _dump_with(make, part, DataRegion())
            except Exception as inner:
                place, state, exc = place + step, part, inner
                break
        else:
            return UnpicklableStateError(place, f"{type(exc).__name__}: {exc}")
        if place.count("[") + place.count(".") > 200:
            return UnpicklableStateError(place, f"{type(exc).__name__}: {exc}")


def _parts(obj: object) -> Iterator[tuple[str, object]]:
    if isinstance(obj, dict):
        yield from ((f"[{key!r}]", value) for key, value in obj.items())
    elif isinstance(obj, (list, tuple)):
        yield from ((f"[{number}]", value) for number, value in enumerate(obj))
    elif not isinstance(obj, type) and isinstance(getattr(obj, "__dict__", None), dict):
        yield from ((f".{name}", value) for name, value in vars(obj).items())


def loads(skeleton: bytes, data: Any, *, pickler: str, map_location: Any = None) -> Any:
    """Unpickle a skeleton over its data region.

    Args:
        skeleton: the pickle.
        data: the data region, a writable buffer; arrays become views of it.
        pickler: ``"pickle"`` or ``"dill"``, as the index says.
        map_location: where tensors go, as `torch.load` takes it.
    """
    unpickler = _unpickler(pickler)(
        io.BytesIO(_PRIMER + skeleton), buffers=[data, _storage_maker(map_location)]
    )
    unpickler.map_location = map_location
    with _gc_paused():
        unpickler.load()
        return unpickler.load()


def _unpickler(pickler: str) -> Any:
    base: Any = pickle.Unpickler
    if pickler == "dill":
        import dill

        base = dill.Unpickler

    class Unpickler(base):  # type: ignore[misc]
        map_location: Any = None

        def find_class(self, module: str, name: str, /) -> Any:
            if module.startswith("torch"):
                from ._frameworks import torch

                if found := torch.constructor(module, name, self.map_location):
                    return found
            return super().find_class(module, name)

    return Unpickler


def _storage_maker(map_location: Any) -> Callable[..., Any]:
    def make_storage(*args: Any) -> Any:
        from ._frameworks import torch

        return torch.make_storage(*args, map_location=map_location)

    return make_storage


def load_foreign(file: Any) -> Any:
    """Unpickle what plain ``pickle.dump`` or ``dill.dump`` wrote."""
    import dill

    with _gc_paused():
        return dill.Unpickler(file).load()
