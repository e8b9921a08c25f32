"""genesis.aio as a coroutine sees it, on asyncio and trio: results and errors, what cancelling does
before and after the capture, a loop that goes on meanwhile, order, streams, and loops that end.

Nothing is timed: a save is held by the directory's own lock, and the loop's life counted in turns.
"""

# ruff: noqa: ASYNC240  a test may look at a file from its own loop

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from contention import DEADLINE, descriptors, held, join_threads, litter, run, start_save
from optional import torch
from same import assert_same
from second_writer import assemble

import genesis
from genesis import aio
from genesis.aio import _bridge


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    """No test leaves a save, a thread or an unseen failure to the next one."""
    yield
    genesis.flush(DEADLINE)
    join_threads()


async def turns(count: int = 20) -> None:
    """Let every other task run for a while."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


# --- Every call -----------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(("save", "load"), [(aio.save, aio.load), (aio.save_async, aio.load_async)])
async def test_save_and_load(path: Path, save: Any, load: Any) -> None:
    state = {"weight": torch.ones(2, 3), "array": np.arange(5), "rule": lambda x: x + 1}
    report = await save(state, path, metadata={"step": 3})
    assert await aio.load_metadata(path) == {"step": 3}
    assert isinstance(report, genesis.SaveReport)
    assert (report.path, report.bytes) == (os.path.realpath(path), path.stat().st_size)
    assert state == {}
    found = await load(path)
    assert_same((torch.ones(2, 3), np.arange(5)), (found["weight"], found["array"]))
    assert found["rule"](1) == 2
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.anyio
async def test_clear_false_keeps_the_dict(path: Path) -> None:
    state = {"a": 1}
    await aio.save(state, path, clear=False)
    assert state == {"a": 1}


@pytest.mark.anyio
async def test_checkpoints(path: Path) -> None:
    model, optimizer = torch.nn.Linear(3, 2), torch.optim.SGD([torch.ones(1)], lr=0.1)
    expected = model.state_dict(), optimizer.state_dict()
    await aio.save_checkpoint(model.state_dict(), optimizer.state_dict(), path)
    assert_same(expected, await aio.load_checkpoint(path))
    assert await aio.validate_checkpoint(path) == (True, "Checkpoint is valid")
    other = torch.nn.Linear(3, 2)
    assert await aio.safe_load_checkpoint(path, other, optimizer)
    assert torch.equal(other.weight, model.weight)
    assert not await aio.safe_load_checkpoint(path.parent / "missing", other)


@pytest.mark.anyio
@pytest.mark.parametrize("options", [{"mmap": True}, {"weights_only": True}, {"verify": True}])
async def test_the_options_of_load(path: Path, options: dict[str, bool]) -> None:
    await aio.save_checkpoint({"w": torch.ones(2)}, {}, path)
    assert torch.equal((await aio.load(path, **options))["model_state_dict"]["w"], torch.ones(2))
    model, optimizer = await aio.load_checkpoint(path, **options)
    assert (set(model), optimizer) == ({"w"}, {})


@pytest.mark.anyio
async def test_the_manager(path: Path) -> None:
    manager, model = aio.CheckpointManager(path, max_checkpoints=2), torch.nn.Linear(2, 1)
    assert (await manager.checkpoints(), await manager.latest()) == ({}, None)
    for epoch in range(4):
        report = await manager.save_checkpoint(model, model, epoch, loss=0.5)
        assert report.path.endswith(f"epoch_{epoch:06d}.pth")
    assert list(await manager.checkpoints()) == [2, 3]
    assert (await aio.load(str(await manager.latest())))["epoch"] == 3
    with pytest.raises(ValueError, match="max_checkpoints must be at least 1"):
        aio.CheckpointManager(path, max_checkpoints=0)


@pytest.mark.anyio
async def test_a_future_of_the_plain_call_can_be_awaited_more_than_once(path: Path) -> None:
    future = genesis.save({"n": 1}, path, background=True)
    report = await future
    assert report is await future
    assert report is future.result(0)


# --- Errors ---------------------------------------------------------------------------------------

ERRORS: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "missing": (lambda p: aio.load(p / "missing"), FileNotFoundError, "No such file"),
    "missing checkpoint": (lambda p: aio.load_checkpoint(p / "m"), FileNotFoundError, "No such"),
    "no directory": (lambda p: aio.save({"a": 1}, p / "d" / "f"), FileNotFoundError, "create it"),
    "directory": (lambda p: aio.save({"a": 1}, p), IsADirectoryError, "this is a directory"),
    "load a directory": (lambda p: aio.load(p), genesis.NotACheckpointError, "this is a directory"),
    "damaged": (lambda p: aio.load(p / "damaged"), genesis.TruncatedError, "without its footer"),
    "no checkpoint": (lambda p: aio.load_checkpoint(p / "n"), KeyError, "holds no checkpoint"),
    "unpicklable": (
        lambda p: aio.save({"a": [(n for n in ())]}, p / "f"),
        genesis.UnpicklableStateError,
        r"state\['a'\]\[0\]",
    ),
    "capture": (lambda p: aio.save({1: 2}, p / "f", capture="x"), ValueError, "'copy', 'deferred'"),
    "on_busy": (lambda p: aio.save({1: 2}, p / "f", on_busy="x"), ValueError, "'wait', 'skip'"),
    "metadata": (lambda p: aio.save({1: 2}, p / "f", metadata={1: {2}}), TypeError, "JSON"),
    "no path": (lambda p: aio.save({1: 2}, 5), TypeError, "PathLike"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", ERRORS)
async def test_an_error_reaches_the_coroutine(tmp_path: Path, name: str) -> None:
    call, error, message = ERRORS[name]
    genesis.save({"n": 1}, tmp_path / "n")
    (tmp_path / "damaged").write_bytes((tmp_path / "n").read_bytes()[:-1])
    names, before = sorted(os.listdir(tmp_path)), descriptors()
    with pytest.raises(error, match=message):
        await call(tmp_path)
    assert sorted(os.listdir(tmp_path)) == names
    join_threads()
    assert descriptors() == before


@pytest.mark.anyio
async def test_a_failed_write_leaves_the_dict_and_reaches_the_coroutine(path: Path) -> None:
    state = {"n": 1}

    async def save() -> None:
        with pytest.raises(IsADirectoryError, match="this is a directory"):
            await aio.save(state, path)

    with held(path.parent) as hold:
        async with anyio.create_task_group() as group:
            group.start_soon(save)
            await turns()
            path.mkdir()
            hold.release()
    assert state == {"n": 1}


# --- When the state is captured -------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_state_is_captured_before_the_coroutine_first_suspends(path: Path) -> None:
    array = np.zeros(200_000)
    state = {"array": array, "list": [1]}
    began = anyio.Event()

    async def save() -> None:
        began.set()
        await aio.save(state, path)

    with held(path.parent) as hold:
        async with anyio.create_task_group() as group:
            group.start_soon(save)
            await began.wait()
            array.fill(1)
            state["list"].append(2)
            hold.release()
    found = genesis.load(path)
    assert not found["array"].any()
    assert found["list"] == [1]


@pytest.mark.anyio
async def test_a_save_that_must_wait_captures_when_it_is_its_turn(path: Path) -> None:
    state = {"n": 1}
    with held(path.parent) as hold:
        start_save({"first": True}, path)
        async with anyio.create_task_group() as group:
            group.start_soon(aio.save, state, path)
            await turns()
            state["n"] = 2
            hold.release()
    assert genesis.load(path) == {"n": 2}
    assert state == {}


# --- Cancelling -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_cancelling_before_the_capture_withdraws_the_save(path: Path) -> None:
    state = {"n": 2}
    with held(path.parent) as hold:
        first = start_save({"n": 1}, path)
        async with anyio.create_task_group() as group:
            group.start_soon(aio.save, state, path)
            await turns()
            group.cancel_scope.cancel()
        hold.release()
        first.result(DEADLINE)
    assert (genesis.load(path), state) == ({"n": 1}, {"n": 2})
    assert genesis.save({"n": 3}, path, background=True, on_busy="skip").result().bytes > 0


@pytest.mark.anyio
async def test_cancelling_after_the_capture_ends_the_waiting_only(path: Path) -> None:
    state = {"n": 2}
    with held(path.parent) as hold:
        async with anyio.create_task_group() as group:
            group.start_soon(aio.save, state, path)
            await turns()
            group.cancel_scope.cancel()
        assert state == {"n": 2}
        hold.release()
    genesis.flush(DEADLINE)
    assert (genesis.load(path), state) == ({"n": 2}, {"n": 2})
    assert litter(path.parent) == []


@pytest.mark.anyio
async def test_the_error_of_a_save_whose_waiter_was_cancelled_reaches_the_next_flush(
    path: Path,
) -> None:
    with held(path.parent) as hold:
        async with anyio.create_task_group() as group:
            group.start_soon(aio.save, {"n": 1}, path)
            await turns()
            group.cancel_scope.cancel()
        path.mkdir()
        hold.release()
    with pytest.raises(IsADirectoryError, match="this is a directory"):
        genesis.flush(DEADLINE)


@pytest.mark.anyio
async def test_a_deadline_ends_the_waiting_only(path: Path) -> None:
    with held(path.parent) as hold:
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.01):
                await aio.save({"n": 1}, path)
        with anyio.move_on_after(0.01) as scope:
            await aio.load(path)  # it waits for the save
        assert scope.cancelled_caught
        hold.release()
    assert await aio.load(path) == {"n": 1}


def test_wait_for_of_asyncio_ends_the_waiting_only(path: Path) -> None:
    async def main() -> None:
        with held(path.parent) as hold:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(aio.save({"n": 1}, path), 0.01)
            hold.release()
        assert await asyncio.wait_for(aio.load(path), DEADLINE) == {"n": 1}

    asyncio.run(main())


@pytest.mark.anyio
async def test_a_cancelled_scope_saves_nothing_that_it_had_not_begun(path: Path) -> None:
    with held(path.parent):
        start_save({"n": 1}, path)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await aio.save({"n": 2}, path)
    genesis.flush(DEADLINE)
    assert genesis.load(path) == {"n": 1}


@pytest.mark.anyio
@pytest.mark.parametrize("after", range(12))
async def test_cancelling_at_any_suspension_leaves_a_path_that_works(
    path: Path, after: int
) -> None:
    before = descriptors()
    async with anyio.create_task_group() as group:
        group.start_soon(aio.save, {"n": np.ones(100_000)}, path)
        group.start_soon(aio.validate_checkpoint, path)
        await turns(after)
        group.cancel_scope.cancel()
    await aio.save({"n": 2}, path)
    assert await aio.load(path) == {"n": 2}
    assert litter(path.parent) == []
    join_threads()
    assert descriptors() == before


# --- The loop goes on -----------------------------------------------------------------------------


class Ticker:
    """Counts the turns of the event loop."""

    count = 0

    async def run(self) -> None:
        while True:
            await anyio.lowlevel.checkpoint()
            self.count += 1


@pytest.mark.anyio
async def test_the_loop_goes_on_while_a_save_waits_for_the_disk(path: Path) -> None:
    ticker = Ticker()
    with held(path.parent) as hold:
        async with anyio.create_task_group() as group:
            group.start_soon(aio.save, {"n": 1}, path)
            group.start_soon(aio.save, {"n": 2}, path)
            group.start_soon(ticker.run)
            while ticker.count < 1000:
                await anyio.lowlevel.checkpoint()
            group.start_soon(aio.load, path)  # trio starts tasks in any order; not before the saves
            while ticker.count < 2000:
                await anyio.lowlevel.checkpoint()
            assert not path.exists()
            hold.release()
            while not path.exists():
                await anyio.lowlevel.checkpoint()
            await aio.load(path)
            group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_the_loop_goes_on_while_a_large_state_is_written_and_loaded(path: Path) -> None:
    state = {f"layer{n}": np.ones(1 << 20) for n in range(16)}
    ticker = Ticker()
    async with anyio.create_task_group() as group:
        group.start_soon(ticker.run)
        await anyio.lowlevel.checkpoint()
        await aio.save(state, path)
        saving, ticker.count = ticker.count, 0
        await aio.load(path)
        loading, ticker.count = ticker.count, 0
        size = sum([len(piece) async for piece in aio.stream(path)])
        streaming = ticker.count
        group.cancel_scope.cancel()
    assert size == path.stat().st_size > 128 << 20
    assert min(saving, loading, streaming) > 20, (saving, loading, streaming)


# --- Order ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_of_many_tasks_on_one_path_the_last_that_ran_stays(path: Path) -> None:
    began: list[int] = []

    async def save(number: int) -> None:
        began.append(number)
        report = await aio.save({"n": number}, path)
        assert report.outcome == "durable"

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(save, number)
    assert sorted(began) == list(range(40))
    assert genesis.load(path) == {"n": began[-1]}
    assert litter(path.parent) == []


@pytest.mark.anyio
async def test_tasks_on_different_paths_do_not_wait_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    with held(tmp_path / "held") as hold:
        async with anyio.create_task_group() as group:
            group.start_soon(aio.save, {"n": 1}, tmp_path / "held" / "f")
            await aio.save({"n": 2}, tmp_path / "g")
            assert await aio.load(tmp_path / "g") == {"n": 2}
            hold.release()


@pytest.mark.anyio
async def test_skip_and_supersede(path: Path) -> None:
    with held(path.parent) as hold:
        first = start_save({"n": 1}, path)
        report = await aio.save({"n": 2}, path, on_busy="skip")
        assert (report.outcome, report.bytes) == ("skipped", 0)
        hold.release()
        first.result(DEADLINE)
    report = await aio.save({"n": 3}, path, on_busy="supersede")
    assert (report.outcome, genesis.load(path)) == ("durable", {"n": 3})


@pytest.mark.anyio
async def test_load_waits_for_the_save_that_is_under_way(path: Path) -> None:
    with held(path.parent) as hold:
        save = start_save({"n": 1}, path)
        async with anyio.create_task_group() as group:

            async def load() -> None:
                assert await aio.load(path) == {"n": 1}
                assert save.done()

            group.start_soon(load)
            await turns()
            hold.release()


@pytest.mark.anyio
async def test_a_relative_path_is_of_the_moment_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        genesis.save({"of": name}, tmp_path / name / "f")
    monkeypatch.chdir(tmp_path / "a")
    threads, release = _bridge.executor.threads, threading.Event()
    blockers = [_bridge.executor.submit(release.wait, DEADLINE) for _ in range(threads)]
    async with anyio.create_task_group() as group:
        began = anyio.Event()

        async def load() -> None:
            began.set()
            assert await aio.load("f") == {"of": "a"}

        group.start_soon(load)
        await began.wait()
        monkeypatch.chdir(tmp_path / "b")
        release.set()
    assert all(blocker.result(DEADLINE) for blocker in blockers)
    assert await aio.load("f") == {"of": "b"}


# --- Streams --------------------------------------------------------------------------------------


async def collect(path: Path, **options: Any) -> list[bytes]:
    return [piece async for piece in aio.stream(path, **options)]


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20, 1 << 40])
async def test_a_stream_is_the_file_in_pieces(path: Path, size: int) -> None:
    genesis.save({"a": np.arange(1000), "text": "x" * 1000}, path)
    pieces = await collect(path, chunk_size=size)
    assert b"".join(pieces) == path.read_bytes()
    assert 0 < min(map(len, pieces)) <= max(map(len, pieces)) <= size


@pytest.mark.anyio
async def test_a_stream_of_several_chunks(path: Path) -> None:
    genesis.save({"a": np.random.default_rng(0).random(5 << 20)}, path)
    pieces = await collect(path)
    assert b"".join(pieces) == path.read_bytes()
    assert max(map(len, pieces)) == 1 << 20
    assert pickle.loads(b"".join(pieces))["a"].shape == (5 << 20,)


@pytest.mark.anyio
@pytest.mark.parametrize("number", range(4))
async def test_a_stream_hands_out_what_is_sound_and_nothing_of_a_damaged_chunk(
    path: Path, number: int
) -> None:
    content = bytearray(assemble(pickle.dumps("x" * 5000, 5), bytes(2 * 4096), chunk_size=4096))
    content[number * 4096 + 100] ^= 1
    path.write_bytes(content)
    seen = b""
    with pytest.raises(genesis.ChecksumError, match=f"chunk {number}") as caught:  # noqa: PT012
        async for piece in aio.stream(path, chunk_size=1000):
            seen += piece
    assert seen == content[: number * 4096]
    assert (caught.value.path, caught.value.offset) == (str(path), number * 4096)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda c: c[:-1], genesis.TruncatedError, "without its footer"),
        (lambda c: c + b"x", genesis.TruncatedError, "without its footer"),
        (lambda c: c[:-80] + b"\0" + c[-79:], genesis.ChecksumError, "index is damaged"),
        (lambda c: b"text", genesis.NotACheckpointError, "not a genesis file"),
        (lambda c: b"", genesis.NotACheckpointError, "not a genesis file"),
        (lambda c: pickle.dumps(1), genesis.NotACheckpointError, "not a genesis file"),
    ],
    ids=range(6),
)
async def test_a_stream_of_a_damaged_file_hands_out_nothing(
    path: Path, damage: Callable[[bytes], bytes], error: type[Exception], message: str
) -> None:
    genesis.save({"a": 1}, path)
    path.write_bytes(damage(path.read_bytes()))
    before = descriptors()
    pieces = aio.stream(path)
    with pytest.raises(error, match=message):
        await anext(pieces)
    join_threads()
    assert descriptors() == before


@pytest.mark.anyio
async def test_a_stream_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        await collect(tmp_path / "missing")
    with pytest.raises(IsADirectoryError, match="this is a directory"):
        await collect(tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize("size", [0, -1])
async def test_a_stream_of_no_bytes_at_a_time_is_refused(path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"chunk_size must be at least 1, not {size}"):
        await collect(path, chunk_size=size)


@pytest.mark.anyio
async def test_a_stream_that_is_closed_early_closes_its_file(path: Path) -> None:
    genesis.save({"a": bytes(100_000)}, path)
    before = descriptors()
    async with aclosing(aio.stream(path, chunk_size=100)) as pieces:
        assert len(await anext(pieces)) == 100
        assert descriptors() != before
    join_threads()
    assert descriptors() == before


@pytest.mark.anyio
async def test_a_stream_goes_on_with_its_file_while_the_path_is_saved_again(path: Path) -> None:
    genesis.save({"n": bytes(100_000)}, path)
    content = path.read_bytes()
    async with aclosing(aio.stream(path, chunk_size=1000)) as pieces:
        seen = await anext(pieces)
        await aio.save({"n": 2}, path)
        async for piece in pieces:
            seen += piece
    assert seen == content
    assert await aio.load(path) == {"n": 2}


@pytest.mark.anyio
async def test_streams_that_are_cancelled_at_any_suspension_leave_no_file_open(path: Path) -> None:
    genesis.save({"a": bytes(100_000)}, path)

    async def consume() -> None:
        async with aclosing(aio.stream(path, chunk_size=1000)) as pieces:
            async for _ in pieces:
                await anyio.lowlevel.checkpoint()

    for count in range(120):
        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await turns(count % 40)
            group.cancel_scope.cancel()
    join_threads()
    gc.collect()
    assert str(path) not in descriptors()


# --- Loops that end -------------------------------------------------------------------------------

ENDS_WITH_A_SAVE_PENDING = """
import sys, genesis, anyio
from genesis import aio

