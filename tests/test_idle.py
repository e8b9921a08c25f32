"""Staging memory at rest: let go of when asked, and when no save comes for a while."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from math import inf
from pathlib import Path

import numpy as np
import pytest
from contention import run

import genesis
from genesis._file import writer

MB = 1 << 20


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    genesis.release_memory()
    yield
    genesis.configure(keep_arenas=2, keep_seconds=60)
    genesis.release_memory()
    writer.idle.stop()


def save(path: Path, size: int = 100 * MB) -> None:
    future = genesis.save({"a": np.zeros(size, "u1")}, path, background=True)
    future.result()


def waiting() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "genesis-idle"]


def test_release_memory_lets_go_of_all_that_is_at_rest(path: Path) -> None:
    save(path)
    assert writer.arenas.size >= 100 * MB
    genesis.release_memory()
    assert writer.arenas.size == 0
    save(path)


def test_keep_arenas_lets_go_at_once(path: Path) -> None:
    save(path)
    genesis.configure(keep_arenas=0)
    assert writer.arenas.size == 0
    save(path)
    assert writer.arenas.size == 0


def test_memory_goes_when_no_save_comes_for_a_while(path: Path) -> None:
    save(path)
    (thread,) = waiting()
    genesis.configure(keep_seconds=0.01)
    thread.join()
    for thread in waiting():
        thread.join()
    assert writer.arenas.size == 0


def test_each_save_begins_the_while_anew(path: Path) -> None:
    save(path)
    before = writer.idle.left()
    save(path)
    assert 0 < 60 - writer.idle.left() < 60 - before + 60
    assert len(waiting()) == 1
    assert writer.arenas.size >= 100 * MB


@pytest.mark.parametrize("size", [MB, 20 * MB])
def test_little_memory_needs_no_thread(size: int, path: Path) -> None:
    save(path, size)
    assert not waiting()


def test_memory_that_is_kept_for_ever_needs_no_thread(path: Path) -> None:
    genesis.configure(keep_seconds=inf)
    save(path)
    assert not waiting()
    assert writer.arenas.size >= 100 * MB


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="keep_seconds must be at least 0"):
        genesis.configure(keep_seconds=seconds)


def test_what_prewarm_made_present_waits_for_its_save(path: Path) -> None:
    genesis.prewarm({"a": np.zeros(100 * MB, "u1")})
    assert not waiting()
    assert writer.arenas.size >= 100 * MB


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.alone
def test_a_fork_meets_no_thread_that_waits(path: Path) -> None:
    save(path)
    assert waiting()
    child = os.fork()
    if not child:
        os._exit(bool(waiting()))
    assert not waiting()
    assert os.waitpid(child, 0)[1] == 0


def test_exit_waits_for_no_idleness(tmp_path: Path) -> None:
    program = """
import sys, threading, time
import numpy as np
import genesis
genesis.save({"a": np.zeros(100 << 20, "u1")}, sys.argv[1], background=True).result()
assert [t for t in threading.enumerate() if t.name == "genesis-idle"]
genesis.configure(keep_seconds=1e6)
assert [t for t in threading.enumerate() if t.name == "genesis-idle"]
"""
    assert run(program, tmp_path / "f") == (0, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_released_memory_is_the_systems_again(path: Path) -> None:
    def resident() -> int:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    save(path, 200 * MB)
    before = resident()
    genesis.release_memory()
    assert before - resident() >= 150 * MB
