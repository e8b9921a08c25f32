"""Storages: the public suite over those of genesis, and over broken ones that it must find."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import genesis
from genesis.storage import Folder, Location, Memory
from genesis.testing import StorageTests


class TestMemory(StorageTests):
    def make_storage(self) -> Memory:
        return Memory()


class TestFolder(StorageTests):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = tmp_path

    def make_storage(self) -> Folder:
        return Folder(self.path)


class EarlyMemory(Memory):
    """Shows bytes before they are committed."""

    def create(self, name: str) -> Any:
        sink = super().create(name)
        sink.commit()
        return sink


class ForgetfulMemory(Memory):
    """Removes nothing."""

    def remove(self, name: str) -> bool:
        return name in self.names()


def failures(make: Callable[[], Memory]) -> list[str]:
    """The tests of the suite that a storage does not pass."""

    class Suite(StorageTests):
        def make_storage(self) -> Memory:
            return make()

    failed = []
    for name in vars(StorageTests):
        if name.startswith("test_"):
            try:
                getattr(Suite(), name)()
            except Exception:
                failed.append(name)
    with suppress(Exception):
        genesis.flush(60)  # or the next test would hear of saves that failed here
    return failed


@pytest.mark.parametrize("broken", [EarlyMemory, ForgetfulMemory])
def test_the_suite_finds_a_broken_storage(broken: type[Memory]) -> None:
    assert failures(broken)
    assert failures(Memory) == []


def test_the_suite_needs_no_pytest() -> None:
    code = "import sys, genesis.testing; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# Saves elsewhere


def test_a_failed_save_leaves_the_old_state_and_names_its_place() -> None:
    class Full(Memory):
        def create(self, name: str) -> Any:
            sink = super().create(name)
            if self.names():
                sink.write = self.refuse  # type: ignore[method-assign]
            return sink

        def refuse(self, data: object, offset: int) -> None:
            raise OSError(28, "no room")

    place = Full() / "a"
    genesis.save({"step": 1}, place)
    with pytest.raises(OSError, match="no room"):
        genesis.save({"step": 2}, place)
    with pytest.raises(OSError, match="no room"):
        genesis.save({"step": 2}, place, background=True).result(60)
    assert genesis.load(place) == {"step": 1}


def test_damage_elsewhere_is_found() -> None:
    memory = Memory()
    genesis.save({"data": bytes(1 << 20)}, memory / "a")
    damaged = bytearray(memory._held["a"])
    damaged[1 << 19] ^= 1
    memory._held["a"] = memoryview(damaged)
    with pytest.raises(genesis.ChecksumError, match=r"Memory-.*:/a"):
        genesis.load(memory / "a")
    assert genesis.verify(memory / "a").kind == "damaged"


def test_what_looks_at_a_file_looks_elsewhere_too() -> None:
    place = Memory() / "a"
    genesis.save_checkpoint({"w": 1}, {}, place, metadata={"epoch": 4})
    assert genesis.load_metadata(place) == {"epoch": 4}
    assert genesis.inspect(place).metadata == {"epoch": 4}
    assert genesis.load(place, only="model_state_dict") == {"model_state_dict": {"w": 1}}


def test_an_empty_dict_does_not_replace_a_state_elsewhere() -> None:
    place = Memory() / "a"
    genesis.save({"step": 1}, place)
    with pytest.raises(ValueError, match="is empty, and the file there is not"):
        genesis.save({}, place)


def test_storages_do_not_share_names() -> None:
    one, other = Memory(), Memory()
    genesis.save({"n": 1}, one / "a")
    with pytest.raises(FileNotFoundError, match=r"Memory-.*:/a"):
        genesis.load(other / "a")


def test_a_name_in_a_folder_is_the_file_of_that_name(tmp_path: Path) -> None:
    genesis.save({"n": 1}, Location(Folder(tmp_path), "a"))
    assert genesis.load(tmp_path / "a") == {"n": 1}
    with pytest.raises(ValueError, match="no name of a file"):
        genesis.save({"n": 1}, Location(Folder(tmp_path), "../a"))


def test_a_report_of_a_save_elsewhere_pickles_without_its_storage() -> None:
    memory = Memory()
    report = genesis.save({"n": 1}, memory / "a")
    again = pickle.loads(pickle.dumps(report))
    assert type(again.path) is str
    assert again.path == memory / "a"


def test_what_needs_local_files_says_so() -> None:
    with pytest.raises(ValueError, match="local files only"):
        genesis.CheckpointManager(Memory() / "run")
