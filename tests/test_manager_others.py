"""The manager beside others: in several processes, for a user who may only read, on an event loop,
and as people know it from Orbax and Lightning."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contention import DEADLINE, Script, litter

import genesis
from genesis import CheckpointManager, aio
from genesis._os import files
from genesis.manager.orders import Orders
from genesis.retention import BestN, Checkpoint, EveryN, LastN, Retention


def save_all(manager: CheckpointManager, losses: dict[int, Any]) -> CheckpointManager:
    for step, loss in losses.items():
        manager.save(step, {"n": step}, metrics=None if loss is None else {"loss": loss})
    return manager


# Several processes

WRITES = """
import sys, genesis
from genesis.retention import LastN
manager = genesis.CheckpointManager(sys.argv[1], keep=LastN(3))
first = int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for step in range(first, first + 60, 2):
    manager.save(step, {"n": step}, background=step % 4 < 2)
manager.flush()
print("done", flush=True)
"""


def test_two_processes_write_one_folder(tmp_path: Path) -> None:
    with Script(WRITES, tmp_path, 0) as one, Script(WRITES, tmp_path, 1) as other:
        for script in (one, other):
            script.expect("ready")
        for script in (one, other):
            script.tell("go")
        for script in (one, other):
            script.expect("done")
            assert script.end() == (0, "", "")
    manager = CheckpointManager(tmp_path)
    assert all(genesis.verify(each.path) for each in manager.all())
    assert 3 <= len(manager.steps()) <= 4  # each of two at one moment may see one too few to remove
    assert {58, 59} & set(manager.steps())
    assert manager.restore()["n"] in (58, 59)
    assert litter(tmp_path) == []


def test_a_writer_that_comes_later_stands_behind_what_others_wrote(tmp_path: Path) -> None:
    one, other = CheckpointManager(tmp_path), CheckpointManager(tmp_path)
    save_all(one, {1: None})
    save_all(other, {2: None, 3: None, 4: None})
    save_all(one, {0: None})
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))  # no time tells
    assert CheckpointManager(tmp_path).latest() == str(tmp_path / "epoch_000000.pth")


def test_orders_rise_with_the_calls_whichever_save_is_written_first() -> None:
    orders = Orders()
    others = [Checkpoint(0, "f", order=40)]
    first, second, third = (orders.place() for _ in range(3))
    late = {place: orders.order(place, others) for place in (second, first, third)}
    assert 40 < late[first] < late[second] < late[third]
    orders.place()  # of a save that fails, and gets no order
    places = [orders.place() for _ in range(3000)]  # more than are remembered
    given = [orders.order(place, [Checkpoint(0, "f", order=late[third])]) for place in places]
    assert given == sorted(set(given))
    assert given[0] > late[third]


WATCHES = """
import sys, genesis
print("ready", flush=True)
for step in genesis.CheckpointManager(sys.argv[1]).watch(timeout=30, poll=0.01):
    print(step, genesis.CheckpointManager(sys.argv[1]).restore(step)["n"], flush=True)
    if step == 9:
        break
"""


def test_an_evaluator_in_another_process_sees_each_checkpoint_once(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run", max_checkpoints=9)
    with Script(WATCHES, tmp_path / "run") as script:  # before the folder is there
        script.expect("ready")
        for step in (3, 1, 9):
            manager.save(step, {"n": step}, background=True)
            script.expect(f"{step} {step}")
        assert script.end() == (0, "", "")


OBEYS = """
import signal, sys, genesis
manager = genesis.CheckpointManager(sys.argv[1])
with manager.preemption(signals=(signal.SIGTERM, signal.SIGUSR1)) as preempted:
    print("ready", flush=True)
    step = 0
    while not preempted:
        step += 1
    manager.save(step, {"n": step}, background=True)
print(preempted.signal.name, genesis.load(manager.latest())["n"] == step, flush=True)
assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda each: each.name)
def test_each_of_the_signals_ends_a_run_with_a_save(tmp_path: Path, number: Any) -> None:
    with Script(OBEYS, tmp_path) as script:
        script.expect("ready")
        script.send(number)
        script.expect(f"{number.name} True")
        assert script.end() == (0, "", "")


EXITS = """
import signal, sys, genesis
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
manager = genesis.CheckpointManager(sys.argv[1])
for step in range(3):
    manager.save(step, {"n": bytes(step * 1000)}, background=True)
print("submitted", flush=True)
while True:
    pass
"""


