"""`genesis.remove`: the file does not come back, and nothing of it stays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from contention import DEADLINE, held, join_threads, litter, start_save

import genesis
from genesis import aio
from genesis._os import files


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    yield
    genesis.flush(DEADLINE)
    join_threads()


def remove_aio(path: Any, **options: Any) -> None:
    async def main() -> None:
        await aio.remove(path, **options)

    asyncio.run(main())


both = pytest.mark.parametrize("remove", [genesis.remove, remove_aio], ids=["plain", "aio"])


@both
def test_everything_of_a_checkpoint_is_removed_and_nothing_else(
    tmp_path: Path, remove: Callable[..., None]
) -> None:
    for name in ("f", "ff", "g"):
        genesis.save({"a": 1}, tmp_path / name)
    (tmp_path / "f.genesis.bak").write_bytes((tmp_path / "f").read_bytes())
    (tmp_path / f".f.genesis-{files.host()}{0:012x}.tmp").touch()
    left_of_another = tmp_path / f".g.genesis-{files.host()}{0:012x}.tmp"
    left_of_another.touch()
    remove(tmp_path / "f")
    assert sorted(os.listdir(tmp_path)) == [left_of_another.name, "ff", "g"]
    with pytest.raises(FileNotFoundError, match="No such file"):
        genesis.load(tmp_path / "f")


@both
def test_a_save_that_is_on_its_way_does_not_bring_the_file_back(
    tmp_path: Path, remove: Callable[..., None]
) -> None:
    path = tmp_path / "f"
    genesis.save({"n": 0}, path)
    with held(tmp_path) as hold:
        saves = [start_save({"n": 1}, path)]
        executor = genesis.aio._bridge.executor  # type: ignore[attr-defined]
        removing = executor.submit(remove, path)
        while genesis._engine.scheduler.scheduler.turns.count() < 2:
            pass
        assert not removing.done()
        hold.release()
        removing.result(DEADLINE)
    assert saves[0].result(DEADLINE).outcome == "durable"
    assert os.listdir(tmp_path) == []


@both
def test_a_backup_alone_is_a_checkpoint_and_is_removed(
    tmp_path: Path, remove: Callable[..., None]
) -> None:
    genesis.save({"a": 1}, tmp_path / "f")
    (tmp_path / "f").rename(tmp_path / "f.genesis.bak")
    remove(tmp_path / "f")
    assert os.listdir(tmp_path) == []


@both
@pytest.mark.parametrize("name", ["f", "missing/f"])
def test_what_is_not_there_is_an_error_unless_that_is_fine(
    tmp_path: Path, remove: Callable[..., None], name: str
) -> None:
    with pytest.raises(FileNotFoundError, match="No such file") as caught:
        remove(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)
    remove(tmp_path / name, missing_ok=True)


@both
def test_what_is_no_file_is_not_removed(tmp_path: Path, remove: Callable[..., None]) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError, match="this is a directory"):
        remove(tmp_path / "d")
    with pytest.raises(OSError, match="no regular file"):
        remove(tmp_path / "pipe")
    assert sorted(os.listdir(tmp_path)) == ["d", "pipe"]


@both
def test_through_a_symlink_the_file_goes(tmp_path: Path, remove: Callable[..., None]) -> None:
    genesis.save({"a": 1}, tmp_path / "f")
    (tmp_path / "latest").symlink_to("f")
    remove(tmp_path / "latest")
    assert os.listdir(tmp_path) == ["latest"]


def test_in_a_handler_that_interrupts_a_save_of_the_path_it_is_an_error(tmp_path: Path) -> None:
    errors: list[RuntimeError] = []

    class Acting:
        def __reduce__(self) -> Any:
            with pytest.raises(RuntimeError, match="cannot go on before this call returns") as got:
                genesis.remove(tmp_path / "f")
            errors.append(got.value)
            return dict, ()

    genesis.save({"a": Acting()}, tmp_path / "f", clear=False)
    assert len(errors) >= 1
    assert genesis.load(tmp_path / "f") == {"a": {}}


@pytest.mark.anyio
async def test_of_tasks_the_removal_has_the_place_of_its_call(path: Path) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(aio.save, {"n": 1}, path)
        await anyio.lowlevel.checkpoint()
        group.start_soon(aio.remove, path)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        group.start_soon(aio.save, {"n": 2}, path)
    assert await aio.load(path) == {"n": 2}


@pytest.mark.anyio
async def test_a_removal_that_is_cancelled_leaves_a_path_that_works(path: Path) -> None:
    with held(path.parent) as hold:
        start_save({"n": 1}, path)
        with anyio.move_on_after(0.01) as scope:
            await aio.remove(path)
        assert scope.cancelled_caught
        hold.release()
    await aio.save({"n": 2}, path)
    assert await aio.load(path) == {"n": 2}
    assert litter(path.parent) == []
