"""Picklers: the C pickler with reducers of ours, alone or with functions and classes by value, and
dill's.

Arrays are taken out by the reducers of `_pickle` and become references into the data region.
Nothing here decides which pickler is used.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable
from operator import attrgetter
from types import FunctionType
from typing import Any, Protocol

from . import arrays, outside
from .buffers import Call, DataRegion
from .by_value import ByValue, NeedsByValueError, is_of_main, needs_words
from .once import PROTOCOL, Once, Reducer


class Skeleton(list[bytes]):
    """What a pickler writes, piece by piece; large bytes objects are kept, not copied."""

    def behind(self, opcodes: bytes) -> Skeleton:
        if opcodes:
            self.insert(0, opcodes)
        return self

    def names_main(self) -> bool:
        """Whether something of ``__main__`` may be named: its name is there as a whole string."""
        return any(name in part for part in self for name in _MAINS)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.append(data if type(data) is bytes else bytes(data))


_MAINS = b"\x8c\x08__main__\x94", b"\x8c\x0b__mp_main__\x94"


class Pickler(Protocol):
    memo: Any

    def dump(self, obj: object, /) -> None: ...


Make = Callable[[Skeleton, DataRegion], Pickler]


def dump(make: Make, state: object, region: DataRegion) -> Skeleton:
    """Pickle a state, its arrays laid out in a fresh region."""
    skeleton = Skeleton()
    try:
        opcodes, memo = arrays.opening(state, region)
        pickler = make(skeleton, region)
        pickler.memo = memo
        pickler.dump(state)
        region.close()
    finally:
        region.forget_reducers()
    return skeleton.behind(arrays.preamble(region) + opcodes)


_reduction_of_call = attrgetter("reduction")


class Reducers(dict[type, Reducer]):
    """The dispatch table of one pickler, filled with each class that is met.

    What most objects need is a call in C: only for arrays, and for what reduces itself in Python,
    does the pickler come back to Python.

    Args:
        words: how functions and classes are reduced by value; ``None`` where all are names.
        main: whether names of ``__main__`` are good enough. If not, `NeedsByValueError` is raised
            for the first instance of a class of it; for what else is named the skeleton tells.
    """

    def __init__(
        self, once: Once, region: DataRegion, words: ByValue | None, *, main: bool = False
    ) -> None:
        super().__init__({Call: _reduction_of_call})
        self._once = once
        self._region = region
        self._words = words
        self._main = main or words is not None
        region.reduce_own = once

    def __missing__(self, cls: type) -> Reducer:
        if issubclass(cls, type):  # a class: the pickler knows how, unless its metaclass says it
            return copyreg.dispatch_table[cls]
        if not self._main and is_of_main(cls):
            raise NeedsByValueError
        self[cls] = reducer = self.special(cls) or self._once.reducer_for(cls)
        return reducer

    def special(self, cls: type) -> Reducer | None:
        """A reducer that is not the one of the class itself."""
        return (
            outside.reducer_for(cls)
            or arrays.reducer_for(cls, self._region)
            or (self._words.reducer_for(cls) if self._words else needs_words(cls))
        )


def by_names(once: Once, *, main: bool) -> Make:
    """Makes the C pickler that writes all functions and classes as names. See `Reducers`."""

    def make(file: Skeleton, region: DataRegion) -> Pickler:
        pickler = pickle.Pickler(file, PROTOCOL)
        pickler.dispatch_table = Reducers(once, region, None, main=main)
        return pickler

    return make


def by_value(once: Once, words: ByValue, reducers: type[Reducers] = Reducers) -> Make:
    """Makes the C pickler that writes by value what `words` reduces so."""

    class CPickler(pickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            cls = type(obj)
            if cls is FunctionType or issubclass(cls, type):
                return words.reduce(obj)
            return NotImplemented

    def make(file: Skeleton, region: DataRegion) -> Pickler:
        pickler = CPickler(file, PROTOCOL)
        pickler.dispatch_table = reducers(once, region, words)
        return pickler

    return make


def by_dill(once: Once, words: ByValue) -> Make:
    """Makes dill's pickler, which comes after `words` and before what objects do themselves. The
    import is late because dill changes the pickle module for the whole process."""
    import dill

    known = dill.Pickler.dispatch

    class DillPickler(dill.Pickler):  # type: ignore[misc]
        def __init__(self, file: Skeleton, region: DataRegion) -> None:
            super().__init__(file, protocol=PROTOCOL)
            self._reducers = Reducers(once, region, words)
            inherited = dill.Pickler.save_reduce

            def save_reduce(*reduction: Any, **keywords: Any) -> None:
                inherited(self, *reduction, **keywords)

            # Python calls a function without more of the stack, and a method with it.
            self.save_reduce = save_reduce

        def reducer_override(self, obj: Any) -> Any:
            cls = type(obj)
            if cls is FunctionType or issubclass(cls, type):
                return words.reduce(obj)
            if dict.__contains__(known, cls) and not self._reducers.special(cls):
                return NotImplemented
            return self._reducers[cls](obj)

    return DillPickler
