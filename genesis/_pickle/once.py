"""What an object gives when it is reduced, kept while one save needs it, and whose error it was.

An object may hand something over when it is pickled, so it is asked once, however often a state is
pickled. Nothing here pickles.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections.abc import Callable, Iterator
from inspect import CO_OPTIMIZED, CO_VARARGS
from operator import methodcaller
from traceback import walk_tb
from types import FrameType, FunctionType, MethodType
from typing import Any

Reducer = Callable[[Any], Any]

PROTOCOL = 5

_own_reduction = methodcaller("__reduce_ex__", PROTOCOL)

_HOOKS = "__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs_ex__", "__getnewargs__"

_ERRORS = (
    pickle.PickleError,
    TypeError,
    AttributeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    BufferError,
)
"""What a pickler itself raises for an object that it cannot save."""


class Once:
    """The reductions of one save that Python code of the objects gives.

    Called with an object it is a reducer: that of the object's own method, called once.
    """

    def __init__(self) -> None:
        self._kept: list[Any] = []
        """Objects and their reductions, in turn: the objects so that their ids stay theirs."""
        self._known: dict[int, Any] = {}
        self._looked_up = 0
        self.error: BaseException | None = None
        """The last that a method of an object raised when it was to be reduced."""

    def __call__(self, obj: Any) -> Any:
        self._look_up()
        return self._reducer(_own_reduction)(obj)

    def reducer_for(self, cls: type) -> Reducer:
        """How one pickler reduces instances of a class, each of which it asks about once. What does
        so in C, or in Python's own library, hands nothing over, and need not be kept."""
        registered = copyreg.dispatch_table.get(cls)
        if registered is not None:
            return self._reducer(registered) if _hands_over(registered) else registered
        own = any(_hands_over(getattr(cls, name, None)) for name in _HOOKS)
        return self._reducer(_own_reduction) if own else _own_reduction

    def _reducer(self, function: Reducer) -> Reducer:
        self._look_up()
        known, keep = self._known, self._kept.append

        def reduce(obj: Any) -> Any:
            if known and id(obj) in known:
                return _fresh(known[id(obj)])
            try:
                reduction = function(obj)
            except Exception as exc:
                self.error = exc
                raise
            if type(reduction) is tuple and len(reduction) > 3:
                reduction = _repeatable(reduction)
                keep(obj)
                keep(reduction)
                return _fresh(reduction)
            keep(obj)
            keep(reduction)
            return reduction

        return reduce

    def _look_up(self) -> None:
        """Make what earlier picklers met known to the next."""
        new = iter(self._kept[self._looked_up :])
        self._known.update((id(obj), reduction) for obj, reduction in zip(new, new, strict=True))
        self._looked_up = len(self._kept)

    def blames(self, exc: BaseException) -> bool:
        """Whether an error that came out of a pickler says that something cannot be saved.

        A signal handler may raise at any moment of a save, and another thread may stop this one.
        What such an error wants is to end the save, so it is nothing to be dealt with.
        """
        if any(_is_handler(frame) for frame, _ in walk_tb(exc.__traceback__)):
            return False
        return exc is self.error or isinstance(exc, _ERRORS)


def _hands_over(method: Any) -> bool:
    """Whether a method may change the object that it reduces, as far as one can see."""
    if not isinstance(method, FunctionType | MethodType):
        return False
    module = method.__module__
    return not (isinstance(module, str) and module.partition(".")[0] in sys.stdlib_module_names)


def _repeatable(reduction: tuple[Any, ...]) -> tuple[Any, ...]:
    """Its items as lists: an iterator could be followed once."""
    items = (None if part is None else _Items(part) for part in reduction[3:5])
    return *reduction[:3], *items, *reduction[5:]


class _Items(list[Any]):
    """What an iterator gave."""


def _fresh(reduction: Any) -> Any:
    if type(reduction) is not tuple or len(reduction) < 4:
        return reduction
    return tuple(iter(part) if type(part) is _Items else part for part in reduction)


def _is_handler(frame: FrameType) -> bool:
    """Whether a frame is that of a signal handler, which is called with a number and a frame."""
    values = list(_arguments(frame))[-2:]
    return len(values) == 2 and isinstance(values[0], int) and isinstance(values[1], FrameType)


def _arguments(frame: FrameType) -> Iterator[Any]:
    code = frame.f_code
    if not code.co_flags & CO_OPTIMIZED:
        return  # a module or the body of a class, which no signal calls
    values = dict(frame.f_locals)
    if type(frame.f_locals) is dict:
        # Before Python 3.13 a copy that the frame keeps, and with it the error that led us here: a
        # circle would keep the state.
        frame.f_locals.clear()
    names = code.co_varnames[: code.co_argcount]
    yield from (values[name] for name in names if name in values)
    if code.co_flags & CO_VARARGS:
        yield from values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount], ())
