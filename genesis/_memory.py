"""Memory by address: fresh pages, and copies that Python has no objects for.

Each function has a way that works everywhere, and where Linux offers one, another that costs less.
Addresses are the caller's to vouch for. Knows nothing of pickles, plans or paths.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
import sys
from array import array
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from ._descriptor import Descriptor
from ._format import ALIGNMENT, align
from ._interrupts import Doubled

if sys.platform != "win32":
    import fcntl

    _libc = ctypes.CDLL(None)
    _madvise = _libc.madvise
    _madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

PAGE = mmap.PAGESIZE
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of Linux 5.14, which the mmap module does not name."""
_PRESENT_AT_A_TIME = 64 << 20
"""Who maps or frees memory waits for the kernel to be done with a call."""


# Two names of one function: a call through `ctypes.PyDLL` keeps the GIL, one through the default
# prototype releases it. A copy of a few hundred bytes must keep it: giving it up thousands of times
# a save would hand the interpreter to another thread for a switch interval each.
def _holding(function: object, *argtypes: Any) -> Any:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    return ctypes.PYFUNCTYPE(ctypes.c_void_p, *argtypes)(address or 0)


copy_held = _holding(ctypes.memmove, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
zero_held = _holding(ctypes.memset, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)


class PrivateMemory(mmap.mmap):
    """A mapping behind which there is no file."""


def private_memory(size: int) -> PrivateMemory:
    """Fresh zeroed memory, page-aligned."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return PrivateMemory(-1, size)
    # Private, or a forked child would share the bytes that a save of its parent is made of.
    return PrivateMemory(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def make_present(address: int, size: int) -> bool:
    """Let the kernel give every page of some memory of ours, with its bytes as they are; ``False``
    where it cannot. Other threads run meanwhile: the method of `mmap` would hold the GIL, for half
    a second a gigabyte and more."""
    if sys.platform == "win32":
        return False
    for offset in range(0, size, _PRESENT_AT_A_TIME):
        part = min(_PRESENT_AT_A_TIME, size - offset)
        if _madvise(address + offset, part, _POPULATE_WRITE):
            return False
    return True


def address_of(memory: mmap.mmap) -> int:
    """Of the first byte; the mapping must be writable."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def discard(address: int, size: int) -> None:
    """Give whole pages of private memory back to the system, as far as it takes them. They stay
    mapped, and read as zeros."""
    if sys.platform == "linux":
        _madvise(address, size, mmap.MADV_DONTNEED)


# ----------------------------------------------------------------------------- many small copies

_ZEROS = ctypes.create_string_buffer(ALIGNMENT)
_VECTORS = 1024
"""IOV_MAX, what one call of the kernel takes: a buffer and the gap behind it are two."""
_GATHERED_FROM = 32
"""Buffers from which on it is worth a call."""

_Write = Callable[..., int]
_VECTORED = (
    ctypes.c_int,
    *(ctypes.c_void_p, ctypes.c_ulong),
    *(ctypes.c_void_p, ctypes.c_ulong),
    ctypes.c_ulong,
)
try:
    # Copies from this process to another, which may be the same; Linux has it. The first keeps the
    # GIL, the second gives it up.
    _symbol = "process_vm_writev", ctypes.pythonapi
    _write_memory: _Write | None = ctypes.PYFUNCTYPE(ctypes.c_ssize_t, *_VECTORED)(_symbol)
    _write_memory_released: _Write | None = ctypes.CFUNCTYPE(ctypes.c_ssize_t, *_VECTORED)(_symbol)
except AttributeError:
    _write_memory = _write_memory_released = None


def gather(target: int, sources: list[int], sizes: list[int], *, checked: bool = False) -> None:
    """Copy buffers to `target` one behind the other, each with zeros up to a multiple of 64 bytes.
    Holds the GIL.

    Args:
        checked: some may have lost their memory; see `copy_checked`.

    Raises:
        UnreadableMemoryError: one has.
    """
    few = len(sizes) < _GATHERED_FROM and not checked
    if few or not _gathered(target, sources, sizes):
        steps = list(map(align, sizes))
        zero_held(target, 0, sum(steps))
        # The quickest way to run an iterator to its end.
        deque(map(copy_held, accumulate(steps, initial=target), sources, sizes), maxlen=0)


def _gathered(target: int, sources: list[int], sizes: list[int]) -> bool:
    """Whether the kernel made the copies; a sandbox may forbid it. A call through `ctypes` for each
    buffer costs more than to copy it does."""
    if _write_memory is None:
        return False
    gaps = [-size & ALIGNMENT - 1 for size in sizes]
    vectors = array("L", [ctypes.addressof(_ZEROS)]) * (4 * len(sizes))
    vectors[0::4], vectors[1::4] = array("L", sources), array("L", sizes)
    vectors[3::4] = array("L", gaps)
    address, step = vectors.buffer_info()[0], _VECTORS // 2
    for first in range(0, len(sizes), step):
        some = slice(first, first + step)
        into = array("L", [target, sum(sizes[some]) + sum(gaps[some])])
        count = 2 * len(sizes[some])
        at = address + 4 * first * vectors.itemsize
        if _write_memory(os.getpid(), at, count, into.buffer_info()[0], 1, 0) != into[1]:
            if _kernel_copies():
                raise UnreadableMemoryError
            return False
        target += into[1]
    return True


def _kernel_copies() -> bool:
    """Whether it copies at all: a copy that failed then met memory that is not there."""
    return _copied(_write_memory, ctypes.addressof(_SCRATCH), ctypes.addressof(_ZEROS), 2)


# --------------------------------------------------------------- copies of what may not be there

_SCRATCH = ctypes.create_string_buffer(_VECTORS)


class UnreadableMemoryError(OSError):
    """Memory is not there any more, or what stood behind it: a mapped file became shorter."""

    def __init__(self) -> None:
        super().__init__(errno.EFAULT, "memory of the state cannot be read any more")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), ()


