"""Fresh memory whose pages are made with the bytes of a file in them, where Linux lets us.

Where it does not, the caller reads the file as usual. Knows nothing of pickles, plans or paths.
"""

from __future__ import annotations

import mmap
import os
import platform
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

from .._threads.interrupts import Doubled
from .._tuning import on
from .descriptors import Descriptor
from .memory import PAGE, address_of, align
from .memory import libc as _libc
from .memory import madvise as _madvise

if sys.platform != "win32":
    import fcntl

_SYSCALL = {"x86_64": 323, "aarch64": 282}.get(platform.machine())
"""The number of `userfaultfd`, which no library names."""
_API, _REGISTER, _UNREGISTER, _COPY = 0xC018AA3F, 0xC020AA00, 0x8010AA01, 0xC028AA03
_VERSION, _MISSING, _USER_MODE_ONLY = 0xAA, 1, 1
_POPULATE_READ = 22
_FILLED_FROM = 1 << 20
"""Bytes from which on it is worth the calls."""
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Filler(Doubled):
    """Fills fresh memory with the bytes of a file as a context manager, or leaves that to others.

    To read into memory that was never touched interrupts the kernel for each page, which it clears
    and then overwrites. Linux 5.11 makes pages with their bytes in them, for whoever has memory
    watched by a `userfaultfd`. It must then be touched by nobody until the block ends, but where
    `fill` has returned. Several threads may call that at once.

    Args:
        memory: of `private_memory`, untouched.
        fd: of the file whose bytes from 0 on go there.
        step: parts to `fill` begin at multiples of this.
    """

    def __init__(self, memory: mmap.mmap, fd: int, step: int) -> None:
        self._address = address_of(memory)
        self._size = align(len(memory), PAGE)
        self._file = fd
        self._pays = self._size >= _FILLED_FROM and step % PAGE == 0
        self._watch = Descriptor()

    def __enter__(self) -> Self:
        if not self._watch and self._pays and not _huge_pages_come_unasked():
            self._begin()
        return self

    def _begin(self) -> None:
        if _open_userfaultfd(self._watch):
            try:
                self._call(_API, "QQQ", _VERSION, 0, 0)
                self._call(_REGISTER, "QQQQ", self._address, self._size, _MISSING, 0)
            except OSError:
                self._watch.let_go()

    def leave(self) -> None:
        if self._watch:
            # A forked child may have the descriptor too, so that closing it is not enough.
            with suppress(OSError):  # it is not registered, then
                self._call(_UNREGISTER, "QQ", self._address, self._size)
            self._watch.let_go()

    def fill(self, low: int, high: int) -> bool:
        """Whether the bytes between two offsets are there. If not, they may be read as usual."""
        if not self._watch:
            return False
        target, size = self._address + low, align(high - low, PAGE)
        try:
            source = mmap.mmap(self._file, high - low, access=mmap.ACCESS_COPY, offset=low)
            address = address_of(source)
            _madvise(address, size, _POPULATE_READ)
            # Where the file has become shorter, this fails, and there is no signal as for a read.
            self._call(_COPY, "QQQQq", target, address, size, 0, 0)
        except (OSError, ValueError):
            self._call(_UNREGISTER, "QQ", target, size)
            return False
        return os.fstat(self._file).st_size >= high

    def _call(self, request: int, layout: str, *values: int) -> None:
        fcntl.ioctl(self._watch.number, request, bytearray(struct.pack(layout, *values)))


def _huge_pages_come_unasked() -> bool:
    """Then whoever touches memory first gets large ones, which serve better than many small."""
    with suppress(OSError):
        return "[always]" in _HUGE_PAGES.read_text()
    return False


def _open_userfaultfd(watch: Descriptor) -> bool:
    """``False`` where this is no Linux, or one that does not let us."""
    if _SYSCALL is None or not on.userfaultfd or sys.platform != "linux":
        return False
    watch.open(_libc.syscall, _SYSCALL, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
    if watch.number < 0:
        watch.let_go()
    return bool(watch)
