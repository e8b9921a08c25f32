"""Whether functions and classes that are saved by value can be made again, tried before the save.

They are pickled alone and built in a world whose ``__main__`` is empty, as in another program. Of
other objects a stand-in is built, so that nothing of theirs runs and no data is read.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Container
from typing import Any

from .buffers import DataRegion
from .by_value import ByValue
from .once import Once, Reducer
from .picklers import Reducers, Skeleton, by_value

_REAL = frozenset(
    {"typing", "types", "builtins", "_collections", "functools", "genesis._pickle.buffers"}
)
"""Modules whose objects are what functions and classes are made of."""


class _StandIns(Reducers):
    def __missing__(self, cls: type) -> Reducer:
        if issubclass(cls, type) or cls.__module__ in _REAL:
            return super().__missing__(cls)
        assert self._words is not None
        self[cls] = reducer = self._words.reducer_for(cls) or _stand_in
        return reducer


def _stand_in(_: object) -> Any:
    return object, ()


class _OtherProgram(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == ("builtins", "__import__"):
            return lambda _: types.SimpleNamespace()
        return super().find_class(module, name)


def problem_of(objects: list[Any], once: Once, as_names: Container[int]) -> Exception | None:
    """Why functions and classes cannot be saved by value, ``None`` if they can."""
    if not objects:
        return None
    skeleton = Skeleton()
    pickler = by_value(once, ByValue(as_names), _StandIns)(skeleton, DataRegion())
    try:
        pickler.dump(objects)
        _OtherProgram(io.BytesIO(b"".join(skeleton))).load()
    except Exception as exc:
        if not once.blames(exc):
            raise
        return exc
    return None
