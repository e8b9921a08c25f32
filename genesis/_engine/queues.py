"""Who may touch a path: turns in order of asking within the process, one lock among processes.

Readers need neither: a rename shows them the old file or the new one. Nothing here knows what is
done under a lock.

Guarantees:
- Turns of one path come first in, first out, whichever thread waits for them.
- A process that dies, however it dies, holds no lock: the kernel drops it.
- A forked child starts without turns, and cannot release what its parent holds.
- No thread waits for one that a signal handler has interrupted, unless that is this thread, and
  then `Turn.refuse_deadlock` says so. Nothing here takes a lock while Python runs: each step is one
  call of C on a dict, and may be repeated.
"""

from __future__ import annotations

import threading
from concurrent.futures import InvalidStateError
from contextlib import suppress

from .._os.locks import _locks_here
from .._threads.interrupts import Doubled
from .._threads.waiting import OpenFuture


class Turn(Doubled):
    """A place in the line of one path.

    Enter the line inside the block: leaving the block leaves the line. Every step may be repeated,
    and `leave` repairs a step that was cut short.
    """

    def __init__(self, turns: Turns, path: str) -> None:
        self.path = path
        self.ready: OpenFuture[None] = OpenFuture()
        """Resolves when it is this turn's time. What waits for it is woken by the thread that made
        way."""
        self.needed: int | None = None
        """The thread without which the turn goes no further: it does the work, or is to do it, or
        runs the event loop of the coroutine that is."""
        self._line = turns.line(path)

    def enter(self) -> None:
        """Stand at the end of the line; ready at once where nobody is before."""
        self.needed = threading.get_ident()
        self._line[self] = None
        self._call_first()

    def wait(self) -> None:
        """Wait until it is this turn's time.

        Raises:
            RuntimeError: an earlier turn needs this very thread, so waiting would never end.
        """
        if not self.ready.done():
            for other in self.before():
                other.refuse_deadlock()
        self.ready.result()

    def before(self) -> list[Turn]:
        """Those that come first."""
        line = [turn for turn in tuple(self._line) if turn.path == self.path]
        return line[: line.index(self)] if self in line else []

    def is_needed_here(self) -> bool:
        """Whether this turn goes no further before the calling thread does."""
        return self.needed == threading.get_ident()

    def refuse_deadlock(self) -> None:
        """Raise `RuntimeError` where the calling thread must not wait for the end of this turn: it
        is to bring it about itself, or holds what another thread needs for that."""
        if self.is_needed_here():
            raise RuntimeError(
                f"a save of {self.path} was interrupted on this thread, or waits in a coroutine of "
                "its event loop, and cannot go on before this call returns; await "
                "genesis.aio.save, save to another path, or set a flag and save later"
            )
        if (directory := locked_here()) is not None:
            raise RuntimeError(
                f"a save in {directory} was interrupted on this thread in the middle of its "
                f"commit, and the save of {self.path} may need that directory to end; save "
                "without background=True and without waiting, or set a flag and wait later"
            )

    def leave(self) -> None:
        """Make way for the next; harmless where it was done, and on any thread."""
        self._line.pop(self, None)
        # Also where this turn was gone already: an interrupt may have come between the two.
        self._call_first()

    def _call_first(self) -> None:
        """
        Race: 1. a thread finds who is first; 2. that one leaves; 3. it is called. Nobody else was
        called in its stead, for whoever leaves calls the next one himself.
        """
        for turn in tuple(self._line):
            if turn.path == self.path:
                with suppress(InvalidStateError):
                    turn.ready.set_result(None)
                return


Line = dict[Turn, None]
"""Turns in order of asking. One call of C puts one at the end, takes one out, or copies all."""

_LINES = 256


class Turns:
    """The lines of all paths. Several paths share one: a line that were made and removed with its
    path would be made for one turn while it is removed for another."""

    def __init__(self) -> None:
        self._lines: tuple[Line, ...] = tuple({} for _ in range(_LINES))

    def turn(self, path: str) -> Turn:
        """A turn that stands in no line yet."""
        return Turn(self, path)

    def line(self, path: str) -> Line:
        return self._lines[hash(path) % _LINES]

    def count(self) -> int:
        """How many stand in all lines."""
        return sum(map(len, self._lines))


def locked_here() -> str | None:
    """A directory that the calling thread has locked: whoever waits here for a thread that needs it
    waits for ever."""
    return next((lock.directory.path for lock in _locks_here()), None)
