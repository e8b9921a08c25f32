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
from concurrent.futures import Future
from contextlib import contextmanager

from . import _fs


class Turn:
    """A place in the line of one path. Leave it exactly once, at any time, from any thread."""

    def __init__(self, turns: Turns, path: str) -> None:
        self.path = path
        self.ready: Future[None] = Future()
        """Resolves when it is this turn's time. Any callback runs on the thread that made way."""
        self.holder: int | None = None
        """The thread that works on the path without letting anything else run on it."""
        self._turns = turns

    @contextmanager
    def held(self) -> Iterator[None]:
        """For the length of a with block this thread does nothing else, unless interrupted."""
        self.holder = threading.get_ident()
        try:
            yield
        finally:
            self.holder = None

    def leave(self) -> None:
        self._turns._leave(self)


class Turns:
    """The lines of all paths."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may save; guards _lines
        self._lines: dict[str, deque[Turn]] = {}

    def enter(self, path: str) -> Turn:
        """Stand at the end of the line; ready at once where nobody is before.

        Raises:
            RuntimeError: this thread is in the middle of a save of the path, so that waiting for it
                would never end. That is a signal handler's or a reduction's call.
        """
        turn = Turn(self, path)
        with self._lock:
            line = self._lines.setdefault(path, deque())
            if any(other.holder == threading.get_ident() for other in line):
                raise RuntimeError(
                    f"a save of {path} was interrupted on this thread and cannot go on before this "
                    "call returns; save to another path, or set a flag and save later"
                )
            line.append(turn)
            first = len(line) == 1
        if first:
            turn.ready.set_result(None)
        return turn

    @contextmanager
    def taken(self, path: str) -> Iterator[None]:
        """Wait for the path's turn and keep it for the length of a with block."""
        turn = self.enter(path)
        try:
            turn.ready.result()
            with turn.held():
                yield
        finally:
            turn.leave()

    def _leave(self, turn: Turn) -> None:
        with self._lock:
            line = self._lines.get(turn.path)
            if line is None or turn not in line:
                return
            was_first = line[0] is turn
            line.remove(turn)
            if not line:
                del self._lines[turn.path]
            following = line[0] if line and was_first else None
        if following is not None:
            following.ready.set_result(None)


@contextmanager
def between_processes(directory: _fs.Directory, name: str) -> Iterator[None]:
    """Hold the lock among processes for changing the file `name` of an open directory.

    It is the lock of the directory itself: that leaves no file behind. It is held for the moments
    of creating a temporary file and of the commit, never while data is written. Our own `flock`
    takes 9 µs; the filelock library 165 µs or more, a polling wait of 50 ms and a file. Where a
    directory has no locks (NFS, Windows) a sidecar file is locked.
    """
    if directory.path in _mine():
        yield  # a signal handler's save in the middle of one on this thread
        return
    with _locked(directory, name):
        _mine().add(directory.path)
        try:
            yield
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
def _locked(directory: _fs.Directory, name: str) -> Iterator[None]:
    if directory.lock():
        try:
            yield
        finally:
            directory.unlock()
        return
    fd = _fs.open_lock_file(directory.join(f".{name}.genesis.lock"))
    try:
        _fs.lock_file(fd, wait=True)
        try:
            yield
        finally:
            _fs.unlock_file(fd)
    finally:
        _fs.close(fd)
