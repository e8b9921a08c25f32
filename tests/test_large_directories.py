"""A directory that holds many files: what a save costs there, and what killed writers left in it.

Counted in listings, as the interpreter's audit events tell them, never in seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from contention import DEADLINE, litter

import genesis
from genesis._os import files

MANY = 5000


@pytest.fixture
def large(tmp_path: Path) -> Path:
    for number in range(MANY):
        (tmp_path / f"image{number}.png").touch()
    return tmp_path


def leave(folder: Path, number: int = 0) -> Path:
    """What a writer of this machine leaves when it is killed."""
    left = folder / f".f.genesis-{files.host()}{number:012x}.tmp"
    left.write_bytes(b"part of a checkpoint")
    return left


def listings(folder: Path, saves: int) -> int:
    """How often a new process lists a folder while it saves there."""
    program = """
        import sys
        count = 0
        def hook(event, arguments):
            global count
            count += event == "os.listdir"
        import genesis
        sys.addaudithook(hook)
        for number in range(int(sys.argv[2])):
            genesis.save({"n": number}, sys.argv[1])
        print(count)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(folder / "f"), str(saves)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return int(done.stdout)


def test_a_save_does_not_list_a_large_directory_each_time(large: Path) -> None:
    assert 1 <= listings(large, 20) <= 10


def test_the_first_save_of_a_process_removes_what_a_killed_one_left(large: Path) -> None:
    for number in range(3):
        leave(large, number)
    assert listings(large, 1) == 1
    assert litter(large) == []


def test_later_saves_of_the_same_process_remove_it_too(large: Path) -> None:
    genesis.save({"n": 0}, large / "f")
    left = leave(large)
    until = time.monotonic() + DEADLINE
    while left.exists() and time.monotonic() < until:
        genesis.save({"n": 1}, large / "f")
    assert not left.exists()


def test_every_save_sweeps_a_small_directory(tmp_path: Path) -> None:
    for number in range(5):
        left = leave(tmp_path)
        genesis.save({"n": number}, tmp_path / "f")
        assert not left.exists()
    assert os.listdir(tmp_path) == ["f"]


def test_a_directory_that_takes_the_name_of_another_is_swept(large: Path) -> None:
    folder = large / "run"
    folder.mkdir()
    for number in range(300):
        (folder / str(number)).touch()
    genesis.save({"n": 0}, folder / "f")
    folder.rename(large / "old run")
    folder.mkdir()
    for number in range(300):
        (folder / str(number)).touch()
    left = leave(folder)
    genesis.save({"n": 0}, folder / "f")
    assert not left.exists()
