"""Replacing a file in one step: temporary file, backup, rename, and the way back.

Guarantees, for a crash or an error at any system call:
- The target is the old file, whole, or the new one, whole. There is no moment without either.
- An error before the rename leaves the old file, no temporary file, and a backup only if there was
  one before. It is the first error that is raised; what fails in cleaning up after it is not.
- `commit` returns only when file, directory entry and the removal order are on the medium: a power
  cut later cannot bring the old file back.
- What a killed process left is removed by the first replacement that a process makes in the same
  directory (of the same target, where the directory has no lock), and by later ones: by each where
  the directory holds few names, and elsewhere as often as a hundredth of the time allows.
- Nothing but the target, its backup and our own temporary names is written, renamed or removed,
  whatever stands under those names. No symlink is followed.

It moves bytes it is given and knows nothing of what they mean, except through `is_sound`.

The order of a commit, and why it is this one:
1. sync the temporary file: a rename may reach the medium before data does;
2. lock the directory: two processes must not mix their steps 3 to 6;
3. give the old file its second name, the backup, through a temporary name of its own, so that an
   older backup is replaced in one step and never missing;
4. rename the temporary file to the target: the commit;
5. sync the directory: until then a power cut can undo 4;
6. remove the backup.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from . import _fs
from ._errors import DurabilityUnknownError
from ._locks import between_processes

BACKUP_SUFFIX = ".genesis.bak"
_LONGEST = 255
"""Bytes of a file name on every file system in common use."""
_TEMPORARY = re.compile(r"\..+\.genesis-([0-9a-f]{6})[0-9a-f]{12}\.tmp", re.DOTALL)
"""The first digits stand for the machine that the writer ran on."""
_DAY = 24 * 60 * 60
_SLOW_TO_FREE = 64 << 20
"""Bytes from which on removing a file takes as long as some writes: 0.2 s per GB on ext4 that
discards."""

_FEW_NAMES = 256
"""Names up to which listing a directory takes a small part of a save."""
_SWEEPS_KEPT = 1024
_next_sweeps: dict[tuple[int, int, str], float] = {}
"""When a large directory is to be listed again, by the monotonic clock."""

if hasattr(os, "register_at_fork"):
    # A child may have been forked because its parent is about to be killed.
    os.register_at_fork(after_in_child=_next_sweeps.clear)


class Replacement:
    """One replacement of one file: `begin`, `write`, `sync`, `commit`; `discard` on any error.

    Use as a context manager: leaving without a commit discards. As with a `Turn`, twice, so that an
    interrupt of the first discarding leaves nothing behind. Not thread-safe, except that
    writes to different offsets may run on different threads.

    Args:
        path: the real path of the target (see `_fs.resolve`).
        is_sound: tells whether the file at a path is whole; asked only where a backup is in the way
            of a new one, which a crash or a damaged target leaves behind.

    Raises:
        FileNotFoundError, NotADirectoryError: the directory is missing, or none.
        IsADirectoryError: the target is a directory.
        PermissionError: the directory cannot be written.
    """

    def __init__(self, path: str, *, is_sound: Callable[[str], bool]) -> None:
        self.path = path
        self._is_sound = is_sound
        parent, self._name = os.path.split(path)
        self._backup = self._name + BACKUP_SUFFIX
        self._short = _short(self._name, path)
        self._temporary = ""
        self._backup_is_ours = False
        self._fd = -1
        self._old_size = 0
        self._old = -1
        self._directory = _fs.Directory(parent)

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        self.discard()
        if isinstance(exc, OSError) and exc.errno is not None and exc.filename is None:
            exc.filename = self.path  # a call on a descriptor failed, and knew no name

    def _fresh_name(self) -> str:
        return f".{self._short}.genesis-{_fs.host()}{secrets.token_hex(6)}.tmp"

    def begin(self) -> None:
        """Make the temporary file."""
        old = self._directory.status(self._name)
        if old is not None:
            _refuse_special(old, self.path)
        with between_processes(self._directory, self._short) as whole:
            self._sweep_if_due("." if whole else f".{self._short}.genesis-")
            # Nobody else may read what only the owner could read before: the old file's mode
            # comes later, through the descriptor.
            self._create(0o666 if old is None else 0o600)
            # Under the lock, so that nobody finds it without its mark: its writer lives.
            _fs.lock_file(self._fd, wait=False)
        if old is not None:
            self._old_size = old.st_size
            _fs.copy_ownership(self._fd, old)

    def _create(self, mode: int) -> None:
        # Known before it is made, so that an interrupt in between leaves nothing.
        self._temporary = self._fresh_name()
        try:
            self._fd = self._directory.create(self._temporary, mode)
        except FileExistsError:
            self._temporary = ""  # somebody else's
            raise

    def _sweep_if_due(self, prefix: str) -> None:
        """Remove what killed writers left. A courtesy: it never makes a save fail.

        Listing a directory takes as long as it has names, 2 µs for each, with everybody else who
        saves there waiting. So a long listing is not made again before a hundred times as long has
        gone by.
        """
        with suppress(OSError):
            key = (*self._directory.identity(), prefix)
            began = time.monotonic()
            if began < _next_sweeps.get(key, began):
                return
            names = self._directory.names()
            self._sweep([name for name in names if name.startswith(prefix)])
            if len(names) > _FEW_NAMES:
                ended = time.monotonic()
                if len(_next_sweeps) >= _SWEEPS_KEPT:
                    _next_sweeps.clear()
                _next_sweeps[key] = ended + 100 * (ended - began)

    def _sweep(self, names: list[str]) -> None:
        for name in names:
            if (match := _TEMPORARY.fullmatch(name)) and self._is_abandoned(name, match[1]):
                self._forget(name)

    def _is_abandoned(self, name: str, host: str) -> bool:
        """
        Race: another process commits between our listing and our opening. It holds the directory's
        lock for that, and so do we.

        A living writer holds its file's lock. Some network file systems show locks to their own
        machine only, so what was written on another one must also be old.
        """
        try:
            fd = self._directory.open(name)
        except OSError:
            return False  # gone, a symlink, or not ours to touch
        try:
            known = host == _fs.host() or _fs.age(fd) > _DAY
            return known and _fs.lock_file(fd, wait=False)
        except OSError:
            return False
        finally:
            _fs.let_go(fd)

    def _forget(self, name: str) -> None:
        """Remove a name where an error would hide another, or matters to nobody: then the next
        sweep is to find it, and is due at once."""
        try:
            self._directory.remove(name)
        except OSError:
            _next_sweeps.clear()

    def room(self) -> int:
        """Free bytes of the file system."""
        return _fs.room(self._fd)

    def start_direct(self) -> bool:
        """Bypass the page cache from here on, if the file system can; see `_fs.write`."""
        return _fs.start_direct(self._fd)

    def stop_direct(self) -> None:
        _fs.stop_direct(self._fd)

    def write(self, data: Any, offset: int) -> None:
        _fs.write(self._fd, data, offset)

    def sync(self, size: int) -> None:
        """Put the file on the medium after making sure that it has `size` bytes."""
        written = _fs.size(self._fd)
        if written != size:
            raise OSError(
                errno.EIO, f"{size} bytes were written, the file has {written}", self.path
            )
        _fs.sync_file(self._fd)

    def commit(self) -> None:
        """Make the new file the target. It must have been synced.

        Raises:
            DurabilityUnknownError: it is the target, but the directory could not be synced.
            OSError: anything else; the target is the old file.
        """
        with between_processes(self._directory, self._short):
            self._close_file()
            try:
                self._back_up()
                self._directory.rename(self._temporary, self._name)
            except BaseException:
                if self._backup_is_ours:
                    self._forget(self._backup)
                raise
            try:
                self._temporary = ""
                self._finish()
            except OSError:
                raise
            except BaseException:
                # Ctrl-C, most likely while the directory was synced: it is committed all the same.
                self._temporary = ""
                self._finish()
                raise
        self._directory.close()

    def _close_file(self) -> None:
        # Under the directory's lock: the file's own lock goes with its descriptor, and a sweeper
        # would take the file for abandoned.
        fd, self._fd = self._fd, -1
        _fs.close(fd)

    def _back_up(self) -> None:
        """Give the old file its second name, unless there is none or it has it."""
        old = self._directory.status(self._name)
        if old is None:
            return
        _refuse_special(old, self.path)
        there = self._directory.status(self._backup)
        if there is None or self._is_outdated(there, old):
            # From here on: a call that reports an error may have been done all the same.
            self._backup_is_ours = True
            self._link_backup()

    def _is_outdated(self, backup: os.stat_result, target: os.stat_result) -> bool:
        """Whether a backup that is there already may give way to one of the target.

        Not if it is the target under its second name, and not if it is the only sound copy.
        """
        return not _fs.same_file(backup, target) and self._is_sound(self.path)

    def _link_backup(self) -> None:
        name = self._fresh_name()
        try:
            if not self._directory.link(self._name, name):
                self._directory.copy(self._name, name)
            self._directory.rename(name, self._backup)
        finally:
            # Also after success: renaming one name of a file to another of the same file does
            # nothing and leaves both.
            self._forget(name)

    def _finish(self) -> None:
        """What follows the rename. The new file stays, whatever goes wrong here."""
        try:
            self._directory.sync()
        except OSError as exc:
            problem = f"its directory could not be synced ({exc}); it may not outlive a power cut"
            raise DurabilityUnknownError(self.path, problem) from exc
        try:
            self._hold_old()
            self._directory.remove(self._backup)
        except OSError as exc:
            problem = f"its backup could not be removed ({exc})"
            raise DurabilityUnknownError(self.path, problem) from exc

    def _hold_old(self) -> None:
        """Keep a large old file open, so that removing its last name frees nothing yet."""
        if self._old_size >= _SLOW_TO_FREE and self._old < 0 and _fs.REMOVES_OPEN_FILES:
            with suppress(OSError):
                self._old = self._directory.open(self._backup)

    def remove(self) -> bool:
        """Remove the target and its backup instead, and what killed writers left of it.

        Returns:
            Whether there was a target or a backup.

        Raises:
            OSError: one of them could not be removed, or the directory not be synced.
        """
        target = self._directory.status(self._name)
        if target is not None:
            _refuse_special(target, self.path)
        with between_processes(self._directory, self._short):
            start = f".{self._short}.genesis-"
            self._sweep([name for name in self._directory.names() if name.startswith(start)])
            # The backup first: alone, it would come back as the checkpoint it is of.
            there = [
                name
                for name in (self._backup, self._name)
                if self._directory.status(name) is not None
            ]
            for name in there:
                self._directory.remove(name)
            self._directory.sync()
        return bool(there)

    def take_old(self) -> Callable[[], None] | None:
        """After a commit: a call that frees the blocks of a large old file, on any thread."""
        fd, self._old = self._old, -1
        return partial(_fs.let_go, fd) if fd >= 0 else None

    def discard(self) -> None:
        """Remove what is not committed. Harmless after a commit, and after a discard."""
        if self._fd >= 0:
            with suppress(OSError):
                self._close_file()
        if self._temporary:
            self._forget(self._temporary)
            self._temporary = ""
        if free := self.take_old():
            free()
        self._directory.close()


def _short(name: str, path: str) -> str:
    """A file's name, or where that leaves no room for what we add, its start and a digest."""
    size = len(os.fsencode(name))
    if size > _LONGEST - len(BACKUP_SUFFIX):
        cure = f"leave room for the {len(BACKUP_SUFFIX)} bytes of {BACKUP_SUFFIX}"
        raise OSError(errno.ENAMETOOLONG, f"the file name is too long; {cure}", path)
    if size <= _LONGEST - 32:
        return name
    return f"{name[:40]}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


def _refuse_special(status: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(
            errno.EISDIR, "this is a directory; name a file in it for the checkpoint", path
        )
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "this is no regular file, so it cannot be replaced", path)
