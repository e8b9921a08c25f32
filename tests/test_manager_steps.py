"""The manager of a run: what it keeps, what it goes on from, when it saves, how it ends.

Its folder beside other folders, clocks and copies is in test_manager.
"""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contention import DEADLINE, Script, held, litter
from optional import needs_torch, torch

import genesis
from genesis import CheckpointManager, TrainState, aio
from genesis.manager.names import Names
from genesis.retention import BestN, Checkpoint, EveryN, LastN, MaxAge, Pinned, Retention


def saved(folder: Path, *losses: Any, **options: Any) -> CheckpointManager:
    """A manager that saved step 1, 2, ... with these losses; ``None`` is a step without one."""
    manager = CheckpointManager(folder, **options)
    for step, loss in enumerate(losses, 1):
        manager.save(step, {"n": step}, metrics=None if loss is None else {"loss": loss})
    return manager


def damage(path: str | None) -> None:
    assert path is not None
    with open(path, "r+b") as file:
        file.seek(70)
        byte = file.read(1)
        file.seek(70)
        file.write(bytes([byte[0] ^ 1]))


# What is kept


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (LastN(2), [2, 7, 8]),  # and the best
        (LastN(1) | BestN(2), [2, 3, 8]),
        (LastN(1) | BestN(2, mode="max"), [2, 4, 5, 8]),
        (EveryN(4), [2, 4, 8]),
        (Pinned(1, 5) | LastN(1), [1, 2, 5, 8]),
        (MaxAge(hours=1), [1, 2, 3, 4, 5, 6, 7, 8]),
        (BestN(1), [2, 8]),  # and the latest
    ],
    ids=repr,
)
def test_retention(tmp_path: Path, keep: Retention, left: list[int]) -> None:
    manager = saved(tmp_path, 5, 1, 2, 9, 8, math.nan, None, 4, keep=keep)
    assert manager.steps() == left
    assert litter(tmp_path) == []


def test_a_checkpoint_that_is_too_old_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = saved(tmp_path, 1, keep=MaxAge(minutes=5))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 301)
    manager.save(2, {}, metrics={"loss": 0.5})
    assert manager.steps() == [2]


def test_the_best_is_not_deleted_by_keeping_the_last_alone(tmp_path: Path) -> None:
    manager = saved(tmp_path, 3, 1, 2, 2, 2, keep=LastN(1))
    assert manager.steps() == [2, 5]
    assert manager.restore("best") == {"n": 2}


def test_of_equal_metrics_the_earlier_is_the_best(tmp_path: Path) -> None:
    manager = saved(tmp_path, 2, 1, 1, 1, keep=BestN(1))
    assert manager.steps() == [2, 4]
    assert manager.best() == str(tmp_path / "epoch_000002.pth")


@pytest.mark.parametrize("loss", [math.nan, None])
def test_what_has_no_number_is_never_the_best(tmp_path: Path, loss: float | None) -> None:
    manager = saved(tmp_path, loss, loss)
    assert manager.best() is None
    with pytest.raises(FileNotFoundError, match="no checkpoint 'best'; there are 1, 2"):
        manager.restore("best")


@pytest.mark.parametrize("loss", [math.inf, -math.inf])
def test_infinite_metrics_are_kept_as_they_are(tmp_path: Path, loss: float) -> None:
    (only,) = saved(tmp_path, loss).all()
    assert only.metrics == {"loss": loss}


def test_steps_sort_by_number(tmp_path: Path) -> None:
    """Names sort 1000000 before 999999, and a rule that goes by them deletes the newest."""
    manager = CheckpointManager(tmp_path, keep=LastN(2))
    for step in (999_998, 999_999, 1_000_000, 12_345_678):
        manager.save(step, {"n": step})
    assert manager.steps() == [1_000_000, 12_345_678]
    assert manager.restore() == {"n": 12_345_678}


def test_a_run_that_starts_again_from_an_earlier_step(tmp_path: Path) -> None:
    manager = saved(tmp_path, *range(9, 0, -1), keep=LastN(3))
    assert manager.resume({"n": 0}) == 10
    assert manager.restore(7) == {"n": 7}
    for step in (4, 5):
        manager.save(step, {"n": -step})
    assert manager.resume({"n": 0}) == 6
    assert manager.restore() == {"n": -5}
    assert manager.steps() == [4, 5, 9]