def test_a_sigterm_that_is_made_an_exit_loses_nothing_that_was_submitted(tmp_path: Path) -> None:
    with Script(EXITS, tmp_path) as script:
        script.expect("submitted")
        script.send(signal.SIGTERM)
        assert script.end() == (143, "", "")
    assert CheckpointManager(tmp_path).steps() == [0, 1, 2]


READS = """
import os, sys, genesis, numpy
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
assert not os.access(sys.argv[1], os.W_OK)
manager = genesis.CheckpointManager(sys.argv[1], links=True)
print(manager.steps(), manager.restore("best")["n"], manager.resume({"n": 0}), flush=True)
print(list(manager.watch(timeout=0)), manager.all()[0].metrics, flush=True)
try:
    manager.save(9, {"n": 9})
except PermissionError as exc:
    print(type(exc).__name__, exc.filename.startswith(sys.argv[1]), flush=True)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can get to, which pytest's are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_another_user_reads_a_folder_without_writing_to_it(open_folder: Path) -> None:
    save_all(CheckpointManager(open_folder, links=True), {1: 2.0, 2: 1.0, 3: 3.0})
    before = sorted(os.listdir(open_folder))
    open_folder.chmod(0o555)
    with Script(READS, open_folder) as script:
        status, output, errors = script.end()
    assert (status, errors) == (0, "")
    assert output.splitlines() == [
        "[1, 2, 3] 2 4",
        "[1, 2, 3] {'loss': 2.0}",
        "PermissionError True",
    ]
    assert sorted(os.listdir(open_folder)) == before


# Metadata, numbers, damage


def test_metadata_of_a_step(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save(1, {"n": 1}, metadata={"commit": "abc", "lr": 0.1}, metrics={"loss": 1})
    future = manager.save(2, {"n": 2}, metadata={"commit": "abd"}, background=True)
    future.result(DEADLINE)
    paths = manager.checkpoints()
    assert genesis.load_metadata(paths[1]) == {"commit": "abc", "lr": 0.1}
    assert genesis.inspect(paths[2]).metadata == {"commit": "abd"}
    with pytest.raises(TypeError, match="metadata"):
        manager.save(3, {"n": 3}, metadata={"no": object()})
    assert manager.steps() == [1, 2]


def test_a_step_is_a_number_and_no_answer(tmp_path: Path) -> None:
    manager = save_all(CheckpointManager(tmp_path), {0: None, 1: None})
    for wrong in (True, False, None, "last", 1.0):
        with pytest.raises(ValueError, match="step must be 'latest', 'best' or a number"):
            manager.restore(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is a whole number, and not True"):
        manager.save(True, {})
    assert manager.restore(np.int64(1)) == {"n": 1}  # type: ignore[arg-type]


def test_the_latest_is_not_one_that_is_cut_off(tmp_path: Path) -> None:
    manager = save_all(CheckpointManager(tmp_path), {1: None, 2: None})
    first, second = manager.checkpoints().values()
    os.truncate(second, 80)
    assert manager.latest() == first
    assert [bool(each.problem) for each in manager.all()] == [False, True]
    os.truncate(first, 80)
    assert manager.latest() == second  # not None, which is how a new run looks


# On an event loop


@pytest.mark.anyio
async def test_nothing_lists_the_folder_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: set[int] = set()
    names = files.Directory.names

    def noted(folder: files.Directory) -> Any:
        listed.add(threading.get_ident())
        return names(folder)

    monkeypatch.setattr(files.Directory, "names", noted)
    async with aio.CheckpointManager(tmp_path, keep=LastN(2), links=True) as manager:
        for step in range(4):
            await manager.save(step, {"n": step}, metrics={"loss": step})
        assert await manager.resume({"n": 0}) == 4
        assert [step async for step in manager.watch(timeout=0, poll=0.01)] == [0, 2, 3]
    assert listed
    assert threading.get_ident() not in listed


# As Orbax documents its options


class WithoutMetrics(Retention):
    """Orbax's `keep_checkpoints_without_metrics`, as a rule of one's own."""

    def keeps(self, written: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        return [each for each in written if not each.metrics]


LOSSES = {0: 5.0, 1: 1.0, 2: 4.0, 3: None, 4: 2.0, 5: 3.0}


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (LastN(2), [1, 4, 5]),  # max_to_keep, and the best
        (BestN(2), [1, 4, 5]),  # best_fn: the best of all, and the latest
        (BestN(2, mode="max"), [0, 1, 2, 5]),  # best_mode; metric and mode of the manager stay
        (LastN(1) | EveryN(2), [0, 1, 2, 4, 5]),  # keep_period, beside max_to_keep
        (BestN(1) | WithoutMetrics(), [1, 3, 5]),  # keep_checkpoints_without_metrics
    ],
    ids=repr,
)
def test_orbax_keeps_the_same(tmp_path: Path, keep: Retention, left: list[int]) -> None:
    assert save_all(CheckpointManager(tmp_path, keep=keep), LOSSES).steps() == left


def test_orbax_tracks_the_best_step_over_restarts(tmp_path: Path) -> None:
    save_all(CheckpointManager(tmp_path, keep=BestN(2)), LOSSES)
    again = CheckpointManager(tmp_path, keep=BestN(2))
    assert again.best() == str(tmp_path / "epoch_000001.pth")
    save_all(again, {6: 0.5, 7: 9.0})
    assert again.best() == str(tmp_path / "epoch_000006.pth")
    assert again.steps() == [1, 6, 7]
    worst = CheckpointManager(tmp_path, mode="max")
    assert worst.best() == str(tmp_path / "epoch_000007.pth")


def test_orbax_has_no_best_step_without_metrics(tmp_path: Path) -> None:
    manager = save_all(CheckpointManager(tmp_path, keep=BestN(1)), {1: None, 2: None})
    assert manager.best() is None
    assert manager.steps() == [2]
    with pytest.raises(FileNotFoundError, match="no checkpoint 'best'; there are 2"):
        manager.restore("best")


def test_orbax_saves_at_an_interval_of_steps(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, every_steps=3)
    assert [step for step in range(10) if manager.due(step)] == [0, 3, 6, 9]


# What went wrong with Lightning's ModelCheckpoint


def test_a_restarted_run_still_knows_the_best_of_before(tmp_path: Path) -> None:
    save_all(CheckpointManager(tmp_path, keep=LastN(1) | BestN(1)), {1: 0.1, 2: 5.0})
    save_all(CheckpointManager(tmp_path, keep=LastN(1) | BestN(1)), {3: 4.0, 4: 3.0})
    assert CheckpointManager(tmp_path).steps() == [1, 4]


def test_a_step_that_is_saved_again_is_one_checkpoint(tmp_path: Path) -> None:
    manager = save_all(CheckpointManager(tmp_path), {1: 3.0})
    manager.save(1, {"n": "again"}, metrics={"loss": 2.0})
    assert [each.metrics["loss"] for each in manager.all()] == [2.0]
    assert manager.restore() == {"n": "again"}


def test_the_link_to_the_best_never_leads_nowhere(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep=LastN(1), links=True)
    for step, loss in enumerate((4.0, 3.0, 5.0, 2.0, 6.0)):
        manager.save(step, {"n": step}, metrics={"loss": loss}, background=True).result(DEADLINE)
        best = genesis.load(tmp_path / "best_model.pth")["n"]
        assert best == (0, 1, 1, 3, 3)[step]
        assert genesis.load(tmp_path / "latest.pth") == {"n": step}


def test_a_failed_save_removes_nothing(tmp_path: Path) -> None:
    manager = save_all(CheckpointManager(tmp_path, keep=LastN(1)), {1: 1.0})
    with pytest.raises(genesis.UnpicklableStateError):
        manager.save(2, {"lock": threading.Lock()}, metrics={"loss": 0.5})
    assert manager.steps() == [1]


def test_a_monitored_metric_that_is_missing_once_stops_nothing(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep=LastN(1) | BestN(1, "acc", "max"), metric="acc",
                                mode="max")  # fmt: skip
    manager.save(1, {"n": 1}, metrics={"acc": 0.5})
    manager.save(2, {"n": 2}, metrics={"other": 3})
    manager.save(3, {"n": 3}, metrics={"acc": float("nan")})
    assert manager.steps() == [1, 3]
    assert manager.restore("best") == {"n": 1}


def test_saving_while_a_reader_looks_at_the_best(tmp_path: Path) -> None:
    manager = save_all(CheckpointManager(tmp_path, keep=LastN(1), links=True), {1: 1.0})
    stop = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        while not stop.is_set():
            try:
                CheckpointManager(tmp_path).restore("best")
            except BaseException as exc:
                errors.append(exc)
                return

    reader = threading.Thread(target=read)
    reader.start()
    began = time.monotonic()
    step = 2
    while step < 40 and time.monotonic() - began < 5:
        manager.save(step, {"n": step}, metrics={"loss": 1 / step})
        step += 1
    stop.set()
    reader.join(DEADLINE)
    assert errors == []
