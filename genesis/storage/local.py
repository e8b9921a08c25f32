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
from typing import Any

from .._errors import DurabilityUnknownError
from .._os import files
from .._os.descriptors import Descriptor
from .._os.locks import DirectoryLock
from .._threads.interrupts import Doubled

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


class Replacement(Doubled):
    """One replacement of one file: `begin`, `write`, `sync`, `commit`; `leave` on any error.

    Leaving the block without a commit discards. Not thread-safe, except that writes to different
    offsets may run on different threads.

    Args:
        path: the real path of the target (see `_os.files.resolve`).
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
        self._second = ""
        """The old file's second name, before it is the backup."""
        self._backup_is_ours = False
        self._renaming = False
        self._finished = False
        self._file = Descriptor()
        self._old_size = 0
        self._old = Descriptor()
        self._directory = files.Directory(parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        self.leave()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = self.path  # a call on a descriptor failed, and knew no name

    def _fresh_name(self) -> str:
        return f".{self._short}.genesis-{files.host()}{secrets.token_hex(6)}.tmp"

    def begin(self) -> None:
        """Make the temporary file."""
        old = self._directory.status(self._name)
        if old is not None:
            _refuse_special(old, self.path)
        lock = DirectoryLock(self._directory, self._short)
        with lock, lock:
            whole = lock.take()
            if not lock.nested:  # or what is not locked may be of the commit that was interrupted
                self._sweep_if_due("." if whole else f".{self._short}.genesis-")
            # Nobody else may read what only the owner could read before: the old file's mode
            # comes later, through the descriptor.
            self._create(0o666 if old is None else 0o600)
            # Under the lock, so that nobody finds it without its mark: its writer lives.
            files.lock_file(self._file.number, wait=False)
        if old is not None:
            self._old_size = old.st_size
            files.copy_ownership(self._file.number, old)

    def _create(self, mode: int) -> None:
        # Known before it is made, so that an interrupt in between leaves nothing.
        self._temporary = self._fresh_name()
        try:
            self._directory.create(self._file, self._temporary, mode)
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
        file = Descriptor()
        try:
            self._directory.open(file, name)
            known = host == files.host() or files.age(file.number) > _DAY
            return known and files.lock_file(file.number, wait=False)
        except OSError:
            return False  # gone, a symlink, or not ours to touch
        finally:
            file.let_go()

    def _forget(self, name: str) -> None:
        """Remove a name where an error would hide another, or matters to nobody: then the next
        sweep is to find it, and is due at once."""
        try:
            self._directory.remove(name)
        except OSError:
            _next_sweeps.clear()

    def room(self) -> int:
        """Free bytes of the file system."""
        return files.room(self._file.number)

    def start_direct(self) -> bool:
        """Bypass the page cache from here on, if the file system can; see `_os.files.write`."""
        return files.start_direct(self._file.number)

    def stop_direct(self) -> None:
        files.stop_direct(self._file.number)

    def write(self, data: Any, offset: int) -> None:
        files.write(self._file.number, data, offset)

    def sync(self, size: int) -> None:
        """Put the file on the medium after making sure that it has `size` bytes."""
        written = files.size(self._file.number)
        if written != size:
            raise OSError(
                errno.EIO, f"{size} bytes were written, the file has {written}", self.path
            )
        files.sync_file(self._file.number)

    def commit(self) -> None:
        """Make the new file the target. It must have been synced.

        Raises:
            DurabilityUnknownError: it is the target, but the directory could not be synced.
            OSError: anything else; the target is the old file.
        """
        lock = DirectoryLock(self._directory, self._short)
        ending = _Ending(self)
        with lock, lock:
            lock.take()
            with ending, ending:
                # Under the directory's lock: the file's own lock goes with its descriptor, and a
                # sweeper would take the file for abandoned.
                self._file.close()
                self._back_up()
                self._renaming = True
                self._directory.rename(self._temporary, self._name)
                self._temporary = ""
                self._finish()
        self._directory.close()

    def end_commit(self) -> None:
        """Finish a commit that was cut short, or undo it; harmless where that is done."""
        if self._second:
            self._forget(self._second)
            self._second = ""
        if self._finished:
            return
        if self._is_renamed():
            self._temporary = ""
            self._finish()
        elif self._backup_is_ours:
            self._forget(self._backup)
            self._backup_is_ours = False

    def _is_renamed(self) -> bool:
        """
        Race: 1. the rename is done; 2. Ctrl-C raises before that is noted. So the names tell.
        """
        if not self._renaming or not self._temporary:
            return self._renaming
        try:
            return self._directory.status(self._temporary) is None
        except OSError:
            return False

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
        return not files.same_file(backup, target) and self._is_sound(self.path)

    def _link_backup(self) -> None:
        self._second = self._fresh_name()
        try:
            if not self._directory.link(self._name, self._second):
                self._directory.copy(self._name, self._second)
            self._directory.rename(self._second, self._backup)
        finally:
            # Also after success: renaming one name of a file to another of the same file does
            # nothing and leaves both.
            self._forget(self._second)

    def _finish(self) -> None:
        """What follows the rename. The new file stays, whatever goes wrong here."""
        try:
            self._directory.sync()
        except OSError as exc:
            self._finished = True  # the first error of a sync is final
            problem = f"its directory could not be synced ({exc}); it may not outlive a power cut"
            raise DurabilityUnknownError(self.path, problem) from exc
        try:
            self._hold_old()
            self._directory.remove(self._backup)
        except OSError as exc:
            self._finished = True
            problem = f"its backup could not be removed ({exc})"
            raise DurabilityUnknownError(self.path, problem) from exc
        self._finished = True

    def _hold_old(self) -> None:
        """Keep a large old file open, so that removing its last name frees nothing yet."""
        if self._old_size >= _SLOW_TO_FREE and not self._old and files.REMOVES_OPEN_FILES:
            with suppress(OSError):
                self._directory.open(self._old, self._backup)

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
        lock = DirectoryLock(self._directory, self._short)
        with lock, lock:
            lock.take()
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

    def take_old(self) -> Descriptor | None:
        """After a commit: what closing it frees the blocks of a large old file, on any thread."""
        old, self._old = self._old, Descriptor()
        return old or None

    def leave(self) -> None:
        """Remove what is not committed. Harmless after a commit, and after this."""
        self._file.let_go()
        if self._temporary:
            self._forget(self._temporary)
            self._temporary = ""
        self._old.let_go()
        self._directory.close()


class _Ending(Doubled):
    """The end of a commit, whatever comes in its middle."""

    def __init__(self, place: Replacement) -> None:
        self._place = place

    def leave(self) -> None:
        self._place.end_commit()


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


def restore(path: str, *, is_sound: Callable[[str], bool]) -> str | None:
    """Put the first sound leftover of a checkpoint in its place: the backup, else what a killed
    writer had finished, the newest first. What stands there is kept as ``PATH.damaged``.

    Returns:
        The path of the leftover; ``None`` where none is sound, and nothing was changed.

    Raises:
        OSError: it could not be renamed, or the directory not be synced.
    """
    folder, name = os.path.split(path)
    short = _short(name, path)
    with files.Directory(folder) as directory:
        lock = DirectoryLock(directory, short)
        with lock, lock:
            lock.take()
            start = f".{short}.genesis-"
            left = [each for each in directory.names() if each.startswith(start)]
            temporary = [each for each in left if _TEMPORARY.fullmatch(each)]
            temporary.sort(key=lambda each: _modified(directory, each), reverse=True)
            for leftover in (name + BACKUP_SUFFIX, *temporary):
                if is_sound(directory.join(leftover)):
                    if directory.status(name) is not None:
                        directory.rename(name, f"{name}.damaged")
                    directory.rename(leftover, name)
                    directory.sync()
                    return directory.join(leftover)
    return None


def _modified(directory: files.Directory, name: str) -> int:
    status = directory.status(name)
    return status.st_mtime_ns if status else 0
