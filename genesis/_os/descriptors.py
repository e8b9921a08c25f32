"""Open descriptors that no interrupt leaks, and no forked child keeps.

Opens nothing by itself, and knows no path.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Any


class Descriptor:
    """Room for one open descriptor, which no interrupt comes between.

    Race: 1. `os.open` returns; 2. before Python has stored what it returned, Ctrl-C raises; 3. the
    file stays open, and nobody knows its number. So it is a list that takes the number, in the one
    call of C that opens: ``list.extend(map(os.open, ...))``. Closing is one call in the same way,
    for a number that is closed twice may be somebody else's the second time.
    """

    __slots__ = ("__weakref__", "_numbers")

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def open(self, call: Callable[..., int], *args: Any) -> None:
        """Hold what `call` opens; it must be a function in C, or a `partial` of one, so that no
        signal is looked for between its end and ours.

        What is held may be a lock, so a forked child closes its copy: with it, it would keep the
        lock of a parent that dies. Closing is not unlocking: a living parent loses nothing.
        """
        self.close()
        _held[id(self)] = self._numbers
        try:
            self._numbers.extend(map(call, *([arg] for arg in args)))
        except BaseException:
            self.let_go()  # also where it opened, and was interrupted since
            raise

    def __bool__(self) -> bool:
        return bool(self._numbers)

    @property
    def number(self) -> int:
        """Raises `OSError` where it is closed."""
        for number in self._numbers:
            return number
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def close(self) -> None:
        """Harmless where it is closed. Never twice: an interrupted close has closed, on Linux.

        Raises:
            OSError: something that was written through it may be lost.
        """
        # An IndexError is the pop's, of a list that is empty.
        with contextlib.suppress(IndexError, InterruptedError):
            any(map(os.close, map(self._numbers.pop, (-1,))))
        _held.pop(id(self), None)

    def let_go(self) -> None:
        """Close what nothing was written through: whatever error that gives, nothing is lost."""
        with contextlib.suppress(OSError):
            self.close()

    def __del__(self) -> None:
        # Of a frame that was interrupted before it could begin a block that closes it, or before
        # this had begun.
        if getattr(self, "_numbers", None):
            self.let_go()


_held: dict[int, list[int]] = {}
"""The numbers in all of them."""


def _close_inherited() -> None:
    for numbers in tuple(_held.values()):
        while numbers:
            with contextlib.suppress(OSError):
                os.close(numbers.pop())
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
