"""Every system call of a save, and what each platform makes of it.

Nothing above this module calls `os` for a file, and no error is swallowed here that could mean a
lost byte: what cannot be done is raised, with the path and the cure where those are known. What
macOS and Windows need beside that stands in `darwin` and `windows`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

if sys.platform != "win32":
    import fcntl

from .._errors import NotACheckpointError
from .._options import FilePath
from . import darwin, windows
from .descriptors import Descriptor

_position = threading.Lock()
"""Held between seeking and reading where a system has no call for both: several threads read one
file."""

_WINDOWS = sys.platform == "win32"
REMOVES_OPEN_FILES = not _WINDOWS
_O_DIRECT: int = getattr(os, "O_DIRECT", 0)
_O_BASE = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
_SEPARATORS = (os.sep, os.altsep or os.sep)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""One slash, since `pathlib` makes one of two, and two letters, since one is a drive of Windows. A
folder that has such a name can still be given with ``./`` before it."""
_MAX_WRITE = 1 << 30
"""Linux writes at most 0x7ffff000 bytes a call, macOS fails above 2 GiB."""

BLOCK = 4096
"""Direct writes start, end and lie in memory at multiples of this."""

_UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_HARD_LINKS = {errno.EPERM, errno.EMLINK, *_UNSUPPORTED}
_NO_DIRECT_IO = {errno.EINVAL, *_UNSUPPORTED}
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.EBADF, *_UNSUPPORTED}
_NO_FLOCK = {errno.EBADF, errno.EINVAL, errno.ENOLCK, *_UNSUPPORTED}
_NO_OWNERS = {errno.EPERM, errno.EACCES, errno.EINVAL, *_UNSUPPORTED}
"""No permission, an owner whom this container has no number for, or a file system without."""
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
_LOCKED = windows.LOCKED if _WINDOWS else {errno.EAGAIN}
"""What a lock that does not wait gives where another process has it."""


def resolve(path: FilePath) -> str:
    """The one absolute name of a file: symlinks followed, ``~`` expanded, as ``str``.

    Raises:
        TypeError: `path` is no path.
        ValueError: it is empty, holds a NUL, is a URL, or begins with a ``~`` that nobody knows.
        IsADirectoryError: it ends with a separator.
        PermissionError: it is a symlink that the system does not let us follow, or is in a
            directory that may not be searched.
        OSError: it cannot be looked up, for another reason than that it is not there.
    """
    name = _local_name(path)
    if name.endswith(_SEPARATORS):
        raise IsADirectoryError(errno.EISDIR, "this names a directory; name a file in it", name)
    return _real_path(name)


def resolve_directory(path: FilePath) -> str:
    """The one absolute name of a directory, which need not be there yet. Raises as `resolve`."""
    return _real_path(_local_name(path))


def _local_name(path: FilePath) -> str:
    _refuse_open_file(path)
    name = os.fsdecode(path)
    if not name:
        raise ValueError("the path of a checkpoint must not be empty")
    if _URL.match(name):
        raise ValueError(
            f"{name!r} is a URL or names another machine, and genesis reads and writes local files "
            "only; save to a local path and upload the file when it is durable"
        )
    expanded = os.path.expanduser(name)
    if expanded == name and name.startswith(tuple(f"~{each}" for each in _SEPARATORS)):
        raise ValueError(f"{name!r}: no home directory is known here; give the whole path")
    return expanded


def _refuse_open_file(path: Any) -> None:
    # A path of the py library has a `read` too.
    if not hasattr(path, "__fspath__") and (hasattr(path, "read") or hasattr(path, "write")):
        kind = type(path).__name__
        raise TypeError(f"a path is expected, not an open file ({kind}): files are replaced whole")


def _real_path(name: str) -> str:
    try:
        # `realpath` takes any error for "no symlink", and reads links itself, past the system's
        # refusal to follow one that a stranger put into a directory like /tmp.
        os.stat(name)
        return os.path.realpath(name, strict=True)
    except OSError as exc:
        if exc.errno not in _NOT_THERE:
            raise
    try:
        return os.path.realpath(name)
    except FileNotFoundError as exc:  # `os.getcwd`, which names nothing
        problem = "the working directory is gone; give the whole path"
        raise FileNotFoundError(errno.ENOENT, problem, name) from exc


def host() -> str:
    """Six hex digits that stand for this machine's name."""
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:6]


