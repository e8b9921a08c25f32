"""Memory by address: fresh pages, and copies that Python has no objects for.

Each function has a way that works everywhere, and where Linux offers one, another that costs less.
Addresses are the caller's to vouch for. Knows nothing of pickles, plans or paths.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from array import array
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from .._tuning import on

if sys.platform != "win32":
    libc = ctypes.CDLL(None)
    madvise = libc.madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

PAGE = mmap.PAGESIZE
ALIGNMENT = 64
"""Bytes: where each buffer of a file begins, and so each array of a load."""
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of Linux 5.14, which the mmap module does not name."""
_PRESENT_AT_A_TIME = 64 << 20
"""Who maps or frees memory waits for the kernel to be done with a call."""


def align(offset: int, alignment: int = ALIGNMENT) -> int:
    """The first multiple of `alignment` at or after `offset`."""
    return -(-offset // alignment) * alignment


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
        if madvise(address + offset, part, _POPULATE_WRITE):
            return False
    return True


def address_of(memory: mmap.mmap) -> int:
    """Of the first byte; the mapping must be writable."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def discard(address: int, size: int) -> None:
    """Give whole pages of private memory back to the system, as far as it takes them. They stay
    mapped, and read as zeros."""
    if sys.platform == "linux":
        madvise(address, size, mmap.MADV_DONTNEED)


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
    few = len(sizes) < _GATHERED_FROM or not on.kernel_copies
    if (few and not checked) or not _gathered(target, sources, sizes):
        steps = list(map(align, sizes))
        zero_held(target, 0, sum(steps))
        # The quickest way to run an iterator to its end.
        copy = copy_held if on.held_copies else ctypes.memmove
        deque(map(copy, accumulate(steps, initial=target), sources, sizes), maxlen=0)


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
