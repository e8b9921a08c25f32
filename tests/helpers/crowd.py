"""States that tell by themselves whether they are whole, and programs that save and load them
without end: on threads, on asyncio, on trio, plain. They share nothing but the paths, and a file in
which each counts what it did, so that a killed one is counted too.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import numpy as np

import genesis

KINDS = ["threads", "asyncio", "trio", "plain"]

COUNTED = ["saves", "loads", "torn"]
_SLOT = struct.Struct(f"{len(COUNTED)}q")


def state(writer: str, number: int) -> dict[str, Any]:
    """The `number`-th state of a writer: from 100 bytes to 6 MB, each element different."""
    size = [12, 900, 30_000, 4_000, 100, 70_000][number % 6] + number % 7
    if number % 50 == 0:
        size = 800_000
    seed = number * 31 + sum(writer.encode())
    return {
        "writer": writer,
        "number": number,
        "array": np.arange(seed, seed + size),
        "bytes": bytes([seed % 256]) * (size // 3),
    }


def number_of(found: dict[str, Any]) -> tuple[str, int]:
    """Writer and number of a state that was loaded.

    Raises:
        AssertionError: it is not, in every byte, what that writer saved.
    """
    writer, number = found["writer"], found["number"]
    expected = state(writer, number)
    assert set(found) == set(expected), found.keys()
    assert np.array_equal(found["array"], expected["array"]), (writer, number)
    assert found["bytes"] == expected["bytes"], (writer, number)
    return writer, number


class Order:
    """What one reader saw of one path: the states of a writer come in the order it saved them."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], int] = {}

    def saw(self, path: object, found: dict[str, Any]) -> None:
        writer, number = number_of(found)
        last = self._last.get((str(path), writer), -1)
        assert number >= last, f"{path} of {writer}: {number} after {last}"
        self._last[str(path), writer] = number


class Counts:
    """Numbers in a file that processes share; each process adds to a slot of its own."""

    def __init__(self, path: Path, slot: int | None = None) -> None:
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(1 << 20)
            self._shared = mmap.mmap(file.fileno(), 1 << 20)
        self._slot = slot

    def add(self, what: str) -> None:
        assert self._slot is not None
        numbers = list(_SLOT.unpack_from(self._shared, self._slot * _SLOT.size))
        numbers[COUNTED.index(what)] += 1
        _SLOT.pack_into(self._shared, self._slot * _SLOT.size, *numbers)

    def total(self) -> dict[str, int]:
        slots = list(_SLOT.iter_unpack(self._shared[: (1 << 20) // _SLOT.size * _SLOT.size]))
        return {
            what: sum(column)
            for what, column in zip(COUNTED, zip(*slots, strict=True), strict=True)
        }

    def close(self) -> None:
        self._shared.close()


class Saver:
    """One writer on several paths; its states are numbered in the order of its calls."""

    def __init__(self, name: str, paths: list[str], counts: Counts) -> None:
        self.name = name
        self.paths = paths
        self._counts = counts
        self._number = 0

    def following(self) -> tuple[dict[str, Any], str]:
        self._number += 1
        return state(self.name, self._number), self.paths[self._number % len(self.paths)]

    def save(self, *, background: bool) -> None:
        made, path = self.following()
        genesis.save(made, path, background=background)
        self._counts.add("saves")

    async def save_awaited(self) -> None:
        made, path = self.following()
        await genesis.aio.save(made, path)
        self._counts.add("saves")


WAYS: list[dict[str, bool]] = [{}, {"mmap": True, "verify": True}, {"weights_only": True}]


def read(path: str, order: Order, counts: Counts, **how: bool) -> None:
    """Load a path and judge what is found; a file that is not there yet is none."""
    try:
        order.saw(path, genesis.load(path, **how))
    except FileNotFoundError:
        return
    except Exception:
        counts.add("torn")
        raise
    counts.add("loads")


def work(kind: str, name: str, paths: list[str], counts: Counts, rounds: int) -> None:
    """Save `rounds` times on each of many threads or tasks. All of them go on side by side."""
    if kind == "plain":
        saver = Saver(name, paths, counts)
        for number in range(rounds * 8):
            saver.save(background=number % 2 == 0)
    elif kind == "threads":
        _work_on_threads(name, paths, counts, rounds)
    else:
        anyio.run(_work_in_tasks, name, paths, counts, rounds, backend=kind)
    genesis.flush()


def _work_on_threads(name: str, paths: list[str], counts: Counts, rounds: int) -> None:
    counting = threading.Lock()  # the threads of a process share one slot

    class Locked:
        def add(self, what: str) -> None:
            with counting:
                counts.add(what)

    def save_and_read(thread: int) -> None:
        saver, order = Saver(f"{name}.{thread}", paths, Locked()), Order()  # type: ignore[arg-type]
        for number in range(rounds):
            saver.save(background=(number + thread) % 3 != 0)
            read(paths[number % len(paths)], order, Locked())  # type: ignore[arg-type]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(save_and_read, range(8)))


async def _work_in_tasks(name: str, paths: list[str], counts: Counts, rounds: int) -> None:
    async def save_and_read(task: int) -> None:
        saver, order = Saver(f"{name}.{task}", paths, counts), Order()
        for _ in range(max(rounds // 6, 1)):
            await saver.save_awaited()
            path = saver.paths[task % len(saver.paths)]
            with suppress(FileNotFoundError):  # nobody saved it yet
                order.saw(path, await genesis.aio.load(path))
                counts.add("loads")

    async with anyio.create_task_group() as group:
        for task in range(50):
            group.start_soon(save_and_read, task)


def main() -> None:
    """``crowd.py KIND NAME SLOT COUNTS ROUNDS PATH...``: a process of the crowd."""
    warnings.simplefilter("error")  # a backup that had to be read would be one
    kind, name, slot, counts, rounds, *paths = sys.argv[1:]
    mine = Counts(Path(counts), int(slot))
    if kind == "reader":
        order, descriptors = Order(), set()
        while os.getppid() != 1 and not Path(f"{counts}.end").exists():
            for path, how in itertools.product(paths, WAYS):
                read(path, order, mine, **how)
            descriptors.add(len(os.listdir("/proc/self/fd")))
        assert len(descriptors) <= 1, descriptors
        return
    work(kind, name, paths, mine, int(rounds))
    final = {path: genesis.save(state(f"{name} last", 1), path, background=True) for path in paths}
    for save in final.values():
        save.result()


if __name__ == "__main__":
    main()
