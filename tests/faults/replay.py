"""Recorded system calls turned into what they did to a disk: changes and syncs of inodes.

Names, descriptors and positions are replayed, to know which inode each call changed. A call that is
not known here is refused, so nothing is left out silently.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from . import tracer
from .disk import Change, Inode, Recording, Sync
from .tracer import Call, Trace

_READS = {
    "read", "pread64", "preadv", "preadv2", "readv", "fstat", "stat", "lstat", "newfstatat",
    "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "getdents",
    "getdents64", "flock", "fadvise64", "statfs", "fstatfs", "getxattr", "fgetxattr",
    "lgetxattr", "listxattr", "flistxattr", "llistxattr", "ioctl", "sync_file_range",
}  # fmt: skip
_MAP_SHARED, _PROT_WRITE = 1, 2
_F_DUPFD, _F_DUPFD_CLOEXEC = 0, 1030
_KEEP_SIZE = 1


class UnknownCallError(Exception):
    """The model does not know what a call does to the disk, so it proves nothing about it."""


@dataclass(slots=True)
class _Description:
    """An open file description."""

    inode: Inode
    position: int = 0
    append: bool = False
    synced_writes: bool = False


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The regular files of a directory: their bytes and modes. Links to files stay as they are."""
    return {
        entry.name: (Path(entry.path).read_bytes(), entry.stat().st_mode & 0o7777)
        for entry in os.scandir(folder)
        if entry.is_file(follow_symlinks=False)
    }


def read_trace(
    trace: Trace, folder: str, before: dict[str, tuple[bytes, int]], umask: int
) -> Recording:
    """Turn recorded calls into changes and syncs.

    Raises:
        UnknownCallError: a call did something that the model has no word for.
    """
    return _Reader(os.path.realpath(folder), before, umask).read(trace)


