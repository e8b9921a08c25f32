"""A call that is made when nothing has happened for a while, on a thread that ends with it.

It decides nothing about what is done then. The thread waits while something was held lately, and at
no other time: a fork and the exit of the interpreter end its waiting first.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from math import isinf


class WhenIdle:
    """Makes a call once `seconds` have passed since the last `note`. Thread-safe, without a lock: a
    signal handler may save in the middle of anything.

    Attributes:
        seconds: how long to wait; infinity for no call.
    """

    def __init__(self, call: Callable[[], object], seconds: float) -> None:
        self.seconds = seconds
        self._call = call
        self._last = 0.0
        self._waiting: _Waiting | None = None
        self._registered = False
        if hasattr(os, "register_at_fork"):
            # From Python 3.12 on a live thread makes a fork warn.
            os.register_at_fork(before=self.stop, after_in_child=self.forget)

    def note(self) -> None:
        """Something happened: wait for the call from now on."""
        self._last = time.monotonic()
        if self._waiting is None and not isinf(self.seconds) and self._may_start():
            waiting = _Waiting(self)
            self._waiting = waiting
            try:
                waiting.thread.start()
            except RuntimeError:  # the system has no thread left, or the interpreter goes down
                self._waiting = None

    def _may_start(self) -> bool:
        """Have the thread stopped before the interpreter waits for it, which no hook but this
        private one comes early enough for."""
        if not self._registered:
            try:
                threading._register_atexit(self.stop)  # type: ignore[attr-defined]
            except (AttributeError, RuntimeError):
                return False
            self._registered = True
        return True

    def stop(self) -> None:
        """End the waiting, until there is another `note`."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.stop.set()
            if waiting.thread.ident is not None:
                waiting.thread.join()

    def forget(self) -> None:
        """Start empty, in a forked child."""
        self._waiting = None

    def left(self) -> float:
        """Seconds until the call."""
        return self._last + self.seconds - time.monotonic()

    def finish(self, waiting: _Waiting) -> None:
        """Make the call. From the first line on, who notes something starts another thread."""
        if self._waiting is waiting:
            self._waiting = None
        self._call()


class _Waiting:
    """One thread of a `WhenIdle`."""

    def __init__(self, idle: WhenIdle) -> None:
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="genesis-idle")
        self._idle = idle

    def _run(self) -> None:
        while (left := self._idle.left()) > 0:
            if self.stop.wait(min(left, 3600)):
                return
        self._idle.finish(self)
