"""The manager's folder beside what goes on around it: runs that go back, other folders under its
name, copies, clocks, files that cannot be removed.

What it keeps in an ordinary run is in test_save_load.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contention import DEADLINE, held, join_threads, litter
from second_reader import read_index

import genesis
from genesis import aio
from genesis.retention import Checkpoint, by_writing


class Model:
    def state_dict(self) -> dict[str, int]:
        return {"w": 1}


MODEL = Model()


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    yield
    genesis.flush(DEADLINE)
    join_threads()


def save(manager: Any, *epochs: int, **options: Any) -> None:
    for epoch in epochs:
        manager.save_checkpoint(MODEL, MODEL, epoch, 0.5, **options)


def epochs(folder: Path) -> list[int]:
    return sorted(int(file.name[6:-4]) for file in folder.glob("epoch_*.pth"))


# --- A folder is looked up once -------------------------------------------------------------------


def in_a_background_save(folder: Path, manager: Any, between: Callable[[], None]) -> None:
    with held(folder):
        future = manager.save_checkpoint(MODEL, MODEL, 9, 0.5, background=True)
        between()
    future.result(DEADLINE)
    join_threads()


def test_a_change_of_the_working_directory_leads_to_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tmp_path / "a" / "ckpt", tmp_path / "b" / "ckpt"
    mine.mkdir(parents=True)
    save(genesis.CheckpointManager(other), 1, 2, 3, 4)
    monkeypatch.chdir(tmp_path / "a")
    manager = genesis.CheckpointManager("ckpt", max_checkpoints=1)
    in_a_background_save(mine, manager, lambda: monkeypatch.chdir(tmp_path / "b"))
    assert (epochs(mine), epochs(other)) == ([9], [1, 2, 3, 4])
    assert manager.latest() == str(mine / "epoch_000009.pth")
    save(manager, 10)
    assert (epochs(mine), epochs(other)) == ([10], [1, 2, 3, 4])


@pytest.mark.parametrize("made_before", [True, False], ids=["before", "after"])
def test_a_symlink_that_is_pointed_elsewhere_leads_to_no_other_run(
    tmp_path: Path, made_before: bool
) -> None:
    mine, other, link = tmp_path / "a", tmp_path / "b", tmp_path / "link"
    mine.mkdir()
    save(genesis.CheckpointManager(other), 1, 2, 3, 4)
    if made_before:
        link.symlink_to(mine)
    manager = genesis.CheckpointManager(link, max_checkpoints=1)
    if not made_before:
        link.symlink_to(mine)

    def point_elsewhere() -> None:
        link.unlink()
        link.symlink_to(other)

    in_a_background_save(mine, manager, point_elsewhere)
    assert (epochs(mine), epochs(other)) == ([9], [1, 2, 3, 4])


def test_another_folder_under_the_same_name_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, moved = tmp_path / "ckpt", tmp_path / "old"
    folder.mkdir()
    manager = genesis.CheckpointManager(folder, max_checkpoints=1)
    request = manager.checkpoint_request(MODEL, MODEL, 9, 0.5, {})
    folder.rename(moved)
    save(genesis.CheckpointManager(folder), 1, 2, 3, 4)
    request.done()
    assert epochs(folder) == [1, 2, 3, 4]
    assert "is another directory than when the save began" in caplog.text


@pytest.mark.anyio
async def test_the_twin_in_aio_looks_its_folder_up_once_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    manager = aio.CheckpointManager("ckpt")
    monkeypatch.chdir(tmp_path / "b")
    await manager.save_checkpoint(MODEL, MODEL, 1, 0.5)
    assert epochs(tmp_path / "a" / "ckpt") == [1]


# --- The newest is what was written last ----------------------------------------------------------


def test_a_run_that_goes_back_keeps_what_it_writes(path: Path) -> None:
    save(genesis.CheckpointManager(path, max_checkpoints=3), *range(1, 11))
    resumed = genesis.CheckpointManager(path, max_checkpoints=3)
    assert resumed.latest() == str(path / "epoch_000010.pth")
    kept = []
    for epoch in (5, 6, 7):
        save(resumed, epoch)
        kept.append(list(resumed.checkpoints()))
        assert resumed.latest() == str(path / f"epoch_{epoch:06d}.pth")
    assert kept == [[5, 9, 10], [5, 6, 10], [5, 6, 7]]
    assert genesis.CheckpointManager(path).latest() == str(path / "epoch_000007.pth")


def test_the_order_outlives_a_copy_of_the_folder_and_a_clock_that_is_set_back(path: Path) -> None:
    save(genesis.CheckpointManager(path), 8, 9, 10, 5, 6)
    for age, file in enumerate(sorted(path.iterdir())):
        os.utime(file, (age, age))
    manager = genesis.CheckpointManager(path, max_checkpoints=2)
    assert manager.latest() == str(path / "epoch_000006.pth")
    save(manager, 7)
    assert epochs(path) == [6, 7]


def test_a_file_of_another_writer_stands_where_its_time_says(path: Path) -> None:
    manager = genesis.CheckpointManager(path, max_checkpoints=3)
    save(manager, 1, 2)
    genesis.save({"model_state_dict": {}}, path / "epoch_000003.pth")
    assert manager.latest() == str(path / "epoch_000003.pth")
    save(manager, 4, 5)
    assert epochs(path) == [3, 4, 5]


def test_files_without_an_order_go_by_time_and_then_by_epoch() -> None:
    def file(epoch: int, order: int, modified: int) -> Checkpoint:
        return Checkpoint(epoch, f"epoch_{epoch:06d}.pth", order=order, modified=modified)

    found = [file(9, 0, 100), file(2, 0, 50), file(3, 0, 50), file(7, 2, 60), file(8, 1, 90)]
    assert [each.step for each in by_writing(found)] == [2, 3, 8, 7, 9]


def test_the_order_stands_in_the_index_of_the_file_alone(path: Path) -> None:
    manager = genesis.CheckpointManager(path)
    save(manager, 1, 2, metadata={"run": 3})
    assert [read_index(path / f"epoch_00000{n}.pth")["order"] for n in (1, 2)] == [1, 2]
    assert genesis.load_metadata(path / "epoch_000001.pth") == {"run": 3}
    genesis.save({"a": 1}, path / "other.pth")
    assert "order" not in read_index(path / "other.pth")


def test_saves_that_are_under_way_at_once_keep_their_order(tmp_path: Path) -> None:
    manager = genesis.CheckpointManager(tmp_path, max_checkpoints=2)
    with held(tmp_path):
        futures = [
            manager.save_checkpoint(MODEL, MODEL, epoch, 0.5, background=True)
            for epoch in (4, 3, 2, 1)
        ]
    for future in futures:
        future.result(DEADLINE)
    join_threads()
    assert manager.latest() == str(tmp_path / "epoch_000001.pth")
    assert set(epochs(tmp_path)) >= {1, 2}


# --- Numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [genesis.CheckpointManager, aio.CheckpointManager])
def test_a_negative_epoch_is_refused(path: Path, make: Any) -> None:
    async def main() -> None:
        done = make(path).save_checkpoint(MODEL, MODEL, -1, 0.5)
        if make is aio.CheckpointManager:
            await done

    with pytest.raises(ValueError, match="epoch must not be negative, and is -1"):
        asyncio.run(main())
    assert not path.exists()


def test_an_epoch_is_a_whole_number(path: Path) -> None:
    with pytest.raises(TypeError, match="integer"):
        save(genesis.CheckpointManager(path), 1.5)  # type: ignore[arg-type]


def test_epochs_past_a_million_sort_by_number(path: Path) -> None:
    manager = genesis.CheckpointManager(path, max_checkpoints=9)
    save(manager, 2_000_000, 10_000_000, 999_999, 1_000_000)
    assert list(manager.checkpoints()) == [999_999, 1_000_000, 2_000_000, 10_000_000]


def test_a_name_that_no_manager_gives_hides_no_epoch(path: Path) -> None:
    path.mkdir()
    for name in (
        "epoch_1.pth",
        "epoch_0000001.pth",
        "epoch_\u0660\u0660\u0660\u0660\u0660\u0661.pth",
    ):
        (path / name).touch()
    (path / "epoch_000007.pth").mkdir()
    manager = genesis.CheckpointManager(path, max_checkpoints=1)
    save(manager, 1, 2)
    assert manager.checkpoints() == {2: str(path / "epoch_000002.pth")}
    assert len(list(path.iterdir())) == 5


# --- Removal is a courtesy ------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_removed_does_not_fail_the_save(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = genesis.CheckpointManager(path, max_checkpoints=1)
    save(manager, 1)
    backup = path / "epoch_000001.pth.genesis.bak"
    backup.mkdir()  # what stands there is no file, and cannot be removed as one
    with caplog.at_level(logging.WARNING, "genesis"):
        report = manager.save_checkpoint(MODEL, MODEL, 2, 0.5)
    assert report.outcome == "durable"
    assert genesis.load(report.path)["epoch"] == 2
    assert f"an old checkpoint in {path} was not removed" in caplog.text
    backup.rmdir()
    save(manager, 3)
    assert epochs(path) == [3]
    assert litter(path) == []


def test_a_folder_that_is_gone_has_no_checkpoints(path: Path) -> None:
    manager = genesis.CheckpointManager(path)
    save(manager, 1)
    shutil.rmtree(path)
    assert (manager.checkpoints(), manager.latest()) == ({}, None)
    save(manager, 2)
    assert epochs(path) == [2]