def test_nothing_is_removed_before_the_new_one_is_durable(tmp_path: Path) -> None:
    manager = saved(tmp_path, 1, keep=LastN(1))
    with held(tmp_path):
        future = manager.save(2, {}, background=True, metrics={"loss": 0})
        assert manager.steps() == [1]
    future.result(DEADLINE)
    assert manager.steps() == [2]


def test_nothing_is_removed_where_the_new_one_is_not_whole(tmp_path: Path) -> None:
    manager = saved(tmp_path, 1, 2, 3, keep=LastN(1), metric="other")
    request = manager.request(4, {}, {}, {})
    os.truncate(tmp_path / "epoch_000003.pth", 60)
    request.done()  # of a save that is not there
    assert manager.steps() == [3]


def test_what_is_damaged_is_left(tmp_path: Path) -> None:
    manager = saved(tmp_path, 1, 2, keep=LastN(2))
    os.truncate(tmp_path / "epoch_000001.pth", 100)
    for step in (3, 4):
        manager.save(step, {}, metrics={"loss": step})
    assert manager.steps() == [1, 2, 3, 4]  # 2 is the best of what is whole
    assert [bool(each.problem) for each in manager.all()] == [True, False, False, False]


def test_one_that_is_being_restored_is_not_removed(tmp_path: Path) -> None:
    manager = saved(tmp_path, 1, keep=LastN(1))
    seen: list[list[int]] = []

    class Slow:
        def __reduce__(self) -> Any:
            return save_meanwhile, ()

    def save_meanwhile() -> None:
        saving = threading.Thread(target=lambda: manager.save(3, {}, metrics={"loss": 0}))
        saving.start()
        saving.join(DEADLINE)
        seen.append(manager.steps())

    globals()["save_meanwhile"] = save_meanwhile
    save_meanwhile.__qualname__ = "save_meanwhile"
    manager.save(2, {"slow": Slow()}, metrics={"loss": 0.5})
    manager.restore(2)
    assert seen == [[2, 3]]
    manager.save(4, {}, metrics={"loss": -1})
    assert manager.steps() == [4]


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    class Odd(Retention):
        def keeps(self, written: Any) -> list[Checkpoint]:
            return [each for each in written if each.step % 2]

    manager = saved(tmp_path, 1, 2, 3, 4, keep=Odd() | Pinned(4))
    assert manager.steps() == [1, 3, 4]


@pytest.mark.parametrize(
    "make",
    [
        lambda: LastN(0),
        lambda: BestN(1, mode="least"),  # type: ignore[arg-type]
        lambda: EveryN(-1),
        lambda: MaxAge(),
        lambda: CheckpointManager("x", mode="best"),  # type: ignore[arg-type]
        lambda: CheckpointManager("x", every_steps=0),
        lambda: CheckpointManager("x", when="never"),  # type: ignore[arg-type]
    ],
)
def test_arguments_out_of_range(make: Any) -> None:
    with pytest.raises(ValueError, match=r"at least 1|must be|longer than"):
        make()


# What there is


