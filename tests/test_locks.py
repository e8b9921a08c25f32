"""Turns within a process and the lock among processes: order, withdrawal, and what is left when a
holder is killed or forks. The processes are real ones.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from contention import (
    DEADLINE,
    Script,
    exit_status,
    fork,
    held,
    is_waited_for,
    litter,
    temporary_files,
    until,
)

import genesis
from genesis._engine.queues import Turn, Turns
from genesis._os import files
from genesis._os.locks import DirectoryLock


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    yield
    genesis.flush(DEADLINE)


def is_free(directory: Path) -> bool:
    """Whether nobody holds the lock of a directory now."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


# Turns


def enter(turns: Turns, path: str) -> Turn:
    turn = turns.turn(path)
    turn.enter()
    return turn


@contextmanager
def taken(turns: Turns, path: str) -> Iterator[None]:
    with turns.turn(path) as turn:
        turn.enter()
        turn.wait()
        yield


def test_turns_of_one_path_come_first_in_first_out() -> None:
    turns = Turns()
    line = [enter(turns, "p") for _ in range(5)]
    for number, turn in enumerate(line):
        assert [later.ready.done() for later in line] == [n <= number for n in range(5)]
        turn.leave()


def test_turns_of_different_paths_are_ready_at_once() -> None:
    turns = Turns()
    assert enter(turns, "p").ready.done()
    assert enter(turns, "q").ready.done()


def test_leaving_the_middle_of_the_line_wakes_nobody() -> None:
    turns = Turns()
    first, middle, last = (enter(turns, "p") for _ in range(3))
    middle.leave()
    assert not last.ready.done()
    first.leave()
    assert last.ready.done()
    assert not middle.ready.done()


def test_leaving_twice_does_no_harm() -> None:
    turns = Turns()
    first, second, third = (enter(turns, "p") for _ in range(3))
    first.leave()
    first.leave()
    assert second.ready.done()
    assert not third.ready.done()


def test_a_path_that_nobody_waits_for_is_forgotten() -> None:
    turns = Turns()
    for number in range(100):
        with taken(turns, f"p{number}"):
            pass
    assert turns.count() == 0


def test_a_turn_is_given_back_by_whoever_fails_in_it() -> None:
    turns = Turns()
    with pytest.raises(KeyError, match="inside"), taken(turns, "p"):
        raise KeyError("inside")
    assert enter(turns, "p").ready.done()


def test_only_one_thread_has_its_turn_at_a_time() -> None:
    turns = Turns()
    inside = 0
    most = 0

    def visit(_: int) -> None:
        nonlocal inside, most
        with taken(turns, "p"):
            inside += 1
            most = max(most, inside)
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(visit, range(2000)))
    assert most == 1
    assert turns.count() == 0


def test_turns_that_come_and_go_at_random_are_never_lost() -> None:
    """A turn that leaves the line while the one before it makes way for it must pass it on."""
    turns = Turns()

    def visit(number: int) -> None:
        turn = enter(turns, "p")
        if number % 3:
            turn.leave()  # withdrawn, ready or not
            return
        turn.ready.result(DEADLINE)
        turn.leave()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(visit, range(5000)))
    assert turns.count() == 0


# Among processes

LOCKER = """
import sys
from genesis._os import files as _fs
from genesis._os.locks import DirectoryLock
with _fs.Directory(sys.argv[1]) as directory, DirectoryLock(directory, "f") as lock:
    lock.take()
    print("locked", flush=True)
    sys.stdin.readline()
print("unlocked", flush=True)
sys.stdin.readline()
"""


def test_the_lock_excludes_another_process_and_leaves_no_file(tmp_path: Path) -> None:
    with Script(LOCKER, tmp_path) as other:
        other.expect("locked")
        assert not is_free(tmp_path)
        save = genesis.save({"n": 1}, tmp_path / "f", background=True)
        assert not save.done()
        assert litter(tmp_path) == []
        other.tell("go on")
        other.expect("unlocked")
        assert save.result(DEADLINE).outcome == "durable"
    assert os.listdir(tmp_path) == ["f"]


