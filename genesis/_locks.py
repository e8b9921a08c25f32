"""Who may touch a path: turns in order of asking within the process, one lock among processes.

Readers need neither: a rename shows them the old file or the new one. Nothing here knows what is
done under a lock.

Guarantees:
- Turns of one path come first in, first out, whichever thread waits for them.
- A process that dies, however it dies, holds no lock: the kernel drops it.
- A forked child starts without turns, and cannot release what its parent holds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress

from . import _fs


class Turn:
    """A place in the line of one path.

    Use it as a context manager, and enter the line inside: leaving the block leaves the line. Every
    step may be repeated, and `leave` repairs a step that was cut short, so ``with turn, turn:``
    leaves the line whatever line of this module an interrupt hits.
    """

    def __init__(self, turns: Turns, path: str) -> None:
        self.path = path
        self.ready: Future[None] = Future()
        """Resolves when it is this turn's time. Any callback runs on the thread that made way."""
        self.needed: int | None = None
        """The thread that entered the line, while the turn goes no further without it: it is to do
        the work, or runs the event loop of the coroutine that is."""
        self._turns = turns

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Stand at the end of the line; ready at once where nobody is before."""
        self.needed = threading.get_ident()
        self._turns._enter(self)

    def wait(self) -> None:
        """Wait until it is this turn's time.

        Raises:
            RuntimeError: an earlier turn needs this very thread, so waiting would never end.
        """
        if not self.ready.done() and self._turns._needs_this_thread(self):
            raise RuntimeError(
                f"a save of {self.path} was interrupted on this thread, or waits in a coroutine of "
                "its event loop, and cannot go on before this call returns; await "
                "genesis.aio.save, save to another path, or set a flag and save later"
            )
        self.ready.result()

    def is_needed_here(self) -> bool:
        """Whether this turn goes no further before the calling thread does."""
        return self.needed == threading.get_ident()

    def leave(self) -> None:
        """Make way for the next; harmless where it was done, and on any thread."""
        self._turns._leave(self)


class Turns:
    """The lines of all paths."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may save; guards _lines
        self._lines: dict[str, deque[Turn]] = {}

    def turn(self, path: str) -> Turn:
        """A turn that stands in no line yet."""
        return Turn(self, path)

    def _enter(self, turn: Turn) -> None:
        with self._lock:
            line = self._lines.setdefault(turn.path, deque())
            line.append(turn)
            first = line[0]
        _make_ready(first)

    def _needs_this_thread(self, turn: Turn) -> bool:
        with self._lock:
            line = tuple(self._lines.get(turn.path, ()))
        before = line[: line.index(turn)] if turn in line else ()
        return any(other.is_needed_here() for other in before)

    def _leave(self, turn: Turn) -> None:
        with self._lock:
            line = self._lines.get(turn.path)
            if line is None:
                return
            if turn in line:
                line.remove(turn)
            if not line:
                del self._lines[turn.path]
                return
            first = line[0]
        # Also where this turn was gone already: an interrupt may have come between the two.
        _make_ready(first)


def _make_ready(turn: Turn) -> None:
    with suppress(InvalidStateError):
        turn.ready.set_result(None)


@contextmanager
def between_processes(directory: _fs.Directory, name: str) -> Iterator[bool]:
    """Hold the lock among processes for changing the file `name` of an open directory.

    Yields whether it holds for all files of the directory.

    It is the lock of the directory itself: that leaves no file behind. It is held for the moments
    of creating a temporary file and of the commit, never while data is written. Our own `flock`
    takes a fraction of the filelock library's time, and needs no file and no polling. Where a
    directory has no locks (NFS, Windows) a sidecar file is locked; where that has none either,
    processes that save one path at the same time are not kept apart.
    """
    if directory.path in _mine():
        yield False  # a signal handler's save in the middle of one on this thread
        return
    with _locked(directory, name) as whole:
        _mine().add(directory.path)
        try:
            yield whole
        finally:
            _mine().discard(directory.path)


_threads = threading.local()


def _mine() -> set[str]:
    """The directories that this thread has locked."""
    if not hasattr(_threads, "directories"):
        _threads.directories = set()
    mine: set[str] = _threads.directories
    return mine


@contextmanager
def _locked(directory: _fs.Directory, name: str) -> Iterator[bool]:
    if directory.lock():
        try:
            yield True
        finally:
            directory.unlock()
    else:
        with _sidecar_locked(directory.join(f".{name}.genesis.lock")):
            yield False


@contextmanager
def _sidecar_locked(path: str) -> Iterator[None]:
    fd = _fs.open_lock_file(path)
    try:
        if not _fs.lock_file(fd, wait=True):
            _fs.remove(path)  # of no use to anybody
        yield
    finally:
        _fs.unlock_file(fd)
        _fs.let_go(fd)