async def main():
    async with anyio.create_task_group() as group:
        group.start_soon(aio.save, {"n": 1, "x": bytes(30 << 20)}, sys.argv[1])
        genesis.save({"n": 2}, sys.argv[1] + "2", background=True)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()

anyio.run(main, backend=sys.argv[2])
print("the loop is gone", flush=True)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_program_whose_loop_ends_with_saves_pending_has_saved_them(
    path: Path, backend: str
) -> None:
    status, output, errors = run(ENDS_WITH_A_SAVE_PENDING, path, backend)
    assert (status, output, errors) == (0, "the loop is gone\n", "")
    assert genesis.load(path)["n"] == 1
    assert genesis.load(f"{path}2") == {"n": 2}
    assert litter(path.parent) == []


FAILS_WITH_A_SAVE_PENDING = """
import asyncio, sys, genesis.aio

async def main():
    task = asyncio.create_task(genesis.aio.save({"n": 1, "x": bytes(30 << 20)}, sys.argv[1]))
    await asyncio.sleep(0)
    raise KeyError("of the body")

asyncio.run(main())
"""


def test_a_program_that_fails_with_a_save_pending_has_saved_it(path: Path) -> None:
    status, _, errors = run(FAILS_WITH_A_SAVE_PENDING, path)
    assert status == 1
    assert errors.rstrip().endswith("KeyError: 'of the body'")
    assert "never retrieved" not in errors
    assert genesis.load(path)["n"] == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_loop_after_another_saves_one_path(path: Path, backend: str) -> None:
    async def save(number: int) -> None:
        await aio.save({"n": number}, path)

    for number in range(5):
        anyio.run(save, number, backend=backend)
        assert genesis.load(path) == {"n": number}