def test_what_is_known_of_a_checkpoint(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    loss = torch.tensor(0.5) if torch else 0.5
    before = time.time()
    report = manager.save(3, {"n": 1}, metrics={"loss": loss, "accuracy": np.float32(0.25)})
    (only,) = manager.all()
    assert (only.step, only.bytes, only.problem) == (3, report.bytes, "")
    assert only.metrics == {"loss": 0.5, "accuracy": 0.25}
    assert before <= only.time <= time.time()
    assert genesis.load(only) == {"n": 1}
    assert genesis.load_metadata(only) == {}


@pytest.mark.parametrize("value", ["0.5", [1], None, "many"])
def test_a_metric_is_a_number(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"metrics\['loss'\] is no number"):
        CheckpointManager(tmp_path).save(1, {}, metrics={"loss": value})
    assert os.listdir(tmp_path) == []


def test_the_loss_of_save_checkpoint_is_a_metric(tmp_path: Path) -> None:
    part = TrainState()
    manager = CheckpointManager(tmp_path)
    for epoch, loss in enumerate((0.5, 0.25, [1, 2])):
        manager.save_checkpoint(part, part, epoch, loss)
    assert [each.metrics for each in manager.all()] == [{"loss": 0.5}, {"loss": 0.25}, {}]
    assert manager.restore("best")["epoch"] == 1


@pytest.mark.parametrize("template", ["step={step}.pth", "{step:08d}", "run-{step:03d}.ckpt"])
def test_names_by_a_template(tmp_path: Path, template: str) -> None:
    manager = CheckpointManager(tmp_path, name=template)
    manager.save(12, {"n": 1})
    assert os.listdir(tmp_path) == [template.format(step=12)]
    assert CheckpointManager(tmp_path, name=template).steps() == [12]
    assert CheckpointManager(tmp_path, name="other-{step}").steps() == []


@pytest.mark.parametrize(
    "template",
    ["same.pth", "{epoch}.pth", "{step}{step}", "a/{step}", ".{step}", "{step:x}", "{step!r}"],
)
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(ValueError, match="no template for names"):
        Names(template)


# Going on


def test_a_damaged_newest_checkpoint_is_passed_over_and_left(tmp_path: Path) -> None:
    manager = saved(tmp_path, 1, 2, 3)
    damage(manager.latest())
    state = {"n": 0}
    with pytest.warns(genesis.RecoveredFromBackupWarning, match=r"step 3 is damaged"):
        assert manager.resume(state) == 3
    assert state == {"n": 2}
    assert manager.steps() == [1, 2, 3]
    with pytest.raises(genesis.ChecksumError):
        manager.restore(3)


def test_a_newest_checkpoint_that_is_half_written_is_passed_over(tmp_path: Path) -> None:
    manager = saved(tmp_path, 1, 2)
    (tmp_path / "epoch_000003.pth").write_bytes((tmp_path / "epoch_000002.pth").read_bytes()[:90])
    with pytest.warns(genesis.RecoveredFromBackupWarning, match="step 3"):
        assert manager.restore() == {"n": 2}


def test_a_damaged_best_one_is_passed_over(tmp_path: Path) -> None:
    manager = saved(tmp_path, 1, 2, 3)
    damage(manager.best())
    with pytest.warns(genesis.RecoveredFromBackupWarning, match="step 1"):
        assert manager.restore("best") == {"n": 2}


@pytest.mark.filterwarnings("ignore::genesis.RecoveredFromBackupWarning")
def test_a_run_of_which_all_is_damaged_does_not_begin_anew_without_a_word(tmp_path: Path) -> None:
    manager = saved(tmp_path, 1, 2)
    for path in manager.checkpoints().values():
        damage(path)
    with pytest.raises(genesis.ChecksumError):
        manager.resume({"n": 0})


def test_where_nothing_is_there_it_begins_with_0(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "none")
    assert manager.resume({}) == 0
    assert (manager.steps(), manager.latest(), manager.best()) == ([], None, None)
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match="no checkpoint 'latest'; there are none at all"):
        manager.restore()
    with pytest.raises(ValueError, match="'latest', 'best' or a number"):
        manager.restore("newest")  # type: ignore[arg-type]


def test_a_step_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint 7; there are 1, 2"):
        saved(tmp_path, 1, 2).restore(7)


@needs_torch
def test_a_state_is_taken_apart_and_put_together(tmp_path: Path) -> None:
    def parts() -> dict[str, Any]:
        model = torch.nn.Linear(2, 2)
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1), "n": 1}

    first, second = parts(), parts()
    manager = CheckpointManager(tmp_path)
    manager.save(4, first | {"n": 5})
    assert manager.resume(second, weights_only=True) == 5
    assert torch.equal(first["model"].weight, second["model"].weight)
    assert second["n"] == 5
    with pytest.raises(KeyError, match="the checkpoint has no 'scheduler', 'x'; it has 'model'"):
        manager.restore(into={"model": second["model"], "scheduler": None, "x": 1})
    with pytest.raises(TypeError, match="into must have load_state_dict"):
        manager.restore(into=[1])


