"""Finds what made a save fail: the thing nearest to the state's top that cannot be pickled.

Each object is visited once, breadth first, and no part is pickled to look at the whole. Nothing
here decides what can be saved: it asks.
"""

from __future__ import annotations

import copyreg
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache, partial
from itertools import chain
from types import (
    CellType,
    FunctionType,
    MappingProxyType,
    MethodType,
)
from typing import Any, NamedTuple
from weakref import ReferenceType

_ATOMS = frozenset(
    {
        *(int, float, complex, bool, str, bytes, bytearray),
        *(type(None), type(...), type(NotImplemented), range),
    }
)
_MAX_KEY = 60
"""Characters of a key in a place."""
_MAX_STEPS = 40
"""Steps that a place names; of a longer one the first and the last."""
_NAMED = ("__self__", "default_factory", "func", "args", "keywords", "fget", "fset", "fdel")
"""Attributes of C types by which a part of their reduction is named."""
_OF_PYTHON = ("builtins", "functools", "collections")


class Asked(NamedTuple):
    """What the search must be told of the pickler."""

    reduce: Callable[[Any], Any]
    """An object's reduction, as the pickler would take it; raises where there is none."""
    by_name: Callable[[Any], bool]
    """Whether a class or function is saved as a name."""
    save: Callable[[Any], bool]
    """Saves a thing whose reduction does not tell: ``False`` if there is no other way to save it;
    raises if that fails."""


