"""What a program can see of its saves and loads: progress, and statistics of the process."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from contention import DEADLINE, busy_writer, held

import genesis
import genesis.aio

MIB = 1 << 20


def state(mib: int = 40) -> dict[str, Any]:
    return {"w": np.ones(mib * MIB, np.uint8), "n": 1}


def check(calls: list[tuple[int, int]], *, least: int) -> None:
    """That it rises from nothing to all there is."""
    done, totals = zip(*calls, strict=True)
    assert (done[0], done[-1]) == (0, totals[0])
    assert list(done) == sorted(set(done))
    assert len(set(totals)) == 1
    assert totals[0] >= 40 * MIB
    assert least <= len(done) <= 8  # of pieces of MiB, not of tensors


class Calls(list[tuple[int, int]]):
    def __call__(self, done: int, total: int) -> None:
        self.append((done, total))


def test_a_save_tells_how_far_it_has_come(tmp_path: Path) -> None:
    calls = Calls()
    genesis.save(state(), tmp_path / "f", progress=calls)
    check(calls, least=3)


def test_it_tells_of_pieces_and_not_of_tensors(tmp_path: Path) -> None:
    calls = Calls()
    many = {str(n): np.ones(100) for n in range(5000)}
    genesis.save(many, tmp_path / "f", progress=calls)
    assert len(calls) == 2
    genesis.load(tmp_path / "f", progress=calls)
    assert len(calls) == 4


def test_the_last_it_tells_comes_when_the_file_is_durable(tmp_path: Path) -> None:
    there: list[bool] = []
    genesis.save(
        state(), tmp_path / "f", progress=lambda *_: there.append((tmp_path / "f").exists())
    )
    assert there == [False] * (len(there) - 1) + [True]


def test_a_background_save_tells_it_on_its_future_too(tmp_path: Path) -> None:
    calls = Calls()
    threads = set()
    with held(tmp_path):
        future = genesis.save(
            state(),
            tmp_path / "f",
            background=True,
            progress=lambda *call: (calls(*call), threads.add(threading.current_thread().name)),
        )
        assert future.progress[0] == 0
    future.result(DEADLINE)
    check(calls, least=2)
    assert future.progress == calls[-1]
    assert all(name.startswith("genesis-writer") for name in threads)
    assert genesis.SaveFuture("f").progress == (0, 0)


@pytest.mark.parametrize("options", [{}, {"mmap": True, "verify": True}, {"only": "w"}], ids=str)
def test_a_load_tells_how_far_it_has_come(tmp_path: Path, options: Any) -> None:
    genesis.save(state(), tmp_path / "f", clear=False)
    calls = Calls()
    genesis.load(tmp_path / "f", progress=calls, **options)
    if "only" in options:
        assert calls[-1][0] == calls[-1][1] > 0
    else:
        check(calls, least=2)


def test_what_a_callable_raises_fails_no_save_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(done: int, total: int) -> None:
        raise ValueError("no bar")

    genesis.save(state(), tmp_path / "f", progress=fail)
    assert genesis.load(tmp_path / "f", progress=fail)["n"] == 1
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == ["progress is not told any more"] * 2


def test_a_bar_that_cannot_be_ended_fails_no_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tqdm = pytest.importorskip("tqdm")

    failures = [BrokenPipeError("nobody reads")]

    def fail(_: object) -> None:
        if failures:  # once: a bar that is dropped is closed again
            raise failures.pop()

    monkeypatch.setattr(tqdm.tqdm, "close", fail)
    assert genesis.save({"n": 1}, tmp_path / "f", progress=True).outcome == "durable"
    assert [record.getMessage() for record in caplog.records] == ["progress is not told any more"]


@pytest.mark.parametrize("library", ["tqdm", "rich"])
def test_a_bar(
    tmp_path: Path,
    library: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(library)
    from genesis import _progress

    monkeypatch.setattr(_progress, "_is_installed", lambda name: name == library)
    before = threading.active_count()
    genesis.save(state(), tmp_path / "f", progress=True)
    genesis.load(tmp_path / "f", progress=True)
    out, err = capfd.readouterr()
    assert (out, err.count("100%") + err.count("41.9/41.9 MB") >= 2) == ("", True)
    assert threading.active_count() == before


def test_a_bar_needs_a_library_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genesis._progress._is_installed", lambda name: False)
    with pytest.raises(ModuleNotFoundError, match="pip install tqdm"):
        genesis.save({"n": 1}, tmp_path / "f", progress=True)
    with pytest.raises(TypeError, match="progress must be a bool or a callable"):
        genesis.load(tmp_path / "f", progress=3)  # type: ignore[arg-type]


def gained(act: Callable[[], object]) -> dict[str, float]:
    """What of the statistics changed."""
    before = genesis.statistics()
    act()
    after = genesis.statistics()
    names = type(after).__dataclass_fields__
    changes = {name: getattr(after, name) - getattr(before, name) for name in names}
    return {name: change for name, change in changes.items() if change}


def test_statistics_of_saves_and_loads(tmp_path: Path) -> None:
    def save_twice() -> None:
        genesis.save(state(), tmp_path / "f")
        future = genesis.save(state(), tmp_path / "g", background=True)
        assert future.result(DEADLINE).bytes > 0

    found = gained(save_twice)
    assert (found["saves"], "failed" in found) == (2, False)
    assert found["bytes"] == sum((tmp_path / name).stat().st_size for name in "fg")
    assert found["stall"] > 0
    assert found["write"] > 0
    found = gained(lambda: genesis.load(tmp_path / "f"))
    assert found["loads"] == 1
    assert 0 < (tmp_path / "f").stat().st_size - found["loaded_bytes"] < 64 << 10
    assert genesis.statistics().longest_stall <= genesis.statistics().stall


def test_statistics_of_what_does_not_become_durable(tmp_path: Path) -> None:
    def refuse(*, background: bool) -> None:
        with pytest.raises(genesis.UnpicklableStateError):
            genesis.save({"f": sys.stderr}, tmp_path / "f", background=background)

    assert gained(lambda: refuse(background=False)) == {"failed": 1}
    assert gained(lambda: refuse(background=True)) == {"failed": 1}

    def skip_and_supersede() -> None:
        with busy_writer(tmp_path / "busy"):
            last = [
                genesis.save({"n": n}, tmp_path / "f", background=True, on_busy=on_busy)  # type: ignore[call-overload]
                for n, on_busy in enumerate(("wait", "supersede", "skip"))
            ]
        for future in last:
            future.result(DEADLINE)
        genesis.flush(DEADLINE)

    found = gained(skip_and_supersede)
    assert (found["skipped"], found["superseded"], "failed" in found) == (1, 1, False)


@pytest.mark.anyio
async def test_statistics_of_awaited_saves(tmp_path: Path, anyio_backend: object) -> None:
    before = genesis.statistics()
    async with anyio.create_task_group() as group:
        for n in range(4):
            group.start_soon(genesis.aio.save, {"n": n}, tmp_path / str(n))
    assert genesis.statistics().saves == before.saves + 4


def test_no_save_of_many_threads_is_lost_to_the_statistics(tmp_path: Path) -> None:
    from genesis._engine.statistics import Counter

    counter = Counter()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work() -> None:
        for _ in range(500):
            counter.add((1, 0, 0, 0, 3))

    threads = [threading.Thread(target=work) for _ in range(8)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert (counter.value().saves, counter.value().bytes) == (4000, 12000)


def test_a_forked_child_counts_from_nothing(tmp_path: Path) -> None:
    program = """
import os, sys, genesis
genesis.save({"n": 1}, sys.argv[1])
child = os.fork()
if not child:
    os._exit(genesis.statistics().saves)
print(os.waitpid(child, 0)[1], genesis.statistics().saves)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "f")]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "0 1\n"
