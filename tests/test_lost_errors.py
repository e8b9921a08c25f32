"""A failure that nobody asked for is heard of, once: in the log, and from the next `flush`.

What a single failure does is in test_background.py; here are many, at once, and awaited ones.
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest
from contention import DEADLINE, ended, failing_save, held, run

import genesis


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    yield
    genesis.flush(DEADLINE)


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


FAILS_OFTEN = """
import sys, genesis
count, asked = map(int, sys.argv[2:])
kept = []
for number in range(count):
    kept.append(genesis.save({"n": number}, f"{sys.argv[1]}/none{number}/f", background=True))
for save in kept[:asked]:
    assert save.exception() is not None
"""


@pytest.mark.parametrize(("count", "asked"), [(130, 0), (130, 30), (90, 0)])
def test_each_of_many_failures_is_logged_once_before_the_process_ends(
    tmp_path: Path, count: int, asked: int
) -> None:
    status, _, errors = run(FAILS_OFTEN, tmp_path, count, asked)
    assert status == 0
    logged = [f"background save of {tmp_path}/none{n}/f failed" in errors for n in range(count)]
    assert logged[asked:] == [True] * (count - asked)
    assert errors.count("background save of") >= count - asked
    assert all(errors.count(f"/none{n}/f failed") <= 1 for n in range(count))


def test_flush_logs_each_of_many_failures_and_raises_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also those of whom somebody still has the futures, and more than `flush` remembers."""
    paths = [tmp_path / f"none{number}" / "f" for number in range(130)]
    saves = [genesis.save({"n": 1}, path, background=True) for path in paths]
    for save in saves:
        ended(save)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        genesis.flush(DEADLINE)
    assert len(errors_in(caplog)) == len(set(errors_in(caplog))) == 130


def test_of_flushes_on_many_threads_one_raises_a_failure(tmp_path: Path) -> None:
    save = failing_save(tmp_path / "d")
    ended(save)

    def flush(_: int) -> bool:
        try:
            genesis.flush(DEADLINE)
        except FileNotFoundError:
            return True
        return False

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(flush, range(32))) == 1


def test_a_flush_that_gives_up_leaves_failures_to_the_next(tmp_path: Path) -> None:
    failed = failing_save(tmp_path / "d")
    ended(failed)
    with held(tmp_path):
        slow = genesis.save({"n": 1}, tmp_path / "slow", background=True)
        with pytest.raises(TimeoutError, match="slow"):
            genesis.flush(0)
    with pytest.raises(FileNotFoundError, match="No such file"):
        genesis.flush(DEADLINE)
    assert slow.result(0).outcome == "durable"


@pytest.mark.anyio
async def test_an_awaited_failure_is_raised_there_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FileNotFoundError, match="no such directory"):
        await genesis.aio.save({"n": 1}, tmp_path / "none" / "f")
    save = failing_save(tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="No such file"):
        await save
    genesis.flush(DEADLINE)
    del save
    gc.collect()
    assert errors_in(caplog) == []


@pytest.mark.anyio
async def test_a_failure_whose_waiter_was_cancelled_is_raised_by_the_next_flush(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    with held(folder):
        with anyio.move_on_after(0.05):
            await genesis.aio.save({"n": 1}, folder / "f")
        shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=r"No such file|no such directory"):
        await anyio.to_thread.run_sync(genesis.flush, DEADLINE)
    genesis.flush(DEADLINE)
