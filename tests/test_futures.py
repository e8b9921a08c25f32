"""`SaveFuture` wherever a `concurrent.futures.Future` is expected: callbacks, waiting, asyncio.

It holds saves by the directory's lock and looks at no clock.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contention import DEADLINE, HELPERS, busy_writer, held, run, start_save

import genesis
from genesis import SaveFuture, SaveReport


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    yield
    genesis.flush(DEADLINE)


def failing(folder: Path) -> SaveFuture:
    folder.mkdir()
    with held(folder):
        save = start_save({"n": 1}, folder / "f")
        shutil.rmtree(folder)
    return save


def test_it_is_a_future_of_the_standard_library(tmp_path: Path) -> None:
    with held(tmp_path):
        save = genesis.save({"n": 1}, tmp_path / "f", background=True)
        assert isinstance(save, concurrent.futures.Future)
        assert save.running()
        assert not save.done()
    assert save.exception(DEADLINE) is None
    assert not save.running()


def test_it_cannot_be_cancelled(tmp_path: Path) -> None:
    with held(tmp_path):
        save = genesis.save({"n": 1}, tmp_path / "f", background=True)
        assert not save.cancel()
        assert not save.cancelled()
    assert save.result(DEADLINE).outcome == "durable"
    assert genesis.load(tmp_path / "f") == {"n": 1}


def test_result_and_exception_keep_to_their_timeout(tmp_path: Path) -> None:
    with held(tmp_path):
        save = genesis.save({"n": 1}, tmp_path / "f", background=True)
        for ask in (save.result, save.exception):
            with pytest.raises(TimeoutError, match=r"^$"):
                ask(0)
            with pytest.raises(TimeoutError, match=r"^$"):
                ask(timeout=0.01)
    assert save.result(timeout=DEADLINE).path == str(tmp_path / "f")


def test_a_timeout_while_waiting_does_not_count_as_having_seen_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    with held(folder):
        save = start_save({"n": 1}, folder / "f")
        with pytest.raises(TimeoutError, match=r"^$"):
            save.result(0)
        shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="No such file"):
        genesis.flush(DEADLINE)
    assert save.done()


def test_wait_and_as_completed_take_it(tmp_path: Path) -> None:
    saves = [genesis.save({"n": n}, tmp_path / f"f{n}", background=True) for n in range(4)]
    assert concurrent.futures.wait(saves, DEADLINE).not_done == set()
    found = {save.result().path for save in concurrent.futures.as_completed(saves, DEADLINE)}
    assert found == {str(tmp_path / f"f{n}") for n in range(4)}


def test_a_callback_sees_a_durable_file_a_cleared_dict_and_a_free_path(tmp_path: Path) -> None:
    seen: list[Any] = []
    ended = threading.Event()
    state = {"n": 1}

    def look(save: concurrent.futures.Future[SaveReport]) -> None:
        seen.append(save.result(0).outcome)
        seen.append(genesis.load(tmp_path / "f"))
        seen.append(dict(state))
        seen.append(genesis.save({"n": 2}, tmp_path / "f", background=True, on_busy="skip"))
        ended.set()

    with held(tmp_path):
        save = genesis.save(state, tmp_path / "f", background=True, clear=True)
        save.add_done_callback(look)
    assert ended.wait(DEADLINE)
    assert seen[:3] == ["durable", {"n": 1}, {}]
    assert seen[3].result(DEADLINE).outcome == "durable"


def test_a_failing_callback_harms_no_other_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise KeyError("of the callback")

    with held(tmp_path):
        first = genesis.save({"n": 1}, tmp_path / "f", background=True)
        first.add_done_callback(fail)
        second = genesis.save({"n": 2}, tmp_path / "g", background=True)
    assert [save.result(DEADLINE).outcome for save in (first, second)] == ["durable"] * 2
    genesis.save({"n": 3}, tmp_path / "f", background=True).result(DEADLINE)
    with pytest.raises(KeyError, match="of the callback"):
        genesis.flush(DEADLINE)
    assert [record.getMessage() for record in caplog.records] == [
        f"a done-callback of the save of {tmp_path}/f failed"
    ]


def test_a_slow_callback_holds_no_save_and_flush_waits_for_it(tmp_path: Path) -> None:
    go, slow = threading.Event(), threading.Barrier(4, timeout=DEADLINE)
    ended: list[str] = []

    def upload(save: Any) -> None:
        slow.wait()  # three of them, and there are two threads that write
        assert go.wait(DEADLINE)
        ended.append(save.path)

    with held(tmp_path):
        saves = [genesis.save({"n": n}, tmp_path / f"f{n}", background=True) for n in range(3)]
        for save in saves:
            save.add_done_callback(upload)
    slow.wait()
    genesis.save({"n": 3}, tmp_path / "g", background=True).result(DEADLINE)
    with pytest.raises(TimeoutError, match=r"f0, .*f1, .*f2"):
        genesis.flush(0.01)
    go.set()
    genesis.flush(DEADLINE)
    assert sorted(ended) == [save.path for save in saves]


def test_callbacks_of_one_path_come_in_the_order_of_its_saves(tmp_path: Path) -> None:
    called: list[int] = []
    go = threading.Event()
    with held(tmp_path):
        first = genesis.save({"n": 0}, tmp_path / "f", background=True)
        first.add_done_callback(lambda _: (go.wait(DEADLINE), called.append(0)))
    first.result(DEADLINE)
    for number in range(1, 6):
        with held(tmp_path):
            save = genesis.save({"n": number}, tmp_path / "f", background=True)
            save.add_done_callback(lambda _, number=number: called.append(number))
        save.result(DEADLINE)
    assert called == []
    go.set()
    genesis.flush(DEADLINE)
    assert called == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("ask", ["flush", "load", "save", "nothing"])
def test_a_callback_may_ask_for_anything(tmp_path: Path, ask: str) -> None:
    def call(save: Any) -> None:
        asked = {
            "flush": lambda: genesis.flush(DEADLINE),
            "load": lambda: genesis.load(tmp_path / "f"),
            "save": lambda: genesis.save({"n": 2}, tmp_path / "f", background=True).result(
                DEADLINE
            ),
            "nothing": lambda: None,
        }
        asked[ask]()
        ended.append(save.path)

    ended: list[str] = []
    with held(tmp_path):
        saves = [genesis.save({"n": n}, tmp_path / name, background=True) for n, name in
                 enumerate("fg")]  # fmt: skip
        for save in saves:
            save.add_done_callback(call)
    genesis.flush(DEADLINE)
    genesis.flush(DEADLINE)  # what a callback has submitted
    assert sorted(ended) == [save.path for save in saves]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), KeyError("x")])
def test_a_callback_that_ends_its_thread_keeps_nobody_from_hearing(
    tmp_path: Path, error: BaseException
) -> None:
    def fail(_: object) -> None:
        raise error

    called = threading.Event()

    async def main() -> list[str]:
        with held(tmp_path):
            save = genesis.save({"n": 1}, tmp_path / "f", background=True)
            save.add_done_callback(fail)
            save.add_done_callback(lambda _: called.set())
            tasks = [asyncio.ensure_future(wait(save)) for _ in range(3)]
            wrapped = asyncio.wrap_future(save)
            await asyncio.sleep(0)
        return [(await task).outcome for task in (*tasks, wrapped)]

    async def wait(save: SaveFuture) -> SaveReport:
        return await save

    assert asyncio.run(asyncio.wait_for(main(), DEADLINE)) == ["durable"] * 4
    assert called.wait(DEADLINE)
    with pytest.raises(type(error)):
        genesis.flush(DEADLINE)
    genesis.save({"n": 2}, tmp_path / "f", background=True).result(DEADLINE)


def test_exit_waits_for_callbacks(tmp_path: Path) -> None:
    script = """
