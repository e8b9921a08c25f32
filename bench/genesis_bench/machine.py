"""Prints what docs/design.md argues from, as this machine has it: memory, disk, locks, checksums.

Measures the machine and a few libraries, nothing of genesis; takes about a minute.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import importlib.util
import mmap
import os
import pickle
import pickletools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import environment, jobs
from .floors import Arena, WriteFloor, move_all
from .stats import figures, median, table

Row = tuple[str, str]
PIECE = 16 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1000, help="megabytes to touch, copy and write")
    parser.add_argument("--dir", help="a folder on the disk to measure; default: bench/.work")
    options = parser.parse_args()
    with jobs.temporary_place(options.dir) as place:
        print(f"{environment.line(environment.describe(str(place.folder)))}\n", flush=True)
        print(table(["what", "this machine"], rows(options.mb * 1_000_000, str(place.folder))))


def rows(nbytes: int, folder: str) -> list[Row]:
    """Every figure, measured now."""
    return [
        *_touching(nbytes),
        *_copying(nbytes),
        *_writing(nbytes, folder),
        *_locking(folder),
        *_digesting(),
        ("start a thread and wait for its end", _micro(_each(_start_thread, 300))),
        ("walk over an opcode of a pickle", _micro(_each(_walk, 3) / _OPCODES)),
    ]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _each(call: Callable[[], object], times: int) -> float:
    return median([_seconds(call) for _ in range(times)])


def _micro(seconds: float) -> str:
    return f"{figures(seconds * 1e6)} µs"


def _per_gb(seconds: float, nbytes: int) -> str:
    return f"{figures(seconds * 1e9 / nbytes)} s per GB"


def _touching(nbytes: int) -> list[Row]:
    """The page sizes take turns, and the dearest time stands apart: a virtual machine pays more
    for memory that its host has not given it before."""
    times: dict[str, list[tuple[float, float]]] = {"NOHUGEPAGE": [], "HUGEPAGE": []}
    for _ in range(3):
        for advice, found in times.items():
            found.append(_touched(nbytes, advice))
    return [row for advice, found in times.items() for row in _touch_rows(advice, found, nbytes)]


def _touch_rows(advice: str, found: list[tuple[float, float]], nbytes: int) -> list[Row]:
    label = "small pages" if advice == "NOHUGEPAGE" else "huge pages if given"
    firsts, agains = zip(*found, strict=True)
    return [
        (f"first touch of fresh memory, {label}", _per_gb(median(firsts), nbytes)),
        (f"the same, the dearest of {len(firsts)}", _per_gb(max(firsts), nbytes)),
        (f"second touch, {label}", _per_gb(median(agains), nbytes)),
    ]


def _touched(nbytes: int, advice: str) -> tuple[float, float]:
    """Seconds of the first and the second touch of every page."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(getattr(mmap, f"MADV_{advice}"))
    first, again = (_seconds(lambda: _touch(memory)) for _ in range(2))
    memory.close()
    return first, again


def _touch(memory: mmap.mmap) -> None:
    for start in range(0, len(memory), mmap.PAGESIZE):
        memory[start] = 1


def _copying(nbytes: int) -> list[Row]:
    source, target = Arena(nbytes), Arena(nbytes)
    moves = [
        (target.address + start, source.address + start, min(PIECE, source.length - start))
        for start in range(0, source.length, PIECE)
    ]
    with ThreadPoolExecutor(2) as pool:
        both = _each(lambda: list(pool.map(move_all, (moves[::2], moves[1::2]))), 5)
    one = _each(lambda: move_all(moves), 5)
    return [
        ("copy into warm memory, one thread", _per_gb(one, source.length)),
        ("copy into warm memory, two threads", _per_gb(both, source.length)),
    ]


def _writing(nbytes: int, folder: str) -> list[Row]:
    arena, found = Arena(nbytes), []
    for label, direct in (("past the page cache", True), ("through the page cache", False)):
        floor = WriteFloor(arena, nbytes, folder)
        floor.direct = direct
        seconds = _each(floor.run, 3)
        if floor.direct != direct:
            label += " (refused here: through it)"
        found.append((f"write and sync a file, {label}", _per_gb(seconds, nbytes)))
    return found


def _locking(folder: str) -> list[Row]:
    found = [("lock a directory (flock) and unlock it", _micro(_each(lambda: _flock(folder), 300)))]
    if importlib.util.find_spec("filelock") is None:
        return [*found, ("the same with filelock", "not installed")]
    import filelock

    lock = filelock.FileLock(os.path.join(folder, "lock"))
    seconds = _each(lambda: lock.acquire().lock.release(), 300)
    return [
        *found,
        ("lock and unlock with filelock", _micro(seconds)),
        ("import filelock", f"{figures(1e3 * _import_seconds('filelock'))} ms"),
    ]


def _flock(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _import_seconds(module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    return median([float(subprocess.check_output(command)) for _ in range(5)])


def _digesting() -> list[Row]:
    # Not zeros: untouched pages of zeros are one page, which never leaves the cache.
    data = os.urandom(PIECE)
    return [(f"digest, {label}", _digest(label, data)) for label in _DIGESTS]


def _digest(label: str, data: bytes) -> str:
    module, call = _DIGESTS[label]
    if importlib.util.find_spec(module) is None:
        return "not installed"
    loaded = importlib.import_module(module)
    return f"{figures(len(data) / _each(lambda: call(loaded, data), 5) / 1e9)} GB/s"


_DIGESTS: dict[str, tuple[str, Callable[[Any, bytes], object]]] = {
    "xxh3-64": ("xxhash", lambda m, data: m.xxh3_64_digest(data)),
    "xxh3-128": ("xxhash", lambda m, data: m.xxh3_128_digest(data)),
    "zlib.crc32": ("zlib", lambda m, data: m.crc32(data)),
    "google-crc32c": ("google_crc32c", lambda m, data: m.value(data)),
    "blake3": ("blake3", lambda m, data: m.blake3(data).digest()),
    "sha256": ("hashlib", lambda m, data: m.sha256(data).digest()),
}


def _start_thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


_PICKLE = pickle.dumps([str(number) for number in range(10_000)])
_OPCODES = sum(1 for _ in pickletools.genops(_PICKLE))


def _walk() -> None:
    for _ in pickletools.genops(_PICKLE):
        pass


if __name__ == "__main__":
    main()
