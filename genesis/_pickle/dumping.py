"""Objects to pickle streams and back: the C pickler for what it does as dill would, dill for the
rest.

Arrays are taken out by the reducers of `_pickle` and become references into the data region.
Nothing here copies an array, touches a file or starts a thread.
"""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Callable
from typing import Any

from .._errors import UnpicklableStateError
from .._options import Sharded
from .._threads.interrupts import CollectorPaused
from . import culprit, outside
from .buffers import DataRegion, Plan, RefusedObjectError
from .by_value import ByValue, NeedsByValueError, has_name
from .once import Once
from .picklers import Make, Reducers, Skeleton, by_dill, by_names, by_value, dump
from .proof import problem_of
from .recursion import has_stack, recursion_limit

log = logging.getLogger("genesis")

_DEEP = 10_000
"""Recursion limit of the C pickler for what is nested deeply: three levels of it are one of an
object's, and take 600 bytes of stack."""

_DEEP_IN_PYTHON = 60_000
"""The same of dill's pickler, most of whose frames are not on the stack: twelve are one of an
object's."""


def plan(state: object, *, sharded: Sharded = "refuse") -> Plan:
    """Pickle the structure of `state` and lay out its arrays, without copying them.

    The plan refers to the arrays' memory: it holds the values they have when they are copied.

    Args:
        sharded: what to do with a tensor of which this process holds one part of several.
            ``"refuse"`` it; ``"allow"``: save the part, for a path of each rank's own.

    Raises:
        UnpicklableStateError: neither pickle nor dill can save something in it; names its place.
    """
    attempts, pause = _Attempts(state, sharded), CollectorPaused()
    try:
        with pause, pause:
            return attempts.plan()
    finally:
        attempts.forget_errors()


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
        # Not methods of this object: a circle would keep the state until the collector comes by.
        cls = _Attempts
        self._ways = [cls._by_names, cls._by_value, cls._by_dill, cls._by_names_of_main]
        self._as_names: set[int] = set()
        """Ids of functions and classes of ``__main__`` that cannot be saved by value."""
        self._names: list[str] = []
        """Theirs."""
        self._error: Exception | None = None
        """What the way that got furthest raised."""

    def plan(self) -> Plan:
        """Pickle the state, a second time with what the first time learned where there is that."""
        skeleton, region, pickler = self.lay_out(None)
        if region.lessons is not None:
            skeleton, region, pickler = self.lay_out(region.lessons)
        if self._ways[0] == _Attempts._by_names_of_main:
            self._names.append("*")
        _say_once(self._names)
        return Plan(region, skeleton, pickler=pickler, torch_storages=region.has_storages)

    def lay_out(self, hints: Any) -> _Result:
        """Pickle the state in the first way that works, which is the first one of the next time.

        Args:
            hints: what an earlier layout learned.
        """
        while self._ways:
            try:
                return self._ways[0](self, hints)
            except NeedsByValueError:
                pass
            except Exception as exc:
                self._judge(exc)
            del self._ways[0]
        error = self._error or pickle.PicklingError("no way")
        try:
            raise self._unpicklable(error) from error
        finally:
            del error  # whose traceback leads to this frame: a circle would keep the state

    def forget_errors(self) -> None:
        """Break the circles from an error through its traceback to us, which would keep the state
        until the collector comes by."""
        self._error = self._once.error = None

    def _judge(self, exc: Exception) -> None:
        """Return where another way may do better."""
        try:
            if isinstance(exc, MemoryError | UnpicklableStateError) or not self._once.blames(exc):
                raise exc
            own = exc is self._once.error and not isinstance(exc, RecursionError)
            if own or _is_final(exc):
                raise self._unpicklable(exc) from exc
        except BaseException:
            del exc  # see `lay_out`
            raise
        if self._ways[0] != _Attempts._by_names_of_main:
            self._error = exc
        if isinstance(exc, RecursionError):
            self._ways[1:] = [way for way in self._ways[1:] if way == _Attempts._by_dill]

    def _dump(self, make: Make, hints: Any) -> tuple[Skeleton, DataRegion]:
        region = DataRegion(hints, sharded=self._sharded)
        try:
            return dump(make, self._state, region), region
        except RecursionError as exc:
            # From Python 3.12 on, C code has a limit of its own.
            if sys.version_info >= (3, 12) or not has_stack() or not self._once.blames(exc):
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
                try:
                    raise problem
                finally:
                    del problem  # see `lay_out`

    def _learn(self, objects: list[Any]) -> bool:
        """Find what cannot be saved by value alone, the innermost first, and can be named."""
        known = len(self._as_names)
        for obj in reversed(objects):
            if has_name(obj) and not self._can_be_saved(obj):
                self._as_names.add(id(obj))
                self._names.append(obj.__qualname__)
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
            place, error = culprit.find(self._state, self._asked()) or ("", exc)
        return _named(place, error)

    def _asked(self) -> culprit.Asked:
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

        return culprit.Asked(lambda obj: reducers[type(obj)](obj), words.leaves, save)


_said: set[str] = set()
"""Names that were logged: a loop saves the same ones again and again."""


def _say_once(names: list[str]) -> None:
    """Log what stands in the file as a name, though no other program may have it."""
    new = [f"__main__.{name}" for name in names if name not in _said]
    _said.update(names)
    if new:
        log.warning(
            "saved by name, since it cannot be saved by value: %s; only a program that has it "
            "can load the file",
            ", ".join(new),
        )


def _named(place: str, error: Exception) -> UnpicklableStateError:
    if isinstance(error, outside.OutsideError | RefusedObjectError):
        return UnpicklableStateError(place, str(error), error.hint)
    problem = f"{type(error).__name__}: {error}"
    if _is_of_a_change(error):
        problem = f"a dict, set or deque was changed while it was saved ({error})"
        hint = "another thread writes to it: save a copy made under that thread's lock, or wait"
        return UnpicklableStateError(place, problem, hint)
    return UnpicklableStateError(place, problem)


def _is_final(error: Exception) -> bool:
    """Whether dill would meet the same thing."""
    refused = isinstance(error, outside.OutsideError | RefusedObjectError)
    return refused or _is_of_a_change(error)


def _is_of_a_change(error: Exception) -> bool:
    """Whether a container changed while the pickler went through it."""
    return isinstance(error, RuntimeError) and "during iteration" in str(error)
