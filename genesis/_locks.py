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

import os
import threading
from concurrent.futures import InvalidStateError
from contextlib import suppress

from . import _fs
from ._descriptor import Descriptor
from ._interrupts import Doubled
from ._waiting import OpenFuture


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


class DirectoryLock(Doubled):
    """The lock among processes for changing the file `name` of an open directory.

    Take it inside the block. It is the lock of the directory itself: that leaves no file behind. It
    is held for the moments of creating a temporary file and of the commit, never while data is
    written. Our own `flock` takes a fraction of the filelock library's time, and needs no file and
    no polling. Where a directory has no locks (NFS, Windows) a sidecar file is locked; where that
    has none either, processes that save one path at the same time are not kept apart.

    A signal handler may save in the middle of a commit: it locks through the descriptor of the
    commit that it interrupted, of which the kernel knows whether it has the lock. Where it has, it
    keeps it; where another process has, the handler waits for that one; and nothing that this
    process noted could be wrong about it.
    """

    def __init__(self, directory: _fs.Directory, name: str) -> None:
        self.thread = threading.get_ident()
        self.wanted = False
        """Whether the lock must be left alone by whoever interrupts."""
        self._directory = _beneath(directory) or directory
        self._sidecar = Descriptor()
        self._path = directory.join(f".{name}.genesis.lock")

        self.nested = self._directory is not directory
        """Whether this thread is in the middle of another commit there, which a signal handler
        interrupted."""

    @property
    def directory(self) -> _fs.Directory:
        return self._directory

    def take(self) -> bool:
        """Wait for the lock; return whether it holds for all files of the directory."""
        _locks[self] = None
        self.wanted = True
        if self._directory.lock():
            return True
        self._lock_sidecar()
        return False

    def _lock_sidecar(self) -> None:
        for other in _locks_here(self):
            if other._path == self._path and other._sidecar:
                return  # of a commit that was interrupted
        _fs.open_lock_file(self._sidecar, self._path)
        if not _fs.lock_file(self._sidecar.number, wait=True):
            self._sidecar.let_go()  # Windows removes no open file
            _fs.remove(self._path)  # of no use to anybody

    def leave(self) -> None:
        self.wanted = False
        if not any(
            other.wanted and other.directory is self._directory for other in _locks_here(self)
        ):
            self._directory.unlock()
        if self._sidecar:
            _fs.unlock_file(self._sidecar.number)
            self._sidecar.let_go()
        _locks.pop(self, None)


_locks: dict[DirectoryLock, None] = {}
"""Those that are taken, or about to be."""


def _locks_here(but: DirectoryLock | None = None) -> list[DirectoryLock]:
    """What the calling thread has locked, is about to lock, or has just unlocked, beneath what it
    does now."""
    me = threading.get_ident()
    return [
        lock
        for lock in tuple(_locks)
        if lock.thread == me and lock is not but and lock.directory.is_open()
    ]


def _beneath(directory: _fs.Directory) -> _fs.Directory | None:
    """The same directory, where this thread has it open to lock it."""
    for lock in _locks_here():
        if lock.directory.path == directory.path:
            return lock.directory
    return None


def locked_here() -> str | None:
    """A directory that the calling thread has locked: whoever waits here for a thread that needs it
    waits for ever."""
    return next((lock.directory.path for lock in _locks_here()), None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_locks.clear)