def test_the_lock_excludes_another_thread(tmp_path: Path) -> None:
    entered = threading.Event()

    def enter() -> None:
        with files.Directory(str(tmp_path)) as mine, DirectoryLock(mine, "f") as lock:
            lock.take()
            entered.set()

    with files.Directory(str(tmp_path)) as mine, DirectoryLock(mine, "f") as lock:
        lock.take()
        thread = threading.Thread(target=enter)
        thread.start()
        assert not is_free(tmp_path)
        assert not entered.is_set()
    thread.join(DEADLINE)
    assert entered.is_set()


def test_a_killed_holder_blocks_nobody(tmp_path: Path) -> None:
    with Script(LOCKER, tmp_path) as other:
        other.expect("locked")
        save = genesis.save({"n": 1}, tmp_path / "f", background=True)
        other.send(signal.SIGKILL)
        assert save.result(DEADLINE).outcome == "durable"


def test_the_lock_is_free_after_a_save_and_after_a_failed_one(tmp_path: Path) -> None:
    genesis.save({"n": 1}, tmp_path / "f")
    assert is_free(tmp_path)
    (tmp_path / "g").mkdir()
    with pytest.raises(IsADirectoryError, match="this is a directory"):
        genesis.save({"n": 1}, tmp_path / "g")
    assert is_free(tmp_path)


def test_a_reader_needs_no_lock(tmp_path: Path) -> None:
    genesis.save({"n": 1}, tmp_path / "f")
    with held(tmp_path):
        assert genesis.load(tmp_path / "f") == {"n": 1}
        assert genesis.validate_checkpoint(tmp_path / "f")[1] == "Missing model_state_dict"


HOLDS_IN_MID_SAVE = """
import os, sys, genesis
state = {"x": bytes(64 << 20)}
print("saving", flush=True)
genesis.save(state, sys.argv[1], background=True)
sys.stdin.readline()
"""


def test_what_a_killed_writer_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    genesis.save({"n": 1}, tmp_path / "f")
    with Script(HOLDS_IN_MID_SAVE, tmp_path / "f") as other:
        until(lambda: temporary_files(tmp_path))
        other.send(signal.SIGKILL)
        other.process.wait(DEADLINE)
    assert genesis.load(tmp_path / "f") in ({"n": 1}, {"x": bytes(64 << 20)})
    genesis.save({"n": 2}, tmp_path / "f")
    assert os.listdir(tmp_path) == ["f"]


def test_the_temporary_file_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with Script(HOLDS_IN_MID_SAVE, tmp_path / "f") as other:
        until(lambda: temporary_files(tmp_path))
        with held(tmp_path):  # before its commit, or behind it
            pass
        for number in range(5):
            genesis.save({"n": number}, tmp_path / "f")
        status, _, errors = other.end()
    assert (status, errors) == (0, "")
    assert os.listdir(tmp_path) == ["f"]


FORKS_AND_DIES = """
import os, signal, sys, threading, genesis
def save():
    while True:
        genesis.save({"n": 1}, sys.argv[1] + "/f")
for _ in range(2):
    threading.Thread(target=save, daemon=True).start()
while not os.path.exists(sys.argv[1] + "/f"):
    pass
if os.fork() == 0:
    print("forked", flush=True)
    sys.stdin.readline()
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_holds_no_lock_through_the_children_it_forked(tmp_path: Path) -> None:
    """A data loader's worker, say, outlives the trainer that forked it in the middle of a save."""
    blocked = 0
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Script(FORKS_AND_DIES, folder) as other:
            other.expect("forked")
            other.process.wait(DEADLINE)
            blocked += not is_free(folder)
            other.tell("end")
    assert blocked == 0


@pytest.mark.alone
def test_a_forked_child_that_lives_on_does_not_keep_the_parent_from_saving(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with held(tmp_path):
        save = genesis.save({"n": 1}, tmp_path / "f", background=True)
        until(lambda: is_waited_for(tmp_path))
        child = fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    try:
        os.close(reader)
        assert save.result(DEADLINE).outcome == "durable"
        assert is_free(tmp_path)
        genesis.save({"n": 2}, tmp_path / "f")
    finally:
        os.close(writer)
        exit_status(child)