class Place:
    """Where an object stands: a link to the place above, so that depth costs no memory."""

    __slots__ = ("above", "step")

    def __init__(self, above: Place | None, step: str) -> None:
        self.above = above
        self.step = step

    def __str__(self) -> str:
        steps: list[str] = []
        place: Place | None = self
        while place is not None:
            steps.append(place.step)
            place = place.above
        steps.reverse()
        if len(steps) > _MAX_STEPS:
            steps[_MAX_STEPS // 2 : -_MAX_STEPS // 2] = [" ... "]
        return "".join(steps)


def find(state: object, asked: Asked) -> tuple[str, Exception] | None:
    """The place of the first thing, by distance, that cannot be saved, and its error.

    ``None`` if each thing can be saved for itself: then it is the whole that cannot, because it is
    too deep, say.
    """
    waiting: deque[tuple[Place | None, Any]] = deque([(None, state)])
    met: dict[int, Any] = {}  # with the objects: freed parts of a reduction would leave their ids
    while waiting:
        place, obj = waiting.popleft()
        if id(obj) in met:
            continue
        met[id(obj)] = obj
        try:
            parts = list(_parts(obj, asked))
        except MemoryError:
            raise
        except Exception as exc:
            # Its traceback leads to our caller, who keeps it: a circle would keep the state.
            return ("" if place is None else str(place)), exc.with_traceback(None)
        waiting.extend(
            (Place(place, step), part)
            for step, part in parts
            if type(part) not in _ATOMS and id(part) not in met
        )
    return None


_Parts = Iterator[tuple[str, Any]]


def _parts(obj: Any, asked: Asked) -> _Parts:
    """What a pickler meets inside of an object, each part with its step in the place.

    Raises:
        Exception: the object itself cannot be saved.
    """
    cls = type(obj)
    if cls in _CONTAINERS:
        return _CONTAINERS[cls](obj)
    if cls is FunctionType or issubclass(cls, type):
        if asked.by_name(obj):
            return iter(())
        return _parts_of_function(obj) if cls is FunctionType else _parts_of_class(obj)
    if cls in _DESCRIPTORS:
        return _DESCRIPTORS[cls](obj)
    try:
        reduction = asked.reduce(obj)
    except TypeError:
        if asked.save(obj):
            return iter(())
        raise
    if isinstance(reduction, str):
        asked.save(obj)
        return iter(())
    return _parts_of_reduction(obj, reduction)


# --- Containers -----------------------------------------------------------------------------------


def _items(mapping: Any) -> _Parts:
    for key, value in list(mapping.items()):
        if type(value) not in _ATOMS or type(key) not in _ATOMS:
            yield from _item(key, value)


def _item(key: Any, value: Any) -> _Parts:
    if type(key) not in _ATOMS:
        yield f" (the key {_short(key)})", key
    yield f"[{_short(key)}]", value


def _elements(sequence: Any) -> _Parts:
    return (
        (f"[{number}]", element)
        for number, element in enumerate(list(sequence))
        if type(element) not in _ATOMS
    )


def _members(members: Any) -> _Parts:
    return (
        (f" (the element {_short(member)})", member)
        for member in list(members)
        if type(member) not in _ATOMS
    )


def _short(key: Any) -> str:
    """A key as it is written, within reason: its repr is its class's, and may do anything."""
    if type(key) not in _ATOMS and type(key) is not tuple:
        return f"<{type(key).__qualname__}>"
    text = repr(key) if not isinstance(key, int) or key.bit_length() < 200 else "<int>"
    return text if len(text) <= _MAX_KEY else f"{text[:_MAX_KEY]}..."


_CONTAINERS: dict[type, Callable[[Any], _Parts]] = {
    dict: _items,
    MappingProxyType: _items,
    list: _elements,
    tuple: _elements,
    set: _members,
    frozenset: _members,
}


# --- Code -----------------------------------------------------------------------------------------


def _parts_of_function(function: FunctionType) -> _Parts:
    """What a function takes along that is saved by value."""
    for number, cell in enumerate(function.__closure__ or ()):
        for step, content in _parts_of_cell(cell):
            yield f".__closure__[{number}]{step}", content
    for number, default in enumerate(function.__defaults__ or ()):
        yield f".__defaults__[{number}]", default
    for name, default in (function.__kwdefaults__ or {}).items():
        yield f".__kwdefaults__[{name!r}]", default
    yield from _attributes(function, function.__dict__)


def _parts_of_cell(cell: CellType) -> _Parts:
    try:
        yield ".cell_contents", cell.cell_contents
    except ValueError:  # an empty one
        return


def _parts_of_class(cls: type) -> _Parts:
    for number, base in enumerate(cls.__bases__):
        yield f".__bases__[{number}]", base
    for name, value in vars(cls).items():
        if name not in ("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__"):
            yield f".{name}", value


def _by_attributes(*names: str) -> Callable[[Any], _Parts]:
    def parts(obj: Any) -> _Parts:
        return ((f".{name}", getattr(obj, name)) for name in names)

    return parts


_DESCRIPTORS: dict[type, Callable[[Any], _Parts]] = {
    property: _by_attributes("fget", "fset", "fdel"),
    classmethod: _by_attributes("__func__"),
    staticmethod: _by_attributes("__func__"),
    cached_property: _by_attributes("func"),
    MethodType: _by_attributes("__self__", "__func__"),
    type(lru_cache(len)): _by_attributes("__wrapped__"),
    CellType: _parts_of_cell,
    ReferenceType: lambda reference: iter([("()", reference())]),
}


# --- Everything else ------------------------------------------------------------------------------


def _parts_of_reduction(obj: Any, reduction: tuple[Any, ...]) -> _Parts:
    padded: tuple[Any, ...] = *reduction, None, None, None
    function, args, state, elements, items = padded[:5]
    yield from _parts_of_call(obj, function, args)
    yield from _parts_of_state(obj, state)
    yield from _elements(elements or ())
    for key, value in items or ():
        yield from _item(key, value)


def _parts_of_call(obj: Any, function: Any, args: tuple[Any, ...]) -> _Parts:
    if function not in (copyreg.__newobj__, copyreg.__newobj_ex__):  # type: ignore[attr-defined]
        yield ".__reduce_ex__(5)[0]", function
    if step := _name_of(obj, args):
        yield from ((step + inner, part) for inner, part in _elements(args))
        return
    for number, argument in enumerate(args):
        if argument is not type(obj):
            yield _name_of(obj, argument) or f".__reduce_ex__(5)[1][{number}]", argument


def _name_of(obj: Any, part: Any) -> str | None:
    """The attribute of an object that holds a part of its reduction, where it is a known one."""
    if type(obj).__module__ not in _OF_PYTHON and not isinstance(obj, BaseException | partial):
        return None
    found = (name for name in _NAMED if getattr(obj, name, obj) is part)
    return next((f".{name}" for name in found), None)


def _parts_of_state(obj: Any, state: Any) -> _Parts:
    if type(state) is dict:
        yield from _attributes(obj, state)
    elif type(state) is tuple and all(type(part) in (dict, type(None)) for part in state):
        # of slots: what __dict__ holds, and what the slots do
        yield from chain.from_iterable(_attributes(obj, part) for part in state if part)
    elif isinstance(obj, partial):
        for name, part in zip(("func", "args", "keywords"), state, strict=False):
            yield f".{name}", part
    elif state is not None:
        yield ".__getstate__()", state


def _attributes(obj: Any, state: dict[Any, Any]) -> _Parts:
    own = getattr(obj, "__dict__", {})
    reduces: Any = type(obj).__getstate__
    by_default = reduces is object.__getstate__
    for key, value in list(state.items()):
        if isinstance(key, str) and key.isidentifier() and (by_default or own.get(key) is value):
            yield f".{key}", value
        else:
            yield f".__getstate__()[{_short(key)}]", value