def test_a_train_state_goes_through_a_manager(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    state = TrainState(step=3, rng=random.Random(5))
    manager.save(state.step, state)
    expected = state.rng.random()
    other = TrainState(step=0, rng=random.Random())
    assert manager.resume(other) == 4
    assert (other.step, other.rng.random()) == (3, expected)


def test_a_read_only_folder_can_be_read(tmp_path: Path) -> None:
    saved(tmp_path, 2, 1)
    for path in [*tmp_path.iterdir(), tmp_path]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        manager = CheckpointManager(tmp_path)
        assert (manager.steps(), manager.restore("best")) == ([1, 2], {"n": 2})
    finally:
        tmp_path.chmod(0o755)


def test_a_save_that_is_under_way_is_waited_for(tmp_path: Path) -> None:
    manager = saved(tmp_path, 1)
    with held(tmp_path) as hold:
        manager.save(2, {"n": 2}, background=True)
        threading.Timer(0.05, hold.release).start()
        assert manager.restore() == {"n": 2}


# When to save


def test_without_a_rule_every_step_is_due(tmp_path: Path) -> None:
    assert CheckpointManager(tmp_path).due(7)


def test_rules_of_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_steps = CheckpointManager(tmp_path, every_steps=10)
    assert [step for step in range(25) if by_steps.due(step)] == [0, 10, 20]
    own = CheckpointManager(tmp_path, every_steps=10, when=lambda step: step == 3)
    assert [step for step in range(15) if own.due(step)] == [0, 3, 10]
    by_time = CheckpointManager(tmp_path, every_seconds=60)
    assert not by_time.due(1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert by_time.due(1)
    by_time.save(1, {})
    assert not by_time.due(2)


def test_due_when_the_last_save_is_durable(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, when="durable")
    assert manager.due(0)
    with held(tmp_path):
        future = manager.save(0, {}, background=True)
        assert not manager.due(1)
    future.result(DEADLINE)
    assert manager.due(1)


# Links


def test_links_lead_to_the_latest_and_the_best(tmp_path: Path) -> None:
    manager = saved(tmp_path, 3, 1, 2, keep=LastN(1), links=True)
    assert genesis.load(tmp_path / "latest.pth") == {"n": 3}
    assert genesis.load(tmp_path / "best_model.pth") == {"n": 2}
    assert os.readlink(tmp_path / "latest.pth") == "epoch_000003.pth"
    assert manager.steps() == [2, 3]
    assert litter(tmp_path) == []


def test_a_file_of_the_users_own_is_no_link_to_replace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    genesis.save({"mine": 1}, tmp_path / "latest.pth")
    saved(tmp_path, 1, links=True)
    assert genesis.load(tmp_path / "latest.pth") == {"mine": 1}
    assert "latest.pth is a file of its own and not replaced" in caplog.text


# How it ends


def test_the_block_waits_for_what_is_under_way(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager, held(tmp_path) as hold:
        manager.save(1, {}, background=True)
        assert manager.steps() == []
        hold.release()
    assert manager.steps() == [1]


def failing(folder: Path) -> CheckpointManager:
    """A manager with a background save that has failed."""
    manager = CheckpointManager(folder / "run")
    manager.save(1, {})
    with held(folder / "run"):
        future = manager.save(2, {}, background=True)
        (folder / "run" / "epoch_000001.pth").unlink()
        for path in (folder / "run").iterdir():
            path.unlink()
        (folder / "run").rmdir()
    while not future.done():
        time.sleep(0.001)
    return manager


def test_the_block_raises_what_a_save_raised(tmp_path: Path) -> None:
    manager = failing(tmp_path)
    with pytest.raises(FileNotFoundError), manager:
        pass
    manager.flush()  # each failure is heard of once


def test_the_block_never_hides_its_own_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyError, match="of the body"), failing(tmp_path):
        raise KeyError("of the body")
    assert "a background save failed beside KeyError('of the body')" in caplog.text


TRAINS = """
import signal, sys, genesis
calls = []
signal.signal(signal.SIGTERM, lambda *_: calls.append("before"))
manager = genesis.CheckpointManager(sys.argv[1], every_steps=1000)
state = {"n": 0}
first = manager.resume(state)
print("from", first, flush=True)
with manager.preemption(grace=60) as preempted:
    for step in range(first, 10**9):
        state["n"] = step
        ends = bool(preempted)
        if ends or manager.due(step):
            manager.save(step, state, background=True)
        if ends:
            break
print("ended by", preempted.signal.name, "at", step, calls, flush=True)
assert manager.steps()[-1] == step
assert signal.getsignal(signal.SIGTERM)(0, None) is None and len(calls) == 2
"""


def test_a_run_that_is_preempted_ends_with_a_durable_save(tmp_path: Path) -> None:
    with Script(TRAINS, tmp_path) as script:
        script.expect("from 0")
        time.sleep(0.1)
        script.send(signal.SIGTERM)
        status, output, errors = script.end()
    assert status == 0, errors
    assert "ended by SIGTERM" in output
    assert "['before']" in output
    last = int(output.split(" at ")[1].split()[0])
    assert CheckpointManager(tmp_path).restore() == {"n": last}
    with Script(TRAINS, tmp_path) as script:
        script.expect(f"from {last + 1}")


def test_preemption_needs_the_main_thread(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            CheckpointManager(tmp_path).preemption().__enter__()
        except RuntimeError as exc:
            errors.append(exc)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


# Watching


def test_an_evaluator_sees_each_checkpoint_once(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, max_checkpoints=100)
    manager.save(5, {})
    manager.save(1, {})
    seen: list[int] = []
    for step in CheckpointManager(tmp_path).watch(timeout=0.2, poll=0.01):
        seen.append(step)
        if step < 4:
            manager.save(step + 1, {})
    assert seen == [5, 1, 2, 3, 4]


@pytest.mark.anyio
async def test_the_manager_awaited(tmp_path: Path) -> None:
    async with aio.CheckpointManager(tmp_path, keep=LastN(2) | BestN(1), links=True) as manager:
        assert await manager.resume({"n": 0}) == 0
        for step, loss in enumerate((2, 1, 3, 4, 5)):
            assert manager.due(step)
            report = await manager.save(step, {"n": step}, metrics={"loss": loss})
            assert report.outcome == "durable"
        assert await manager.steps() == [1, 3, 4]
        assert await manager.best() == str(tmp_path / "epoch_000001.pth")
        assert [each.step for each in await manager.all()] == [1, 3, 4]
        state = {"n": 0}
        assert await manager.resume(state) == 5
        assert state == {"n": 4}
        assert await manager.restore("best", state) == state == {"n": 1}
        assert [step async for step in manager.watch(timeout=0, poll=0.01)] == [1, 3, 4]
    with pytest.raises(FileNotFoundError, match="no checkpoint 9"):
        await manager.restore(9)


@pytest.mark.anyio
async def test_the_awaited_block_raises_what_a_save_raised(tmp_path: Path) -> None:
    manager = aio.CheckpointManager(tmp_path)
    manager._manager = failing(tmp_path)
    with pytest.raises(FileNotFoundError):
        async with manager:
            pass


# Killed at random moments

SOAKS = """
import os, sys, genesis
from genesis.retention import LastN, BestN
manager = genesis.CheckpointManager(sys.argv[1], keep=LastN(2) | BestN(1), links=True)
state = {"n": -1, "data": b""}
first = manager.resume(state)
assert state["n"] == first - 1 and state["data"] == bytes([first % 7]) * len(state["data"])
print("from", first, flush=True)
for step in range(first, 10**9):
    size = 1 + step * 7919 % 200_000
    state = {"n": step, "data": bytes([(step + 1) % 7]) * size}
    future = manager.save(step, state, metrics={"loss": step * 31 % 17}, background=True)
    future.add_done_callback(lambda _, step=step: os.write(1, b"%d\\n" % step))
"""


@pytest.mark.parametrize(
    "rounds", [6, pytest.param(200, marks=pytest.mark.torture)], ids=["short", "long"]
)
def test_a_run_that_is_killed_again_and_again_goes_on_from_the_newest_durable_step(
    tmp_path: Path, rounds: int
) -> None:
    chance = random.Random(rounds)
    durable = -1
    for _ in range(rounds):
        with Script(SOAKS, tmp_path) as script:
            began = script.line()
            assert began.startswith("from "), script.end()
            assert int(began.split()[1]) > durable
            time.sleep(chance.random() / 5)
            script.send(signal.SIGKILL)
            _, output, errors = script.end()
        assert errors == ""
        durable = max([durable, *map(int, output.split())])
        assert len(CheckpointManager(tmp_path).steps()) <= 6
    assert CheckpointManager(tmp_path).restore()["n"] >= durable
