"""What holds an event loop: no import, no first touch of memory, no flush.

Nothing is timed: modules are counted, and a state that is changed shows when it was captured.
"""

# ruff: noqa: ASYNC240  a test may look at a file from its own loop

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from contention import DEADLINE, held, join_threads, start_save
from optional import needs_torch

import genesis
from genesis import aio
from genesis._file import writer
from genesis.aio._bridge import executor


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    writer.arenas.reset_after_fork()  # no memory of an earlier test is at rest
    yield
    genesis.flush(DEADLINE)
    join_threads()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


@contextmanager
def busy_threads() -> Iterator[threading.Event]:
    """Keep every thread of aio busy until the event is set."""
    end = threading.Event()
    busy = [executor.submit(end.wait, DEADLINE) for _ in range(executor.threads)]
    try:
        yield end
    finally:
        end.set()
        assert all(each.result(DEADLINE) for each in busy)


LARGE = 48 << 20


# --- Memory ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_large_state_is_captured_when_a_thread_has_made_its_memory_present(
    path: Path,
) -> None:
    array = np.zeros(LARGE, dtype=np.uint8)
    with busy_threads() as threads:
        async with anyio.create_task_group() as group:
            group.start_soon(aio.save, {"array": array}, path)
            await turns()
            assert genesis._engine.scheduler.scheduler.pending() == []  # type: ignore[attr-defined]
            array.fill(1)
            threads.set()
    assert genesis.load(path)["array"].all()


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["a small one", "memory at rest", "prewarm", "a background save"])
async def test_what_needs_no_fresh_memory_is_captured_before_the_first_suspension(
    path: Path, how: str
) -> None:
    array = np.zeros(LARGE if how != "a small one" else 1 << 20, dtype=np.uint8)
    if how == "memory at rest":
        await aio.save({"array": array}, path)
    if how == "prewarm":
        await aio.prewarm({"array": array})
    with busy_threads():
        if how == "a background save":
            genesis.save({"array": array}, path, background=True)
            array.fill(1)
            genesis.flush(DEADLINE)
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(aio.save, {"array": array}, path)
                await turns()
                array.fill(1)
    assert not genesis.load(path)["array"].any()


@pytest.mark.anyio
async def test_waiting_for_memory_of_its_own_is_not_being_busy(path: Path) -> None:
    array = np.ones(LARGE, dtype=np.uint8)
    report = await aio.save({"array": array}, path, on_busy="skip")
    assert report.outcome == "durable"


@pytest.mark.anyio
async def test_a_state_that_takes_the_whole_budget_is_not_in_its_own_way(path: Path) -> None:
    before = genesis._engine.scheduler.scheduler.max_pending_bytes  # type: ignore[attr-defined]
    genesis.configure(max_pending_bytes=LARGE + (1 << 20))
    try:
        with anyio.fail_after(DEADLINE):
            await aio.save({"array": np.ones(LARGE, dtype=np.uint8)}, path)
    finally:
        genesis.configure(max_pending_bytes=before)
    assert genesis.load(path)["array"].all()


@pytest.mark.anyio
async def test_a_save_that_is_cancelled_while_its_memory_is_made_never_happened(path: Path) -> None:
    state = {"array": np.ones(LARGE, dtype=np.uint8)}
    with busy_threads():
        with anyio.move_on_after(0.01) as scope:
            await aio.save(state, path)
    assert scope.cancelled_caught
    assert set(state) == {"array"}
    assert not path.exists()
    await aio.save(state, path)
    assert path.exists()


# --- Imports --------------------------------------------------------------------------------------


@needs_torch
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_no_call_imports_what_the_import_of_aio_can(tmp_path: Path, loop: str) -> None:
    program = f"""
        import sys, {loop}, torch, numpy
        import genesis.aio as aio
        state = {{"t": torch.ones(3), "n": numpy.ones(3), "l": [1]}}
        async def main():
            await aio.save(state, sys.argv[1], clear=False)
            await aio.load(sys.argv[1])
            async for piece in aio.stream(sys.argv[1]):
                pass
            await aio.flush()
        before = set(sys.modules)
        {"asyncio.run(main())" if loop == "asyncio" else "trio.run(main)"}
        print(*sorted(set(sys.modules) - before))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "f")],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    late = {name for name in done.stdout.split() if not name.startswith("genesis._file.plain")}
    assert {name.partition(".")[0] for name in late} & {"genesis", "anyio", "aiofiles"} == set()


# --- Flush ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_loop_goes_on_while_a_flush_waits(path: Path) -> None:
    flushed = anyio.Event()

    async def flush() -> None:
        await aio.flush()
        flushed.set()

    with held(path.parent) as hold:
        save = start_save({"n": 1}, path)
        async with anyio.create_task_group() as group:
            group.start_soon(flush)
            await turns()
            assert not flushed.is_set()
            hold.release()
    assert flushed.is_set()
    assert save.done()


@pytest.mark.anyio
async def test_a_flush_gives_up_after_its_timeout_and_names_the_path(path: Path) -> None:
    with held(path.parent):
        start_save({"n": 1}, path)
        with pytest.raises(TimeoutError, match=rf"not durable after 0\.01 seconds: {path}"):
            await aio.flush(0.01)
    await aio.flush(DEADLINE)


@pytest.mark.anyio
async def test_a_flush_raises_the_failure_that_nobody_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    with held(folder):
        start_save({"n": 1}, folder / "f")
        shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="No such file"):
        await aio.flush()
    await aio.flush()


@pytest.mark.anyio
async def test_a_flush_that_is_cancelled_leaves_the_failure_to_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    with held(folder):
        start_save({"n": 1}, folder / "f")
        with anyio.move_on_after(0.01) as scope:
            await aio.flush()
        shutil.rmtree(folder)
    assert scope.cancelled_caught
    with pytest.raises(FileNotFoundError, match="No such file"):
        await aio.flush()
