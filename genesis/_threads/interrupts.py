"""What stays whole where a signal handler raises, or runs, between any two steps of Python.

It takes no lock while Python runs, and knows no file and no checkpoint.

Why not the standard library's: `threading.Condition`, and with it `Event`, `Future` and the start
of a `Thread`, is written in Python.
  1. A thread enters ``with condition:``; 2. Ctrl-C raises on the first line of its `__exit__`;
  3. nobody leaves it any more, and whoever wants to set the event or the result waits for ever.
Or: 2. a handler runs there and waits for a thread; 3. that thread wants the condition.
A single call of C is not cut: a signal is looked for before and after it.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from .._tuning import on


class Doubled:
    """A context manager that stands twice in its `with` statement: ``with x, x:``.

    Race: 1. a handler raises on entering `__exit__`; 2. the block is left, and nothing was given
    back. Written twice, the second leaving does what the first did not. So what is to be given back
    is noted before it is taken, entering takes nothing, and `leave` may be repeated.
    `tests/test_interrupts.py` looks for uses that are not doubled.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Give back what was taken; harmless where that is done."""
        raise NotImplementedError


class CollectorPaused(Doubled):
    """Python's garbage collector does not run until the block ends.

    A load makes many objects and no garbage: looking through them again and again takes as long as
    the rest. A child that is forked meanwhile collects as its parent does otherwise.

    Race: 1. it is switched off; 2. a handler raises before this entering returns; 3. a block that
    was not entered is not left. So the first entering of the two only makes sure of the leaving.
    """

    def __init__(self) -> None:
        self.was_enabled = False
        self._stands = False

    def __enter__(self) -> Self:
        if not self._stands:
            self._stands = True
        elif gc.isenabled() and on.paused_collector:
            self.was_enabled = True  # noted before it is not true any more
            _paused[self] = None
            gc.disable()
        return self

    def leave(self) -> None:
        if self.was_enabled:
            gc.enable()
        _paused.pop(self, None)


_paused: dict[CollectorPaused, None] = {}


def _resume_collector() -> None:
    if _paused:
        gc.enable()
        _paused.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_resume_collector)


class Event:
    """`threading.Event` without a lock that an interrupted frame could hold.

    Thread-safe. `set` may be repeated where it was cut short.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._sleepers: deque[LockType] = deque()
        """A lock for each thread that waits, taken by itself; releasing it is waking the thread."""

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Wake all who wait.

        Race: 1. a thread finds it not set; 2. it is set here, and nobody is found asleep; 3. the
        thread goes to sleep. So it lies down first, and looks then.
        """
        self._is_set = True
        for sleeper in tuple(self._sleepers):
            with suppress(RuntimeError):  # it is awake already
                sleeper.release()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it was set within `timeout` seconds."""
        if self._is_set:
            return True
        sleeper = allocate_lock()
        sleeper.acquire()
        self._sleepers.append(sleeper)
        try:
            # The lock is of this call alone: an interrupt leaves it to nobody.
            return self._is_set or _taken_within(sleeper, timeout) or self._is_set
        finally:
            with suppress(ValueError):
                self._sleepers.remove(sleeper)

    def _at_fork_reinit(self) -> None:
        """For `threading`: those who waited are not there in a forked child."""
        self._sleepers.clear()


def _taken_within(lock: LockType, timeout: float | None) -> bool:
    if timeout is None:
        return lock.acquire()
    return lock.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX))


class Thread(threading.Thread):
    """A thread whose start can be interrupted: then it runs, or it does not, and can end.

    Race: 1. `start` waits for the new thread's sign that it runs; 2. a handler raises while the
    lock of that sign is held, or waits for what the thread is to do; 3. the thread waits for that
    lock, and at exit everybody for the thread.
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        # No daemon: the interpreter must not go down under a thread that is in torch's code, where
        # being stopped aborts the process.
        super().__init__(target=target, name=name, daemon=False)
        self._started = Event()

    def wait_for_end(self) -> None:
        """`join`, for a thread that has run its target. Up to Python 3.12 that takes a lock which
        every new thread needs: a handler that interrupts it there, and starts one, waits for ever.
        """
        if sys.version_info >= (3, 13):
            self.join()
            return
        while (lock := getattr(self, "_tstate_lock", None)) is not None and lock.locked():
            time.sleep(0)
