"""The bridge between futures and event loops, alone: results, errors, cancellation, loops that are
gone. Runs on asyncio and trio.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import anyio
import pytest
import trio
from contention import DEADLINE, HELPERS, held, join_threads, run

import genesis
from genesis import aio
from genesis.aio import _bridge


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    yield
    genesis.flush(DEADLINE)
    join_threads()


@pytest.mark.anyio
async def test_call_runs_on_another_thread_and_returns_its_result() -> None:
    thread = await _bridge.call(threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.name == "genesis-aio"


@pytest.mark.anyio
async def test_a_trio_older_than_its_functions_for_this_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    """Before 0.29 it cannot be asked whether it runs."""
    for name in ("in_trio_run", "in_trio_task"):
        monkeypatch.delattr(trio.lowlevel, name, raising=False)
    assert _bridge.on_trio() is (anyio_backend_name == "trio")
    await aio.save({"n": 1}, tmp_path / "f")
    assert await aio.load(tmp_path / "f") == {"n": 1}


@pytest.mark.anyio
async def test_call_raises_what_the_work_raises() -> None:
    def fail() -> None:
        raise KeyError("of the work")

    with pytest.raises(KeyError, match="of the work"):
        await _bridge.call(fail)


@pytest.mark.anyio
async def test_wait_for_a_future_that_is_done_lets_others_run() -> None:
    future: Future[int] = Future()
    future.set_result(3)
    ran = False

    async def other() -> None:
        nonlocal ran
        ran = True

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        for _ in range(3):
            assert await _bridge.wait(future) == 3
    assert ran


@pytest.mark.anyio
async def test_several_tasks_may_wait_for_one_future() -> None:
    future: Future[int] = Future()
    found: list[int] = []

    async def wait() -> None:
        found.append(await _bridge.wait(future))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        threading.Thread(target=future.set_result, args=(7,)).start()
    assert found == [7] * 5


@pytest.mark.anyio
async def test_settled_does_not_raise_the_error_of_the_future() -> None:
    future: Future[int] = Future()
    future.set_exception(KeyError("x"))
    await _bridge.settled(future)
    with pytest.raises(KeyError, match="x"):
        await _bridge.wait(future)


@pytest.mark.anyio
async def test_a_cancelled_wait_ends_and_the_future_goes_on() -> None:
    future: Future[int] = Future()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(_bridge.wait, future)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert not future.done()
    threading.Thread(target=future.set_result, args=(7,)).start()
    assert await _bridge.wait(future) == 7


@pytest.mark.anyio
async def test_waiting_is_a_checkpoint_that_a_cancelled_scope_stops() -> None:
    future: Future[int] = Future()
    future.set_result(3)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await _bridge.wait(future)
        pytest.fail("the scope was cancelled")  # pragma: no cover
    assert scope.cancelled_caught


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_ended_in_the_meantime_is_not_woken(tmp_path: Path, backend: str) -> None:
    async def main() -> None:
        with anyio.move_on_after(0):
            await aio.save({"n": 1}, tmp_path / "f")

    with held(tmp_path):
        anyio.run(main, backend=backend)
        assert not (tmp_path / "f").exists()
    genesis.flush(DEADLINE)
    assert genesis.load(tmp_path / "f") == {"n": 1}


def test_a_closed_loop_leaves_no_turn_behind(tmp_path: Path) -> None:
    """A loop that is closed around its tasks, which asyncio warns of, must not block the path."""
    script = """
