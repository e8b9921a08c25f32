"""Many writers and readers of a few paths at once: threads, processes, tasks of asyncio and trio.

Every read is judged: the state tells whether it is whole, and each writer's states must come in the
order in which it saved them. The processes are real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import crowd
import pytest
from contention import DEADLINE, Script, descriptors, join_threads, litter

import genesis

ROUNDS = 12
"""Saves of each thread. A task makes a sixth of them, a process without either eight times."""


def start(kind: str, slot: int, folder: Path, rounds: int = ROUNDS) -> subprocess.Popen[str]:
    paths = [str(folder / "saves" / name) for name in ("a", "b", "c")]
    name = f"{kind} {slot}"
    arguments = [kind, name, slot, folder / "counts", rounds, *paths]
    return subprocess.Popen(
        [sys.executable, crowd.__file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "saves").mkdir()
    return tmp_path


def test_threads_processes_and_tasks_on_three_paths(folder: Path) -> None:
    """8 threads, 50 tasks of asyncio and 50 of trio, in four processes, with readers beside."""
    counts = crowd.Counts(folder / "counts")
    readers = [start("reader", 4 + number, folder) for number in range(2)]
    writers = [start(kind, slot, folder) for slot, kind in enumerate(crowd.KINDS)]
    try:
        ends = [writer.communicate(timeout=10 * DEADLINE) for writer in writers]
        (folder / "counts.end").touch()
        ends += [reader.communicate(timeout=DEADLINE) for reader in readers]
    finally:
        for process in writers + readers:
            process.kill()
    assert [errors for _, errors in ends] == [""] * 6
    assert [process.returncode for process in writers + readers] == [0] * 6
    total = counts.total()
    counts.close()
    print(total)
    assert total["torn"] == 0
    assert total["saves"] == 8 * ROUNDS + 2 * 50 * (ROUNDS // 6) + 8 * ROUNDS
    assert total["loads"] > 100
    # Each process saved each path once more at its end: one of those saves is what stays.
    for name in ("a", "b", "c"):
        writer, _ = crowd.number_of(genesis.load(folder / "saves" / name))
        assert writer.endswith(" last")
    assert sorted(os.listdir(folder / "saves")) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", crowd.KINDS)
def test_one_process_leaves_what_it_submitted_last(folder: Path, kind: str) -> None:
    process = start(kind, 0, folder)
    _, errors = process.communicate(timeout=10 * DEADLINE)
    assert (process.returncode, errors) == (0, "")
    for name in ("a", "b", "c"):
        found = genesis.load(folder / "saves" / name)
        assert crowd.number_of(found) == (f"{kind} 0 last", 1)
    assert litter(folder / "saves") == []


@pytest.mark.parametrize("kind", ["threads", "plain", "asyncio", "trio"])
def test_a_crowd_leaves_no_descriptor_and_no_thread(folder: Path, kind: str) -> None:
    paths = [str(folder / "saves" / name) for name in ("a", "b")]
    with closing(crowd.Counts(folder / "counts", 0)) as counts:
        crowd.work(kind, "first", paths, counts, 6)  # what is opened once stays open
        join_threads()
        before = descriptors()
        crowd.work(kind, "second", paths, counts, 6)
        join_threads()
        assert descriptors() == before


def test_two_processes_that_save_one_path_without_end(folder: Path) -> None:
    writers = [start("plain", slot, folder, rounds=20) for slot in range(2)]
    ends = [writer.communicate(timeout=10 * DEADLINE)[1] for writer in writers]
    assert ends == ["", ""]
    assert litter(folder / "saves") == []
    for name in ("a", "b", "c"):
        crowd.number_of(genesis.load(folder / "saves" / name))


SAVES_FOR_EVER = """
import sys, genesis
n = 0
while True:
    n += 1
    genesis.save({"n": n, "x": bytes(n * 977 % 100_000)}, sys.argv[1], background=n % 2 == 0)
    if n == 5:
        print("saving", flush=True)
"""


def test_writers_that_are_killed_do_not_block_one_another(folder: Path) -> None:
    """Wherever a writer is killed, with the lock or before it, the next one gets through."""
    path = folder / "saves" / "f"
    for _ in range(12):
        with Script(SAVES_FOR_EVER, path) as writer:
            writer.expect("saving")
            writer.send(signal.SIGKILL)
            writer.process.wait(DEADLINE)
        assert genesis.load(path)["n"] >= 1
        save = genesis.save({"n": 10**6}, path, background=True)
        assert save.result(DEADLINE).outcome == "durable"
        assert os.listdir(folder / "saves") == ["f"]


FORKS_IN_MID_SAVE = """
import os, sys, threading, genesis
folder = sys.argv[1]
stop = threading.Event()
def save_without_end(number):
    n = 0
    while not stop.is_set():
        n += 1
        genesis.save({"n": n, "x": bytes(n * 977 % 300_000)}, f"{folder}/{n % 3}", background=True)
threads = [threading.Thread(target=save_without_end, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
statuses = []
for number in range(25):
    child = os.fork()
    if child == 0:
        # It saves a path of its parent's and one of its own, and ends like a program.
        genesis.save({"n": "child"}, f"{folder}/{number % 3}", background=True)
        genesis.save({"n": "child"}, f"{folder}/child {number}")
        sys.exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for thread in threads:
    thread.join()
genesis.flush()
print(statuses == [0] * 25, flush=True)
"""


def test_forks_in_the_middle_of_saves_leave_parent_and_children_saving(folder: Path) -> None:
    with Script(FORKS_IN_MID_SAVE, folder / "saves") as script:
        status, output, errors = script.end(3 * DEADLINE)
    assert (status, output, errors) == (0, "True\n", "")
    children = [folder / "saves" / f"child {number}" for number in range(25)]
    assert all(genesis.load(path) == {"n": "child"} for path in children)
    assert litter(folder / "saves") == []