class _Reader:
    """Replays calls on names, descriptors and positions, to know which inode each one changed."""

    def __init__(self, folder: str, before: dict[str, tuple[bytes, int]], umask: int) -> None:
        self._folder = folder
        self._umask = umask
        self._numbers = itertools.count(1)
        directory = Inode(0)
        names = {
            name: Inode(next(self._numbers), content, mode)
            for name, (content, mode) in before.items()
        }
        self._made = Recording(directory, names)
        self._live = dict(names)
        self._sizes = {inode: len(inode.content) for inode in names.values()}
        self._open: dict[tuple[int, int], _Description] = {}

    def read(self, trace: Trace) -> Recording:
        for call in sorted(trace.calls, key=lambda call: call.ended):
            if call.result is not None and call.result >= 0:
                self._apply(call)
        marks = [mark.at for mark in trace.marks]
        self._made.durable = marks[1:-1]  # between START and STOP
        return self._made

    def _apply(self, call: Call) -> None:
        handler = getattr(self, f"_on_{_FAMILIES.get(call.name, call.name)}", None)
        if handler is not None:
            handler(call)
        elif call.name not in _READS:
            raise UnknownCallError(f"{call}: no model of what it does to the disk")

    def _change(self, call: Call, inode: Inode, **what: object) -> None:
        self._made.changes.append(Change(inode, call.began, call.ended, **what))  # type: ignore[arg-type]

    def _sync(self, call: Call, inode: Inode | None, *, data_only: bool = False) -> None:
        self._made.syncs.append(Sync(inode, call.began, call.ended, data_only))

    def _rename_in(self, call: Call, names: dict[str, Inode | None]) -> None:
        self._change(call, self._made.directory, names=tuple(names.items()))
        for name, inode in names.items():
            self._live.pop(name, None)
            if inode is not None:
                self._live[name] = inode

    def _name(self, call: Call, path: str) -> str:
        folder, name = os.path.split(path)
        if folder != self._folder:
            raise UnknownCallError(f"{call}: outside of the directory that is modelled")
        return name

    def _description(self, call: Call) -> _Description:
        key = call.pid, tracer.signed(call.args[0])
        if key not in self._open:
            path = call.paths[0]
            inode = (
                self._made.directory
                if path == self._folder
                else self._live.get(os.path.basename(path))
            )
            if inode is None:
                raise UnknownCallError(f"{call}: a descriptor from before the recording")
            self._open[key] = _Description(inode)
        return self._open[key]

    def _on_open(self, call: Call) -> None:
        assert call.result is not None
        flags = call.args[1 if call.name == "open" else 2]
        path = os.path.realpath(call.paths[-1]) if not flags & os.O_NOFOLLOW else call.paths[-1]
        if path == self._folder:
            inode = self._made.directory
        else:
            inode = self._opened(call, self._name(call, path), flags)
        synced = bool(flags & os.O_DSYNC)
        self._open[call.pid, call.result] = _Description(
            inode, append=bool(flags & os.O_APPEND), synced_writes=synced
        )

    def _opened(self, call: Call, name: str, flags: int) -> Inode:
        inode = self._live.get(name)
        if inode is None:
            if not flags & os.O_CREAT:
                raise UnknownCallError(f"{call}: a file that the model never saw created")
            mode = call.args[2 if call.name == "open" else 3] & 0o7777 & ~self._umask
            inode = Inode(next(self._numbers), b"", mode)
            self._sizes[inode] = 0
            self._rename_in(call, {name: inode})
        elif flags & os.O_TRUNC and flags & os.O_ACCMODE:
            self._resize(call, inode, 0)
        return inode

    def _resize(self, call: Call, inode: Inode, size: int) -> None:
        self._change(call, inode, size=size)
        self._sizes[inode] = size

    def _on_close(self, call: Call) -> None:
        self._open.pop((call.pid, tracer.signed(call.args[0])), None)

    def _on_dup(self, call: Call) -> None:
        assert call.result is not None
        self._open[call.pid, call.result] = self._description(call)

    def _on_fcntl(self, call: Call) -> None:
        if call.args[1] in (_F_DUPFD, _F_DUPFD_CLOEXEC):
            self._on_dup(call)

    def _on_lseek(self, call: Call) -> None:
        assert call.result is not None
        self._description(call).position = call.result

    def _on_read(self, call: Call) -> None:
        self._description(call).position += call.result or 0

    def _on_write(self, call: Call) -> None:
        opened = self._description(call)
        offset = self._sizes[opened.inode] if opened.append else opened.position
        self._wrote(call, opened, offset)
        opened.position = offset + (call.result or 0)

    def _on_pwrite(self, call: Call) -> None:
        self._wrote(call, self._description(call), call.args[3])

    def _wrote(self, call: Call, opened: _Description, offset: int) -> None:
        if call.data is None:
            raise UnknownCallError(f"{call}: its bytes were not recorded")
        data = call.data[: call.result]
        self._change(call, opened.inode, offset=offset, data=data)
        self._sizes[opened.inode] = max(self._sizes[opened.inode], offset + len(data))
        if opened.synced_writes or (call.name == "pwritev2" and call.args[5]):
            self._sync(call, opened.inode)

    def _on_ftruncate(self, call: Call) -> None:
        self._resize(call, self._description(call).inode, call.args[1])

    def _on_fallocate(self, call: Call) -> None:
        inode = self._description(call).inode
        mode, end = call.args[1], call.args[2] + call.args[3]
        if mode not in (0, _KEEP_SIZE):
            raise UnknownCallError(f"{call}: mode {mode}")
        if mode == 0 and end > self._sizes[inode]:
            self._resize(call, inode, end)

    def _on_fchmod(self, call: Call) -> None:
        self._change(call, self._description(call).inode, mode=call.args[1] & 0o7777)

    def _on_fchmodat(self, call: Call) -> None:
        name = self._name(call, call.paths[0])
        self._change(call, self._live[name], mode=call.args[-4] & 0o7777)

    def _on_fchown(self, call: Call) -> None:
        """Owners are not modelled: whoever reads the states owns them all."""

    def _on_fsync(self, call: Call) -> None:
        inode = self._description(call).inode
        self._sync(call, inode, data_only=call.name == "fdatasync")

    def _on_sync(self, call: Call) -> None:
        self._sync(call, None)

    def _on_link(self, call: Call) -> None:
        old, new = (self._name(call, path) for path in call.paths)
        self._rename_in(call, {new: self._live[old]})

    def _on_rename(self, call: Call) -> None:
        old, new = (self._name(call, path) for path in call.paths)
        if call.name == "renameat2" and call.args[4]:
            raise UnknownCallError(f"{call}: flags {call.args[4]}")
        if self._live[old] is not self._live.get(new):  # else it does nothing
            self._rename_in(call, {old: None, new: self._live[old]})

    def _on_unlink(self, call: Call) -> None:
        self._rename_in(call, {self._name(call, call.paths[0]): None})

    def _on_mmap(self, call: Call) -> None:
        if call.args[3] & _MAP_SHARED and call.args[2] & _PROT_WRITE:
            raise UnknownCallError(f"{call}: writes through a mapping leave no calls")


_FAMILIES = {
    "openat": "open", "creat": "open", "dup2": "dup", "dup3": "dup", "writev": "write",
    "pwrite64": "pwrite", "pwritev": "pwrite", "pwritev2": "pwrite", "fdatasync": "fsync",
    "syncfs": "sync", "linkat": "link", "renameat": "rename", "renameat2": "rename",
    "unlinkat": "unlink", "readv": "read",
}  # fmt: skip
