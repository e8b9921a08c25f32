"""Writers of every kind on three paths, killed at random moments, while readers verify every read.

A minute of it in `make test`, hours in `make torture`; GENESIS_SOAK_SECONDS sets another length.
What lives from the beginning to the end must not grow.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import crowd
import pytest
from contention import DEADLINE

import genesis

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MB = 1 << 20
FOR_EVER = 10**9
PATHS = ("a", "b", "c")


class Member:
    """One process of the crowd, and what it says when something is wrong."""

    def __init__(self, kind: str, slot: int, folder: Path) -> None:
        self._said = folder / f"errors {slot}"
        paths = [folder / "saves" / name for name in PATHS]
        arguments = [kind, f"{kind} {slot}", slot, folder / "counts", FOR_EVER, *paths]
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, crowd.__file__, *map(str, arguments)], stderr=said
            )

    def errors(self) -> str:
        return self._said.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def footprint(self) -> tuple[int, int]:
        """Resident bytes and open descriptors."""
        process = Path(f"/proc/{self.process.pid}")
        lines = (process / "status").read_text().splitlines()
        resident = next(line for line in lines if line.startswith("VmRSS"))
        return int(resident.split()[1]) * 1024, len(os.listdir(process / "fd"))


@contextmanager
def member(kind: str, slot: int, folder: Path) -> Iterator[Member]:
    one = Member(kind, slot, folder)
    try:
        yield one
    finally:
        one.kill()


class Soak:
    """The whole crowd: two readers and a writer that live on, and three writers that do not."""

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        (folder / "saves").mkdir()
        self._folder = folder
        self._seconds = seconds
        self._random = random.Random(seed)
        self._slots = itertools.count()
        self._footprints: dict[Member, list[tuple[int, int]]] = {}
        self.kills = 0
        self.errors = ""

    def run(self) -> dict[str, int]:
        """Let it go on for its time; return what was counted."""
        with closing(crowd.Counts(self._folder / "counts")) as counts, ExitStack() as living:
            for kind in ("reader", "reader", "plain"):
                one = living.enter_context(member(kind, next(self._slots), self._folder))
                self._footprints[one] = []
            self._kill_writers_until(time.monotonic() + self._seconds)
            (self._folder / "counts.end").touch()
            for one in list(self._footprints)[:2]:
                one.process.wait(DEADLINE)
                assert one.process.returncode == 0, one.errors()
        with closing(crowd.Counts(self._folder / "counts")) as counts:
            return counts.total()

    def _kill_writers_until(self, end: float) -> None:
        kinds = itertools.cycle(crowd.KINDS)
        writers = [Member(next(kinds), next(self._slots), self._folder) for _ in range(3)]
        try:
            while time.monotonic() < end:
                # Any moment between the start of the interpreter and the tenth save will do.
                time.sleep(self._random.random())
                victim = writers.pop(self._random.randrange(3))
                victim.kill()
                self.kills += 1
                self.errors += victim.errors()
                writers.append(Member(next(kinds), next(self._slots), self._folder))
                self._look()
        finally:
            for writer in writers:
                writer.kill()

    def _look(self) -> None:
        for one, footprints in self._footprints.items():
            assert one.process.poll() is None, one.errors()
            footprints.append(one.footprint())

    def growth(self) -> tuple[int, int]:
        """How much more memory and descriptors whoever lived on had at the end, at most.

        It saves and loads all the time. So the least memory of a third of the time is compared with
        the least of the last, and the most descriptors with the fewest.
        """
        memory, descriptors = [], []
        for footprints in self._footprints.values():
            third = len(footprints) // 3
            parts = footprints[third : 2 * third], footprints[-third:]
            early, late = (list(zip(*part, strict=True)) for part in parts)
            memory.append(min(late[0]) - min(early[0]))
            descriptors.append(min(late[1]) - max(early[1]))
        return max(memory), max(descriptors)


def soak(folder: Path, seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(10**6)
    crowd_of = Soak(folder, seconds, seed)
    total: dict[str, Any] = crowd_of.run()
    memory, descriptors = crowd_of.growth()
    with capsys.disabled():
        print(
            f"\nsoak of {seconds:.0f} s, seed {seed}: {total['saves']:,} saves, "
            f"{total['loads']:,} loads, {crowd_of.kills:,} kills, {total['torn']} torn reads; "
            f"{memory / MB:+.0f} MB, {descriptors:+} descriptors"
        )
    assert crowd_of.errors == ""
    assert total["torn"] == 0
    assert total["saves"] > crowd_of.kills > 0
    assert total["loads"] > 0
    assert memory < 32 * MB
    assert descriptors <= 0
    for name in PATHS:  # the next save of each clears away what the killed ones left
        crowd.number_of(genesis.load(folder / "saves" / name))
        genesis.save({"n": 1}, folder / "saves" / name)
    assert sorted(os.listdir(folder / "saves")) == sorted(PATHS)


def test_a_minute_of_random_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soak(tmp_path, float(os.environ.get("GENESIS_SOAK_SECONDS", 60)), capsys)


@pytest.mark.torture
def test_hours_of_random_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soak(tmp_path, float(os.environ.get("GENESIS_SOAK_SECONDS", 2 * 60 * 60)), capsys)
