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

from .._threads.interrupts import Doubled
from . import files
from .descriptors import Descriptor


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

    def __init__(self, directory: files.Directory, name: str) -> None:
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
    def directory(self) -> files.Directory:
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
        files.open_lock_file(self._sidecar, self._path)
        if not files.lock_file(self._sidecar.number, wait=True):
            self._sidecar.let_go()  # Windows removes no open file
            files.remove(self._path)  # of no use to anybody

    def leave(self) -> None:
        self.wanted = False
        if not any(
            other.wanted and other.directory is self._directory for other in _locks_here(self)
        ):
            self._directory.unlock()
        if self._sidecar:
            files.unlock_file(self._sidecar.number)
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


def _beneath(directory: files.Directory) -> files.Directory | None:
    """The same directory, where this thread has it open to lock it."""
    for lock in _locks_here():
        if lock.directory.path == directory.path:
            return lock.directory
    return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_locks.clear)
