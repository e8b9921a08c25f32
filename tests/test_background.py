"""Background saves as a caller sees them: what the file holds, when the dict is cleared, which save
waits for which, and who gets to see an error. Nothing is timed: saves are held by the directory's
own lock.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contention import (
    DEADLINE,
    busy_writer,
    default_budget,
    ended,
    failing_save,
    genesis_threads,
    held,
    join_threads,
    litter,
    start_save,
)
from optional import torch

import genesis


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    """No test leaves a save or an unseen failure to the next one."""
    yield
    genesis.flush(DEADLINE)


@pytest.fixture
def small_budget() -> Iterator[int]:
    budget = 1 << 20
    genesis.configure(max_pending_bytes=budget)
    yield budget
    genesis.configure(max_pending_bytes=default_budget())


class Releasing(os.PathLike[str]):
    """A path that lets a held save go on as soon as somebody asks for its name."""

    def __init__(self, path: Path, hold: Any) -> None:
        self._path = path
        self._hold = hold

    def __fspath__(self) -> str:
        self._hold.release()
        return str(self._path)


# What the file holds


def test_arrays_may_be_overwritten_when_the_call_returns(tmp_path: Path) -> None:
    array, tensor = np.arange(300_000), torch.arange(300_000.0)
    tiny = torch.ones(3, dtype=torch.bfloat16)
    state = {"array": array, "tensor": tensor, "tiny": tiny, "strided": array[::3]}
    with held(tmp_path):
        save = genesis.save(state, tmp_path / "f", background=True)
        assert save.captured
        array.fill(-1)
        tensor.fill_(-1)
        tiny.zero_()
    save.result(DEADLINE)
    found = genesis.load(tmp_path / "f")
    assert np.array_equal(found["array"], np.arange(300_000))
    assert torch.equal(found["tensor"], torch.arange(300_000.0))
    assert torch.equal(found["tiny"], torch.ones(3, dtype=torch.bfloat16))
    assert np.array_equal(found["strided"], np.arange(0, 300_000, 3))


def test_containers_and_objects_may_be_changed_when_the_call_returns(tmp_path: Path) -> None:
    log, raw, nested = [1, 2], bytearray(200_000), {"deep": {"er": [0]}}
    state = {"log": log, "raw": raw, "nested": nested}
    with held(tmp_path):
        save = genesis.save(state, tmp_path / "f", background=True)
        log.append(3)
        raw[0] = 255
        nested["deep"]["er"].clear()
        nested["new"] = {}
    save.result(DEADLINE)
    found = genesis.load(tmp_path / "f")
    assert found == {"log": [1, 2], "raw": bytearray(200_000), "nested": {"deep": {"er": [0]}}}


def test_a_read_only_array_with_a_writable_view_is_copied_too(tmp_path: Path) -> None:
    array = np.zeros(100_000)
    view = array[:]
    array.flags.writeable = False
    with busy_writer(tmp_path / "busy"):
        save = genesis.save({"array": array}, tmp_path / "f", background=True)
        view.fill(7)
    save.result(DEADLINE)
    assert not genesis.load(tmp_path / "f")["array"].any()


def test_a_read_only_array_may_be_made_writable_when_the_call_returns(tmp_path: Path) -> None:
    array = np.zeros(100_000)
    array.flags.writeable = False
    with busy_writer(tmp_path / "busy"):
        save = genesis.save({"array": array}, tmp_path / "f", background=True)
        array.flags.writeable = True
        array.fill(7)
    save.result(DEADLINE)
    assert not genesis.load(tmp_path / "f")["array"].any()


def test_deferred_takes_all_but_large_tensors_at_once(tmp_path: Path) -> None:
    small, log, large = torch.zeros(10), [1], torch.zeros(1 << 20)
    with busy_writer(tmp_path / "busy"):
        save = genesis.save(
            {"small": small, "log": log, "large": large},
            tmp_path / "f",
            background=True,
            capture="deferred",
        )
        small.fill_(7)
        log.append(2)
        assert not save.captured
        with pytest.raises(TimeoutError, match=r"^$"):
            save.wait_captured(0)
    save.result(DEADLINE)
    found = genesis.load(tmp_path / "f")
    assert found["log"] == [1]
    assert not found["small"].any()
    assert not found["large"].any()


def test_deferred_lets_large_tensors_change_after_wait_captured(tmp_path: Path) -> None:
    large = torch.zeros(1 << 20)
    with held(tmp_path):
        save = genesis.save({"large": large}, tmp_path / "f", background=True, capture="deferred")
        save.wait_captured(DEADLINE)
        assert save.captured
        assert not save.done()
        large.fill_(7)
    save.result(DEADLINE)
    assert not genesis.load(tmp_path / "f")["large"].any()


def test_arrays_that_the_caller_dropped_are_saved_all_the_same(tmp_path: Path) -> None:
    state = {"array": np.arange(1 << 20), "frozen": np.frombuffer(bytes(1 << 20), np.uint8)}
    with busy_writer(tmp_path / "busy"):
        save = genesis.save(state, tmp_path / "f", background=True, capture="deferred")
        del state
        scratch = [np.full(1 << 20, 9) for _ in range(4)]
    save.result(DEADLINE)
    del scratch
    found = genesis.load(tmp_path / "f")
    assert np.array_equal(found["array"], np.arange(1 << 20))
    assert not found["frozen"].any()


# The report


def test_the_report_says_what_happened(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    report = genesis.save({"a": np.ones(1000)}, tmp_path / "link", background=True).result(DEADLINE)
    real = tmp_path / "real"
    assert report.path == str(real.resolve())
    assert report.outcome == "durable"
    assert report.bytes == real.stat().st_size
    seconds = (report.stall, report.capture, report.wait, report.write, report.sync)
    assert all(value >= 0 for value in seconds)
    assert report.write + report.sync > 0
    assert report.throughput == report.bytes / (report.write + report.sync)


def test_save_checkpoint_in_the_background(tmp_path: Path) -> None:
    model, optimizer = {"w": torch.ones(5)}, {"step": 3}
    save = genesis.save_checkpoint(model, optimizer, tmp_path / "f", background=True)
    assert save.result(DEADLINE).outcome == "durable"
    found, step = genesis.load_checkpoint(tmp_path / "f")
    assert torch.equal(found["w"], torch.ones(5))
    assert step == {"step": 3}


# Clearing


def test_the_dict_is_cleared_when_the_file_is_durable_and_not_before(tmp_path: Path) -> None:
    state = {"a": 1, "b": np.ones(10)}
    with held(tmp_path):
        save = genesis.save(state, tmp_path / "f", background=True, clear=True)
        assert set(state) == {"a", "b"}
    save.result(DEADLINE)
    assert state == {}


def test_clear_false_keeps_the_dict(tmp_path: Path) -> None:
    state = {"a": 1}
    genesis.save(state, tmp_path / "f", background=True, clear=False).result(DEADLINE)
    assert state == {"a": 1}


def test_clearing_spares_what_the_caller_put_in_later(tmp_path: Path) -> None:
    state: OrderedDict[str, Any] = OrderedDict(old=np.ones(10), changed=np.ones(10))
    with held(tmp_path):
        save = genesis.save(state, tmp_path / "f", background=True, clear=True)
        state["changed"] = "other"
        state["new"] = "new"
    save.result(DEADLINE)
    assert state == {"changed": "other", "new": "new"}
    assert set(genesis.load(tmp_path / "f")) == {"old", "changed"}


def test_a_failed_save_leaves_the_dict_and_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "d" / "f"
    path.parent.mkdir()
    state = {"a": 1}
    with held(path.parent):
        save = start_save(state, path)
        shutil.rmtree(path.parent)
    with pytest.raises(FileNotFoundError, match="No such file"):
        save.result(DEADLINE)
    assert state == {"a": 1}


def test_an_unpicklable_state_fails_in_the_call_and_gives_the_turn_back(tmp_path: Path) -> None:
    state = {"bad": (n for n in ())}
    with pytest.raises(genesis.UnpicklableStateError, match=r"\['bad'\]"):
        genesis.save(state, tmp_path / "f", background=True)
    assert set(state) == {"bad"}
    report = genesis.save({"a": 1}, tmp_path / "f", background=True, on_busy="skip").result(0.0 + 9)
    assert report.outcome == "durable"
    assert litter(tmp_path) == []


# Order and names


def test_saves_of_one_path_become_durable_in_the_order_of_the_calls(tmp_path: Path) -> None:
    ended: list[int] = []
    saves = []
    for number in range(40):
        save = genesis.save({"n": number}, tmp_path / "f", background=True)
        save.add_done_callback(lambda _, n=number: ended.append(n))
        saves.append(save)
    assert [save.result(DEADLINE).outcome for save in saves] == ["durable"] * 40
    genesis.flush(DEADLINE)
    assert ended == list(range(40))
    assert genesis.load(tmp_path / "f") == {"n": 39}


def test_a_synchronous_save_waits_for_the_background_save_before_it(tmp_path: Path) -> None:
    with held(tmp_path) as hold:
        first = genesis.save({"n": 1}, tmp_path / "f", background=True)
        genesis.save({"n": 2}, Releasing(tmp_path / "f", hold))  # type: ignore[arg-type]
        assert first.done()
    assert genesis.load(tmp_path / "f") == {"n": 2}


def test_different_paths_do_not_wait_for_each_other(tmp_path: Path) -> None:
    stuck, free = tmp_path / "stuck", tmp_path / "free"
    stuck.mkdir()
    free.mkdir()
    with held(stuck):
        first = genesis.save({"n": 1}, stuck / "f", background=True)
        genesis.save({"n": 2}, free / "f", background=True).result(DEADLINE)
        assert not first.done()
    first.result(DEADLINE)


@pytest.mark.parametrize("name", ["link", "sub/../f", "./f", "sub/up/f", "sub//..//f"])
def test_two_names_of_one_file_are_one_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "link").symlink_to("f")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/up").symlink_to("..")
    monkeypatch.chdir(tmp_path)
    with held(tmp_path) as hold:
        first = genesis.save({"n": 1}, tmp_path / "f", background=True)
        skipped = genesis.save({"n": 2}, name, background=True, on_busy="skip")
        assert skipped.result(DEADLINE).outcome == "skipped"
        hold.release()
        genesis.save({"n": 3}, name)
        assert first.done()
    assert (tmp_path / "link").is_symlink()
    assert genesis.load(tmp_path / "f") == {"n": 3}


def test_a_path_is_resolved_in_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with held(tmp_path):
        save = genesis.save({"n": 1}, "f", background=True)
        monkeypatch.chdir("other")
    save.result(DEADLINE)
    assert genesis.load(tmp_path / "f") == {"n": 1}


# Loading


@pytest.mark.parametrize("name", ["f", "link"])
def test_load_waits_for_the_save_that_is_under_way(tmp_path: Path, name: str) -> None:
    genesis.save({"n": "old"}, tmp_path / "f")
    (tmp_path / "link").symlink_to("f")
    with held(tmp_path) as hold:
        genesis.save({"n": "new", "big": bytes(30 << 20)}, tmp_path / "f", background=True)
        found = genesis.load(Releasing(tmp_path / name, hold))  # type: ignore[arg-type]
    assert found["n"] == "new"


def test_load_of_a_path_whose_save_fails_returns_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "f"
    genesis.save({"n": "old"}, path)
    with held(path.parent):
        save = start_save({"n": "new"}, path)
        # A directory in the way of the temporary file's end: the commit's rename cannot succeed.
        path.rename(tmp_path / "aside")
        path.mkdir()
    with pytest.raises(OSError, match="directory"):
        save.result(DEADLINE)
    path.rmdir()
    (tmp_path / "aside").rename(path)
    assert genesis.load(path) == {"n": "old"}
    assert litter(path.parent) == []


def test_load_of_another_path_does_not_wait(tmp_path: Path) -> None:
    genesis.save({"n": 1}, tmp_path / "other")
    with held(tmp_path):
        save = genesis.save({"n": 2}, tmp_path / "f", background=True)
        assert genesis.load(tmp_path / "other") == {"n": 1}
        assert not save.done()


# When the writer is busy


def test_skip_saves_nothing_while_the_path_is_busy(tmp_path: Path) -> None:
    state = {"n": 2}
    with held(tmp_path):
        first = genesis.save({"n": 1}, tmp_path / "f", background=True)
        second = genesis.save(state, tmp_path / "f", background=True, on_busy="skip")
        report = second.result(0)
        assert (report.outcome, report.bytes) == ("skipped", 0)
        assert second.captured
        assert state == {"n": 2}
    first.result(DEADLINE)
    assert genesis.load(tmp_path / "f") == {"n": 1}


def test_skip_saves_when_the_path_is_idle_again(tmp_path: Path) -> None:
    for number in range(20):
        report = genesis.save(
            {"n": number}, tmp_path / "f", background=True, on_busy="skip"
        ).result(DEADLINE)
        assert report.outcome == "durable"


def test_supersede_takes_the_place_of_a_queued_save(tmp_path: Path) -> None:
    old, new = {"n": "old"}, {"n": "new"}
    with busy_writer(tmp_path / "busy"):
        first = genesis.save(old, tmp_path / "f", background=True)
        second = genesis.save(new, tmp_path / "f", background=True, clear=True, on_busy="supersede")
        report = first.result(DEADLINE)
        assert (report.outcome, report.bytes) == ("superseded", 0)
        assert first.captured
        assert old == {"n": "old"}
        assert not second.done()
    assert second.result(DEADLINE).outcome == "durable"
    assert new == {}
    assert genesis.load(tmp_path / "f") == {"n": "new"}


def test_supersede_captures_what_a_deferred_save_had_not(tmp_path: Path) -> None:
    large = torch.zeros(1 << 20)
    with busy_writer(tmp_path / "busy"):
        first = genesis.save({"x": large}, tmp_path / "f", background=True, capture="deferred")
        second = genesis.save({"x": large}, tmp_path / "f", background=True, on_busy="supersede")
        first.wait_captured(0)
        large.fill_(7)
    assert not genesis.load(tmp_path / "f")["x"].any()
    assert (first.result(0).outcome, second.result(0).outcome) == ("superseded", "durable")


def test_supersede_spares_a_save_of_another_path(tmp_path: Path) -> None:
    with busy_writer(tmp_path / "busy"):
        other = genesis.save({"n": 1}, tmp_path / "other", background=True)
        queued = genesis.save({"n": 1}, tmp_path / "f", background=True)
        last = genesis.save({"n": 2}, tmp_path / "f", background=True, on_busy="supersede")
    outcomes = [save.result(DEADLINE).outcome for save in (other, queued, last)]
    assert outcomes == ["durable", "superseded", "durable"]


def test_supersede_waits_for_a_save_that_has_begun(tmp_path: Path) -> None:
    with held(tmp_path) as hold:
        first = start_save({"n": 1}, tmp_path / "f")
        path = Releasing(tmp_path / "f", hold)
        second = genesis.save({"n": 2}, path, background=True, on_busy="supersede")  # type: ignore[call-overload]
        assert first.result(0).outcome == "durable"
        assert second.result(DEADLINE).outcome == "durable"
    assert genesis.load(tmp_path / "f") == {"n": 2}


def test_supersede_gives_back_the_memory_of_what_it_drops(
    tmp_path: Path, small_budget: int
) -> None:
    state = {"x": np.zeros(small_budget * 3 // 4, np.uint8)}
    with busy_writer(tmp_path / "busy"):
        saves = [
            genesis.save(state, tmp_path / "f", background=True, clear=False, on_busy="supersede")
            for _ in range(5)
        ]
    outcomes = [save.result(DEADLINE).outcome for save in saves]
    assert outcomes == ["superseded"] * 4 + ["durable"]


@pytest.mark.parametrize("on_busy", ["wait", "supersede"])
def test_a_save_waits_while_the_budget_is_used_up(
    tmp_path: Path, small_budget: int, on_busy: Any
) -> None:
    (tmp_path / "d").mkdir()
    state = {"x": np.zeros(small_budget * 3 // 4, np.uint8)}
    with held(tmp_path / "d") as hold:
        first = genesis.save(state, tmp_path / "d/f", background=True, clear=False)
        path = Releasing(tmp_path / "g", hold)
        second = genesis.save(state, path, background=True, clear=False, on_busy=on_busy)  # type: ignore[call-overload]
        assert first.done()
    assert second.result(DEADLINE).outcome == "durable"


def test_skip_saves_nothing_while_the_budget_is_used_up(tmp_path: Path, small_budget: int) -> None:
    state = {"x": np.zeros(small_budget * 3 // 4, np.uint8)}
    with held(tmp_path):
        first = genesis.save(state, tmp_path / "f", background=True, clear=False)
        second = genesis.save(state, tmp_path / "g", background=True, on_busy="skip")
        assert second.result(0).outcome == "skipped"
        small = genesis.save({"n": 1}, tmp_path / "h", background=True, on_busy="skip")
        assert not small.done()
    outcomes = [save.result(DEADLINE).outcome for save in (first, small)]
    assert outcomes == ["durable", "durable"]
    assert not (tmp_path / "g").exists()
    assert state


def test_one_save_larger_than_the_budget_is_let_through(tmp_path: Path, small_budget: int) -> None:
    state = {"x": np.zeros(4 * small_budget, np.uint8)}
    report = genesis.save(state, tmp_path / "f", background=True, on_busy="skip").result(DEADLINE)
    assert report.outcome == "durable"


def test_the_budget_is_whole_again_after_saves_of_every_outcome(
    tmp_path: Path, small_budget: int
) -> None:
    part = {"x": np.zeros(small_budget * 3 // 4, np.uint8)}
    (tmp_path / "gone").mkdir()
    with held(tmp_path / "gone"):
        failed = start_save(part, tmp_path / "gone/f")
        shutil.rmtree(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="No such file"):
        failed.result(DEADLINE)
    with pytest.raises(genesis.UnpicklableStateError, match="generator"):
        genesis.save({**part, "bad": (n for n in ())}, tmp_path / "f", background=True)
    with held(tmp_path):
        genesis.save(part, tmp_path / "f", background=True, clear=False)
        skipped = genesis.save(part, tmp_path / "g", background=True, on_busy="skip", clear=False)
        assert skipped.result(0).outcome == "skipped"
    genesis.flush(DEADLINE)
    report = genesis.save(part, tmp_path / "g", background=True, on_busy="skip").result(DEADLINE)
    assert report.outcome == "durable"


# Flush and errors


def test_flush_waits_for_every_save(tmp_path: Path) -> None:
    saves = [genesis.save({"n": n}, tmp_path / f"f{n}", background=True) for n in range(10)]
    genesis.flush()
    assert all(save.done() for save in saves)


def test_flush_without_saves_returns_at_once() -> None:
    genesis.flush(0)


def test_flush_gives_up_after_its_timeout_and_names_the_path(tmp_path: Path) -> None:
    with held(tmp_path):
        save = genesis.save({"n": 1}, tmp_path / "slow", background=True)
        with pytest.raises(TimeoutError, match=r"not durable after 0.01 seconds: .*/slow"):
            genesis.flush(0.01)
    assert save.result(DEADLINE).outcome == "durable"


def test_a_failure_nobody_asked_for_is_raised_by_the_next_flush_once(tmp_path: Path) -> None:
    save = failing_save(tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="No such file"):
        genesis.flush(DEADLINE)
    genesis.flush(DEADLINE)
    assert save.done()


def test_a_failure_that_was_asked_for_is_not_raised_again(tmp_path: Path) -> None:
    asked = [
        lambda save: save.result(DEADLINE),
        lambda save: save.exception(DEADLINE),
    ]
    for number, ask in enumerate(asked):
        save = failing_save(tmp_path / f"d{number}")
        with suppress(FileNotFoundError):
            assert ask(save) is not None
        genesis.flush(DEADLINE)


def test_result_raises_however_often_it_is_asked(tmp_path: Path) -> None:
    save = failing_save(tmp_path / "d")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="No such file"):
            save.result(DEADLINE)


def test_flush_logs_every_failure_and_raises_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saves = []
    for number in range(3):
        saves.append(failing_save(tmp_path / f"d{number}"))
        ended(saves[-1])
    with pytest.raises(FileNotFoundError, match="No such file") as caught:
        genesis.flush(DEADLINE)
    assert caught.value is saves[0].exception(0)
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info[1] for record in logged if record.exc_info] == [
        save.exception(0) for save in saves
    ]
    genesis.flush(DEADLINE)


def test_a_failure_whose_future_was_dropped_is_logged_once_and_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save = failing_save(tmp_path / "d")
    ended(save)
    join_threads()
    del save
    gc.collect()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.name for record in errors] == ["genesis"]
    assert str(tmp_path / "d/f") in errors[0].getMessage()
    with pytest.raises(FileNotFoundError, match="No such file"):
        genesis.flush(DEADLINE)
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_a_failure_that_was_asked_for_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save = failing_save(tmp_path / "d")
    assert isinstance(save.exception(DEADLINE), FileNotFoundError)
    join_threads()
    del save
    genesis.flush(DEADLINE)
    assert caplog.records == []


def test_flush_in_a_finally_keeps_the_exception_of_the_body(tmp_path: Path) -> None:
    def body() -> None:
        try:
            raise KeyError("of the body")
        finally:
            genesis.flush(DEADLINE)

    save = failing_save(tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="No such file") as caught:
        body()
    assert isinstance(caught.value.__context__, KeyError)
    assert save.done()


@pytest.mark.parametrize("keep_future", [True, False])
def test_a_failed_save_lets_go_of_the_state(tmp_path: Path, keep_future: bool) -> None:
    state = {"x": np.zeros(1000)}
    alive = weakref.ref(state["x"])
    (tmp_path / "d").mkdir()
    with held(tmp_path / "d"):
        save = start_save(state, tmp_path / "d/f")
        shutil.rmtree(tmp_path / "d")
    ended(save)
    join_threads()
    kept = [save] if keep_future else []
    del save, state
    gc.collect()
    assert alive() is None
    with pytest.raises(FileNotFoundError, match="No such file"):
        genesis.flush(DEADLINE)
    assert len(kept) == keep_future


def test_a_save_after_a_failed_one_of_the_same_path_succeeds(tmp_path: Path) -> None:
    save = failing_save(tmp_path / "d")
    (tmp_path / "d").mkdir()
    assert save.exception(DEADLINE) is not None
    assert genesis.save({"n": 2}, tmp_path / "d/f", background=True).result(DEADLINE)
    assert genesis.load(tmp_path / "d/f") == {"n": 2}


# Threads and settings


def test_no_thread_is_left_when_there_is_nothing_to_write(tmp_path: Path) -> None:
    for number in range(4):
        genesis.save({"n": number}, tmp_path / f"f{number}", background=True)
    genesis.flush(DEADLINE)
    join_threads()
    assert genesis_threads() == []


def test_configure_bounds_the_saves_that_are_written_at_a_time(tmp_path: Path) -> None:
    stuck, free = tmp_path / "stuck", tmp_path / "free"
    stuck.mkdir()
    free.mkdir()
    genesis.configure(threads=1)
    try:
        with held(stuck):
            start_save({"n": 1}, stuck / "f")
            queued = genesis.save({"n": 2}, free / "f", background=True, capture="deferred")
            assert not queued.captured
            assert len([t for t in genesis_threads() if t.name == "genesis-writer"]) == 1
    finally:
        genesis.configure(threads=2)
    queued.result(DEADLINE)


@pytest.mark.parametrize("name", ["threads", "max_pending_bytes"])
def test_configure_refuses_what_makes_no_sense(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        genesis.configure(**{name: 0})


@pytest.mark.parametrize("name", ["capture", "on_busy"])
def test_an_unknown_choice_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of .*, not 'no'"):
        genesis.save({1: 2}, tmp_path / "f", background=True, **{name: "no"})  # type: ignore[call-overload]


def test_threads_that_save_one_path_at_once_all_get_through(tmp_path: Path) -> None:
    def save(number: int) -> str:
        future = genesis.save({"n": number}, tmp_path / "f", background=number % 2 == 0)
        report = future.result(DEADLINE) if isinstance(future, genesis.SaveFuture) else future
        return report.outcome

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(save, range(80)))
    assert outcomes == ["durable"] * 80
    assert genesis.load(tmp_path / "f")["n"] in range(80)
    assert litter(tmp_path) == []


def test_supersede_and_wait_from_two_threads_keep_order_and_memory(
    tmp_path: Path, small_budget: int
) -> None:
    """
    Race: 1. a save is queued; 2. a superseding one finds it, and may drop it only if no writer
    thread has begun it; 3. a writer thread begins it.
    """
    size = 200_000
    states = {number: np.full(size, number, np.uint32) for number in range(400)}
    saves: dict[int, genesis.SaveFuture] = {}

    def submit(numbers: range) -> None:
        for number in numbers:
            saves[number] = genesis.save(
                {"x": states[number]},
                tmp_path / "f",
                background=True,
                on_busy="supersede",
            )

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(submit, (range(0, 400, 2), range(1, 400, 2))))
    outcomes = {number: save.result(DEADLINE).outcome for number, save in saves.items()}
    genesis.flush(DEADLINE)
    found = genesis.load(tmp_path / "f")["x"]
    assert (found == found[0]).all()
    assert outcomes[int(found[0])] == "durable"
    # Give-backs that happened twice would let more than the budget through.
    with held(tmp_path):
        genesis.save(
            {"x": np.zeros(small_budget - 5000, np.uint8)}, tmp_path / "a", background=True
        )
        over = genesis.save({"x": np.zeros(9000)}, tmp_path / "b", background=True, on_busy="skip")
        assert over.result(0).outcome == "skipped"