import sys, time, genesis
from contention import held
from pathlib import Path
folder = Path(sys.argv[1])
def slow(save):
    while not genesis._engine.scheduler.scheduler.pool.inline:  # the exit has not begun
        time.sleep(0)
    print(genesis.load(save.path)["n"], flush=True)
with held(folder):
    genesis.save({"n": 0}, folder / "f", background=True).add_done_callback(slow)
    genesis.save({"n": 9}, folder / "g", background=True).add_done_callback(slow)
"""
    prelude = f"import sys; sys.path.insert(0, {HELPERS!r})"
    status, output, errors = run(prelude + script, tmp_path)
    assert (status, sorted("".join(output.split())), errors) == (0, ["0", "9"], "")


def test_wait_captured_raises_what_made_the_save_fail_before_its_capture(tmp_path: Path) -> None:
    save = failing(tmp_path / "d")
    save.wait_captured(DEADLINE)  # captured first, failed later: the tensors may change
    with pytest.raises(FileNotFoundError, match="No such file"):
        save.result(DEADLINE)


def test_many_threads_may_wait_for_one_save(tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        with held(tmp_path):
            save = genesis.save({"n": 1}, tmp_path / "f", background=True, capture="deferred")
            waits: list[Any] = [threads.submit(save.result, DEADLINE) for _ in range(3)]
            waits += [threads.submit(save.wait_captured, DEADLINE) for _ in range(3)]
        assert {wait.result(DEADLINE) for wait in waits} == {save.result(0), None}


def test_asyncio_wrap_future_takes_it(tmp_path: Path) -> None:
    async def main() -> SaveReport:
        save = genesis.save({"n": 1}, tmp_path / "f", background=True)
        return await asyncio.wrap_future(save)

    assert asyncio.run(main()).outcome == "durable"


def test_a_failure_seen_through_wrap_future_is_seen(tmp_path: Path) -> None:
    async def main() -> None:
        await asyncio.wrap_future(failing(tmp_path / "d"))

    with pytest.raises(FileNotFoundError, match="No such file"):
        asyncio.run(main())
    genesis.flush(DEADLINE)


def test_a_future_that_is_dropped_at_once_is_saved_and_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    genesis.save({"n": 1}, tmp_path / "f", background=True)
    genesis.flush(DEADLINE)
    assert genesis.load(tmp_path / "f") == {"n": 1}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# --- What it says of itself -----------------------------------------------------------------------


def test_its_repr_says_path_and_moment(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with busy_writer(tmp_path / "busy"):
        save = genesis.save({"n": 1}, path, background=True, capture="deferred")
        assert repr(save) == f"<SaveFuture of {path}: not captured yet>"
        late = genesis.save({"n": 2}, tmp_path / "g", background=True)
        assert repr(late).endswith("g: captured, not durable yet>")
    save.result(DEADLINE)
    assert repr(save) == f"<SaveFuture of {path}: durable>"
    skipped = None
    with held(tmp_path):
        start_save({"n": 1}, path)
        skipped = genesis.save({"n": 2}, path, background=True, on_busy="skip")
    assert repr(skipped).endswith("f: skipped>")


def test_its_repr_does_not_count_as_having_asked_for_the_error(tmp_path: Path) -> None:
    save = failing(tmp_path / "d")
    concurrent.futures.wait([save], DEADLINE)
    assert repr(save) == f"<SaveFuture of {save.path}: failed with FileNotFoundError>"
    with pytest.raises(FileNotFoundError, match="No such file"):
        genesis.flush(DEADLINE)


def test_a_durable_save_leaves_one_line_in_the_log_that_is_not_shown_by_default(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saves: list[Callable[[], genesis.SaveReport]] = [
        lambda: genesis.save({"n": 1}, tmp_path / "f"),
        lambda: genesis.save({"n": 1}, tmp_path / "f", background=True).result(DEADLINE),
    ]
    for save in saves:
        with caplog.at_level(logging.INFO, "genesis"):
            report = save()
        numbers = r"stall \d+\.\d ms, \d+ MB/s"
        line = rf"saved {re.escape(report.path)}: {report.bytes:,} bytes, {numbers}"
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("genesis", "INFO")
        assert re.fullmatch(line, record.getMessage())
        caplog.clear()
    assert logging.getLogger("genesis").level == logging.NOTSET
    assert logging.getLogger("genesis").handlers == []
