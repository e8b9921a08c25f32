"""What Linux says of a process and its descendants: memory, processor time, cached pages.

Reads /proc, gives this process's free memory back, has the kernel forget clean pages of single
files; changes nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import resource
from collections.abc import Iterator
from pathlib import Path

MB = 1_000_000
_TICKS = os.sysconf("SC_CLK_TCK")


def family(root: int) -> list[int]:
    """A process and its descendants that are alive."""
    members = [root]
    for member in members:
        members.extend(_children(member))
    return members


def _children(process: int) -> Iterator[int]:
    for task in _listed(f"/proc/{process}/task"):
        yield from map(int, _text(f"/proc/{process}/task/{task}/children").split())


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _text(path: str) -> str:
    # A process may end between being listed and being read.
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def proportional_bytes(root: int) -> int:
    """Memory of a process and its descendants; what they share counts once."""
    return sum(_kilobytes(f"/proc/{member}/smaps_rollup", "Pss") for member in family(root)) * 1024


def resident_bytes() -> int:
    """Resident memory of this process."""
    return _kilobytes("/proc/self/status", "VmRSS") * 1024


def trim() -> None:
    """Give freed memory back to the kernel, so that who allocates next pays as in a new process."""
    with contextlib.suppress(AttributeError):  # a libc that is not glibc
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Let `peak_bytes` start over from now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most that this process had resident since `reset_peak`."""
    return _kilobytes("/proc/self/status", "VmHWM") * 1024


def _kilobytes(path: str, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", _text(path), re.MULTILINE)
    return int(found[1]) if found else 0


def processor_seconds() -> float:
    """Processor time of this process so far, and of its descendants, alive or waited for."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = sum(_ticks(member) for member in family(os.getpid())[1:]) / _TICKS
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + living


def _ticks(process: int) -> int:
    # The fields after the name, which may itself hold spaces and parentheses.
    fields = _text(f"/proc/{process}/stat").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) if fields else 0


def available_bytes() -> int:
    """Memory that the machine can still give."""
    return _kilobytes("/proc/meminfo", "MemAvailable") * 1024


def files_of(path: str) -> list[str]:
    """A file, or the files of a directory."""
    if not os.path.isdir(path):
        return [path] if os.path.exists(path) else []
    return [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]


def sync(path: str) -> None:
    """Make a checkpoint durable from outside: its files, its directories, the one that names it."""
    folders = [folder for folder, _, _ in os.walk(path)] if os.path.isdir(path) else []
    for name in [*files_of(path), *folders, os.path.dirname(path)]:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def drop_cache(path: str) -> None:
    """Have the kernel forget the pages of a checkpoint, so that the next load reads the disk."""
    sync(path)
    for name in files_of(path):
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def huge_pages() -> str:
    """Who gets huge pages, as the kernel lists it: the choice that is made stands in brackets."""
    return _text("/sys/kernel/mm/transparent_hugepage/enabled")


def file_system(folder: str) -> str:
    """The type of the file system that holds a folder."""
    best, kind = "", "unknown"
    for line in _text("/proc/self/mounts").splitlines():
        _, mount, name, *_ = line.split()
        inside = mount == "/" or f"{os.path.realpath(folder)}/".startswith(f"{mount}/")
        if inside and len(mount) >= len(best):
            best, kind = mount, name
    return kind


def processor() -> str:
    """The processor's name."""
    found = re.search(r"^model name\s*: (.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else platform.processor()