def make_directories(path: str) -> None:
    """Make a directory, and what is missing above it, durably; no error where it is there.

    Raises:
        NotADirectoryError: something else has that name.
    """
    path = os.path.abspath(path)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        parent = os.path.dirname(path)
        make_directories(parent)
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            os.mkdir(path)
        with Directory(parent) as above:
            above.sync()
        return
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "this is no directory; name another one", path)


def names(directory: str | int) -> list[str]:
    """What is in a directory. Unlike its other calls, Python does not make this one again when it
    was interrupted."""
    while True:
        try:
            return os.listdir(directory)
        except InterruptedError:
            continue


def _with_cure(exc: OSError, path: str, cure: str) -> OSError:
    return OSError(exc.errno, f"{os.strerror(exc.errno or 0)}: {cure}", path)


class Directory:
    """An open directory. Names are relative to it, so renaming it on the way misplaces nothing.

    On Windows, which has no such calls, names are joined to its path.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = Descriptor()
        if not _WINDOWS:
            _open_directory(self._descriptor, path)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_open(self) -> bool:
        return bool(self._descriptor) or _WINDOWS

    def close(self) -> None:
        self._descriptor.let_go()

    @property
    def _fd(self) -> int | None:
        return None if _WINDOWS else self._descriptor.number

    def _name(self, name: str) -> str:
        return os.path.join(self.path, name) if _WINDOWS else name

    def join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def identity(self) -> tuple[int, int]:
        """What tells this directory from one that takes its name."""
        status = os.stat(self.path if self._fd is None else self._fd)
        return status.st_dev, status.st_ino

    def status(self, name: str) -> os.stat_result | None:
        """`lstat`, or ``None`` where there is no such name. Any other error is raised."""
        try:
            return os.stat(self._name(name), dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """Every name in it."""
        return names(self.path if self._fd is None else self._fd)

    def create(self, file: Descriptor, name: str, mode: int) -> None:
        """Open a new file for writing; never one that exists, never through a symlink."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BASE
        try:
            file.open(partial(os.open, dir_fd=self._fd), self._name(name), flags, mode)
        except PermissionError as exc:
            cure = "files cannot be created in this directory; check its permissions"
            raise _with_cure(exc, self.path, cure) from exc
        except OSError as exc:
            if exc.errno == errno.EROFS:
                cure = "the file system is mounted read-only"
                raise _with_cure(exc, self.path, cure) from exc
            raise

    def open(self, file: Descriptor, name: str) -> None:
        """Open an existing file, for looking at it and locking it; never through a symlink."""
        # Without waiting: what has the name may be a pipe, or leased to somebody.
        flags = os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | _O_BASE
        file.open(partial(os.open, dir_fd=self._fd), self._name(name), flags)

    def open_for_reading(self, file: Descriptor, name: str) -> None:
        """Open a file for reading; never through a symlink."""
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _O_BASE
        file.open(partial(os.open, dir_fd=self._fd), self._name(name), flags)

    def link(self, name: str, new_name: str) -> bool:
        """A second name for a file; ``False`` where the file system has no hard links."""
        try:
            os.link(
                self._name(name),
                self._name(new_name),
                src_dir_fd=self._fd,
                dst_dir_fd=self._fd,
                **({} if _WINDOWS else {"follow_symlinks": False}),
            )
        except NotImplementedError:
            return False
        except OSError as exc:
            if _has_no_hard_links(exc):
                return False
            if exc.errno == errno.EXDEV:  # within one directory
                cure = (
                    "this file is mounted by itself, so it cannot be replaced; mount its directory"
                )
                raise _with_cure(exc, self.join(name), cure) from exc
            raise
        return True

    def copy(self, name: str, new_name: str) -> None:
        """A durable copy under a new name, for file systems without hard links."""
        source, target = Descriptor(), Descriptor()
        try:
            flags = os.O_RDONLY | _O_BASE
            source.open(partial(os.open, dir_fd=self._fd), self._name(name), flags)
            self.create(target, new_name, 0o600)
            _copy_bytes(source.number, target.number)
            copy_ownership(target.number, os.fstat(source.number))
            sync_file(target.number)
            target.close()
        finally:
            source.let_go()
            target.let_go()

    def rename(self, name: str, new_name: str) -> None:
        """Give a file another name, replacing what had it, in one step."""
        if sys.platform == "win32":
            path = self.join(new_name)
            windows.while_held(lambda: windows.move(self.join(name), path), path)
        else:
            os.replace(name, new_name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def target(self, name: str) -> str | None:
        """Where a symlink leads, ``None`` where there is no such name.

        Raises:
            OSError: it is no symlink (``EINVAL``).
        """
        try:
            return os.readlink(self._name(name), dir_fd=self._fd)
        except FileNotFoundError:
            return None

    def point(self, name: str, target: str) -> bool:
        """Let a name be a symlink to another of this directory, in one step; ``False`` where
        somebody else was at it at the same time."""
        made = f".{name}.genesis-link"
        self.remove(made)  # which a killed process may have left
        try:
            os.symlink(target, self._name(made), dir_fd=self._fd)
            self.rename(made, name)
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove a name; no error where it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            windows.while_held(
                lambda: os.unlink(self._name(name), dir_fd=self._fd), self.join(name)
            )

    def sync(self) -> None:
        """Make the names durable. Windows does that with the rename itself; a file system that
        cannot, does it without being asked or not at all."""
        if (fd := self._fd) is None:
            return
        try:
            sync_file(fd)
        except OSError as exc:
            if exc.errno not in _NO_DIRECTORY_SYNC or not self.is_open():
                raise

    def lock(self) -> bool:
        """Wait for this directory's lock among processes; ``False`` where it has none."""
        if (fd := self._fd) is None:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as exc:
            if exc.errno in _NO_FLOCK:
                return False
            raise
        return True

    def unlock(self) -> None:
        # Not left to close: a child forked meanwhile holds a copy of the descriptor, and with it
        # the lock. What was done under the lock is done, so an error would be a lie about it.
        with contextlib.suppress(OSError):
            if (fd := self._fd) is not None:
                fcntl.flock(fd, fcntl.LOCK_UN)


def _open_directory(descriptor: Descriptor, path: str) -> None:
    try:
        descriptor.open(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        cure = "there is no such directory; create it first, with os.makedirs for instance"
        raise _with_cure(exc, path, cure) from exc
    except NotADirectoryError as exc:
        raise _with_cure(exc, path, "a checkpoint's parent must be a directory") from exc


def _has_no_hard_links(exc: OSError) -> bool:
    """Whether an error of `os.link` says that this file system cannot, or not for this file.

    EINVAL alone does not: on POSIX it would be our own mistake.
    """
    return exc.errno in _NO_HARD_LINKS or windows.has_no_hard_links(exc)


def _copy_bytes(source: int, target: int) -> None:
    offset = 0
    while data := read(source, 8 << 20, offset):
        write(target, data, offset)
        offset += len(data)


def open_lock_file(file: Descriptor, path: str) -> None:
    """Open a sidecar that processes lock where a directory cannot be. It is never removed: a name
    that goes and comes again gives two processes two different locks."""
    file.open(os.open, path, os.O_RDWR | os.O_CREAT | _O_BASE, 0o666)


def lock_file(fd: int, *, wait: bool) -> bool:
    """Lock an open file among processes; ``False`` where its file system has no locks, or where
    another process has it and `wait` is off."""
    if sys.platform == "win32":
        return _acquire(lambda: windows.lock(fd), poll=wait)
    flags = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    return _acquire(lambda: fcntl.flock(fd, flags), poll=False)


def _acquire(lock: Callable[[], None], *, poll: bool, locked: set[int] = _LOCKED) -> bool:
    """Call `lock`, with `poll` again and again while another process has it; ``False`` where it is
    not to be had. A file system without locks is told from a lock that is held: this would never
    end there.

    Args:
        locked: the errors that say that another process has it.
    """
    while True:
        try:
            lock()
        except OSError as exc:
            if exc.errno not in locked | _NO_FLOCK:
                raise
            if exc.errno in _NO_FLOCK or not poll:
                return False
            time.sleep(0.01)
        else:
            return True


def has_locks(fd: int) -> bool:
    """Whether the file system of an open file has locks: one that has none does not unlock either.
    Not for a file that the caller has locked, which this unlocks."""
    return sys.platform == "win32" or _acquire(lambda: fcntl.flock(fd, fcntl.LOCK_UN), poll=False)


def unlock_file(fd: int) -> None:
    """Errors say nothing: what was done under the lock is done, and closing unlocks as well."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            windows.unlock(fd)
        else:
            fcntl.flock(fd, fcntl.LOCK_UN)


def age(fd: int) -> float:
    """Seconds since an open file was last written."""
    return time.time() - os.fstat(fd).st_mtime


def start_direct(fd: int) -> bool:
    """Let writes to an open file bypass the page cache; ``False`` where that cannot be."""
    if not _O_DIRECT or _WINDOWS:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | _O_DIRECT)
    except OSError:
        return False
    return True


def stop_direct(fd: int) -> None:
    if _O_DIRECT and not _WINDOWS:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~_O_DIRECT)


def write(fd: int, data: Any, offset: int) -> None:
    """Write all of `data` at `offset`. Short writes are continued.

    Where direct I/O was granted on opening but is refused for this write (some file systems do
    that), it is switched off for the file and the write done through the page cache.
    """
    view = memoryview(data).cast("B")
    while view:
        try:
            written = _write_at(fd, view[:_MAX_WRITE], offset)
        except OSError as exc:
            if exc.errno not in _NO_DIRECT_IO or not _is_direct(fd):
                raise
            stop_direct(fd)
            continue
        if not written:
            raise OSError(errno.EIO, "a write wrote nothing")
        view = view[written:]
        offset += written


def _write_at(fd: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _position:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def _is_direct(fd: int) -> bool:
    return bool(_O_DIRECT) and bool(fcntl.fcntl(fd, fcntl.F_GETFL) & _O_DIRECT)


def sync_file(fd: int) -> None:
    """Put a file's bytes on the medium. The first error is final: the kernel may have dropped the
    pages it could not write, and a second call would report success."""
    if sys.platform == "darwin" and darwin.sync_fully(fd):
        return
    os.fsync(fd)


def size(fd: int) -> int:
    return os.fstat(fd).st_size


def room(fd: int) -> int:
    """Bytes that the file system of an open file has left for this user."""
    if not hasattr(os, "fstatvfs"):
        return sys.maxsize
    status = os.fstatvfs(fd)
    return status.f_bavail * status.f_frsize


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def copy_ownership(fd: int, status: os.stat_result) -> None:
    """Give an open file of ours the owner, group and mode of another, as far as that is permitted.

    Set-user-ID and set-group-ID bits were meant for that owner and are left out for any other.
    """
    if _WINDOWS:
        return
    mode = stat.S_IMODE(status.st_mode)
    mine = os.fstat(fd)
    given = (mine.st_uid, mine.st_gid) == (status.st_uid, status.st_gid) or _is_permitted(
        lambda: os.fchown(fd, status.st_uid, status.st_gid)
    )
    if not given:
        _is_permitted(lambda: os.fchown(fd, -1, status.st_gid))
        mode &= 0o777
    # If this is not permitted either, the file stays readable by us alone.
    _is_permitted(lambda: os.fchmod(fd, mode))


def _is_permitted(call: Callable[[], None]) -> bool:
    """Change owner or mode; ``False`` where that is not to be had."""
    try:
        call()
    except OSError as exc:
        if exc.errno not in _NO_OWNERS:
            raise
        return False
    return True


def open_for_reading(file: Descriptor, path: str) -> None:
    """Open a file for reading.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: as `open` does.
        NotACheckpointError: a pipe or a device.
    """
    # Without O_NONBLOCK, opening a pipe waits for whoever will write to it, for ever perhaps.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    file.open(os.open, path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(file.number).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(
                errno.EISDIR, "this is a directory; name a checkpoint file in it", path
            )
        if not stat.S_ISREG(mode):
            raise NotACheckpointError(path, "this is no regular file")
    except BaseException:
        file.let_go()
        raise


def identity(path: str) -> tuple[int, ...] | None:
    """What tells the file at a path from one that takes its place; ``None`` where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def reading(path: str) -> Iterator[int]:
    """A file open for reading for the length of a with block. Raises as `open_for_reading`."""
    file = Descriptor()
    try:
        open_for_reading(file, path)
        yield file.number
    finally:
        file.let_go()


def read_into(fd: int, target: memoryview, offset: int) -> int:
    """Fill `target` from `offset` on; return how many bytes there were."""
    done = 0
    while done < len(target):
        part = target[done : done + _MAX_WRITE]
        count = _read_at(fd, part, offset + done)
        if not count:
            break
        done += count
    return done


def _read_at(fd: int, target: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [target], offset)
    with _position:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(target))
    target[: len(data)] = data
    return len(data)


def read(fd: int, count: int, offset: int) -> bytes:
    """Up to `count` bytes from `offset` on."""
    if not hasattr(os, "pread"):
        data = bytearray(count)
        return bytes(memoryview(data)[: read_into(fd, memoryview(data), offset)])
    parts = []
    while count and (part := os.pread(fd, min(count, _MAX_WRITE), offset)):
        parts.append(part)
        count, offset = count - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def remove(path: str) -> None:
    """Remove a file; no error where it is gone already."""
    with contextlib.suppress(FileNotFoundError):
        windows.while_held(lambda: os.unlink(path), path)