import asyncio, faulthandler, gc, sys, genesis
from contention import held, start_save
from pathlib import Path
faulthandler.dump_traceback_later(60, exit=True)
folder = Path(sys.argv[1])
with held(folder):
    start_save({"n": 1}, folder / "f")
    loop = asyncio.new_event_loop()
    task = loop.create_task(genesis.aio.save({"n": 2}, folder / "f"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    del task, loop
    gc.collect()
genesis.flush()
genesis.save({"n": 3}, folder / "f")
print(genesis.load(folder / "f"))
"""
    prelude = f"import sys; sys.path.insert(0, {HELPERS!r})"
    status, output, errors = run(prelude + script, tmp_path)
    assert status == 0, errors
    assert output == "{'n': 3}\n"


NEEDED = importlib.metadata.requires("anyio") or []
"""What the anyio that is installed needs itself: before 4.12 that is sniffio."""


@pytest.mark.parametrize(
    "missing", ["trio", *(name for name in ["sniffio"] if not any(name in n for n in NEEDED))]
)
def test_asyncio_needs_nothing_of_trio(tmp_path: Path, missing: str) -> None:
    script = """
import asyncio, sys
sys.modules[sys.argv[2]] = None
import genesis
async def main():
    await genesis.aio.save({"n": 1}, sys.argv[1])
    await genesis.save({"n": 2}, sys.argv[1], background=True)
    size = sum([len(chunk) async for chunk in genesis.aio.stream(sys.argv[1])])
    print(await genesis.aio.load(sys.argv[1]), size > 100)
asyncio.run(main())
"""
    status, output, errors = run(script, tmp_path / "f", missing)
    assert status == 0, errors
    assert output == "{'n': 2} True\n"


@pytest.mark.parametrize("missing", ["aiofiles", "asyncio"])
def test_trio_needs_no_aiofiles(tmp_path: Path, missing: str) -> None:
    script = """
import sys, trio
if sys.argv[2] == "aiofiles":
    sys.modules["aiofiles"] = None
import genesis
async def main():
    await genesis.aio.save({"n": 1}, sys.argv[1])
    await genesis.save({"n": 2}, sys.argv[1], background=True)
    size = sum([len(chunk) async for chunk in genesis.aio.stream(sys.argv[1])])
    print(await genesis.aio.load(sys.argv[1]), size > 100, "aiofiles" in sys.modules)
trio.run(main)
"""
    status, output, errors = run(script, tmp_path / "f", missing)
    assert status == 0, errors
    assert output.startswith("{'n': 2} True")


def test_a_plain_save_beside_a_waiting_coroutine_of_its_own_loop_does_not_hang(
    tmp_path: Path,
) -> None:
    """
    Race: 1. a coroutine waits for the path's turn; 2. another one, of the same loop, saves the path
    with the plain call, which waits for the first, which cannot run: the loop is in that call.
    """
    script = """
import asyncio, faulthandler, sys, genesis
from contention import held, start_save
from pathlib import Path
faulthandler.dump_traceback_later(60, exit=True)
folder = Path(sys.argv[1])
class Releasing:
    def __fspath__(self):
        hold.release()
        return str(folder / "f")
async def main():
    start_save({"n": 1}, folder / "f")
    task = asyncio.create_task(genesis.aio.save({"n": 2}, folder / "f"))
    await asyncio.sleep(0)
    try:
        genesis.save({"n": 3}, Releasing(), background=sys.argv[2] == "background")
    except RuntimeError as exc:
        print("refused:", exc)
    await task
with held(folder) as hold:
    asyncio.run(main())
genesis.flush()
print(genesis.load(folder / "f")["n"] in (2, 3))
"""
    prelude = f"import sys; sys.path.insert(0, {HELPERS!r})"
    for kind in ("plain", "background"):
        folder = tmp_path / kind
        folder.mkdir()
        status, output, errors = run(prelude + script, folder, kind)
        assert status == 0, errors
        assert output.splitlines()[-1] == "True"


@pytest.mark.anyio
async def test_nothing_of_a_finished_call_is_kept() -> None:
    class Payload:
        pass

    alive = [0]

    def work(payload: Payload = Payload()) -> None:  # noqa: B008
        alive[0] = id(payload)

    await _bridge.call(work)
    await anyio.to_thread.run_sync(join_threads)
    gc.collect()
    assert not any(isinstance(found, Future) for found in gc.get_referrers(work))


GUEST = """
import asyncio, faulthandler, sys, trio, genesis
from contention import held
from pathlib import Path
faulthandler.dump_traceback_later(60, exit=True)
folder = Path(sys.argv[1])
genesis.configure(threads=4)
async def in_trio():
    await trio.sleep(0)
    await genesis.aio.save({"n": 0}, folder / "g")
async def main():
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    go_on = asyncio.Event()
    trio.lowlevel.start_guest_run(
        in_trio, run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        done_callback=lambda outcome: (outcome.unwrap(), ended.set()),
    )
    (folder / "d").mkdir()
    with held(folder / "d"):
        task = asyncio.create_task(genesis.aio.save({"n": 1}, folder / "d/f"))
        waiting = asyncio.create_task(wait(genesis.save({"n": 2}, folder / "d/h", background=True)))
        await asyncio.sleep(0)
        await ended.wait()
    print((await task).outcome, (await waiting).outcome)
async def wait(save):
    return await save
asyncio.run(main())
"""


def test_an_asyncio_task_waits_on_while_a_trio_guest_run_ends(tmp_path: Path) -> None:
    prelude = f"import sys; sys.path.insert(0, {HELPERS!r})"
    status, output, errors = run(prelude + GUEST, tmp_path)
    assert status == 0, errors
    assert output == "durable durable\n"


def test_a_signal_handler_of_the_loop_may_save_and_wait(tmp_path: Path) -> None:
    """`add_signal_handler` runs it between two steps of tasks, one of which waits for its turn."""
    script = """
import asyncio, faulthandler, os, signal, sys, genesis
from contention import held, start_save
from pathlib import Path
faulthandler.dump_traceback_later(60, exit=True)
folder = Path(sys.argv[1])
(folder / "d").mkdir()
def handler():
    for wait in (
        lambda: genesis.save({"n": 3}, folder / "g"),
        lambda: genesis.save({"n": 3}, folder / "g", background=True).result(),
        lambda: genesis.load(folder / "g"),
        lambda: genesis.save({"n": 3}, folder / "d/f"),
    ):
        try:
            wait()
        except RuntimeError as exc:
            print("refused:", exc)
    hold.release()
    genesis.flush()
    ended.set()
async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, handler)
    start_save({"n": 1}, folder / "d/f")
    task = asyncio.create_task(genesis.aio.save({"n": 2}, folder / "d/f"))
    await asyncio.sleep(0)
    signal.raise_signal(signal.SIGTERM)
    await ended.wait()
    print((await task).outcome)
ended = asyncio.Event()
with held(folder / "d") as hold:
    asyncio.run(main())
print(genesis.load(folder / "d/f"), genesis.load(folder / "g"))
"""
    prelude = f"import sys; sys.path.insert(0, {HELPERS!r})"
    status, output, errors = run(prelude + script, tmp_path)
    assert status == 0, errors
    assert output.splitlines()[0].startswith("refused: a save of")
    assert output.splitlines()[1:] == ["durable", "{'n': 2} {'n': 3}"]


def test_two_loops_in_two_threads_wait_for_one_save(tmp_path: Path) -> None:
    found: list[str] = []

    async def wait(save: genesis.SaveFuture) -> None:
        found.append((await save).outcome)

    with held(tmp_path):
        save = genesis.save({"n": 1}, tmp_path / "f", background=True)
        threads = [threading.Thread(target=lambda: asyncio.run(wait(save))) for _ in range(2)]
        threads.append(threading.Thread(target=lambda: anyio.run(wait, save, backend="trio")))
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert found == ["durable"] * 3