def all_readable(addresses: list[int]) -> bool:
    """Whether each of some bytes is there. Of a buffer, ask for the last: it is the first to go
    when a mapped file becomes shorter. True where the kernel does not tell."""
    if _write_memory is None:
        return True
    for first in range(0, len(addresses), _VECTORS):
        some = addresses[first : first + _VECTORS]
        vectors = array("L", [1]) * (2 * len(some))
        vectors[0::2] = array("L", some)
        into = array("L", [ctypes.addressof(_SCRATCH), len(some)])
        at, there = vectors.buffer_info()[0], into.buffer_info()[0]
        if _write_memory(os.getpid(), at, len(some), there, 1, 0) != len(some):
            return not _kernel_copies()
    return True


def copy_checked(target: int, source: int, size: int) -> None:
    """Copy memory that may be gone, a mapped file that became shorter say: where the kernel copies,
    that is an error; elsewhere it ends the process, as for everybody who reads it. Gives the GIL
    up.

    Raises:
        UnreadableMemoryError: it is gone.
    """
    if size and not _copied(_write_memory_released, target, source, size):
        if _kernel_copies():
            raise UnreadableMemoryError
        ctypes.memmove(target, source, size)


def _copied(write: _Write | None, target: int, source: int, size: int) -> bool:
    if write is None:
        return False
    vectors = array("L", [source, size, target, size])
    there, into = vectors.buffer_info()[0], vectors.buffer_info()[0] + 2 * vectors.itemsize
    return write(os.getpid(), there, 1, into, 1, 0) == size


# ------------------------------------------------------------------------ fresh memory from a file

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
    if _SYSCALL is None or sys.platform != "linux":
        return False
    watch.open(_libc.syscall, _SYSCALL, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
    if watch.number < 0:
        watch.let_go()
    return bool(watch)
