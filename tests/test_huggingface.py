"""Hugging Face's Trainer and Accelerate over genesis: real runs of a small model."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

import genesis
from genesis._file import writer

torch = pytest.importorskip("torch", reason="torch is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    import hf_run
    from hf_run import losses, trainer

    from genesis.integrations.huggingface import AccelerateState, GenesisTrainer

pytestmark = pytest.mark.filterwarnings("ignore")  # what the hosts say of themselves


def weights(run: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that nothing disturbs."""
    run = trainer(tmp_path_factory.mktemp("whole") / "run", save_strategy="no")
    run.train()
    return run


@pytest.mark.parametrize("at", [4, 11])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, whole: Any, at: int) -> None:
    command = [sys.executable, hf_run.__file__, str(tmp_path / "run"), str(at)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    run = trainer(tmp_path / "run")
    steps = run.checkpoints().steps()
    assert steps == [step for step in (3, 6, 9) if step < at][: len(steps)]
    run.train(resume_from_checkpoint=bool(steps))
    assert losses(run) == losses(whole)
    assert same(weights(run), weights(whole))


def test_the_newest_is_damaged_and_the_one_before_is_taken(tmp_path: Path, whole: Any) -> None:
    trainer(tmp_path / "run").train()
    newest = tmp_path / "run" / "checkpoint-000012.pth"
    newest.write_bytes(newest.read_bytes()[:-100])
    run = trainer(tmp_path / "run")
    with pytest.warns(genesis.RecoveredFromBackupWarning, match="step 12"):
        run.train(resume_from_checkpoint=True)
    assert losses(run) == losses(whole)


def test_a_path_is_gone_on_from(tmp_path: Path, whole: Any) -> None:
    trainer(tmp_path / "run").train()
    run = trainer(tmp_path / "other")
    run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-000006.pth"))
    assert same(weights(run), weights(whole))


def test_a_folder_of_the_plain_trainer_is_gone_on_from(tmp_path: Path, whole: Any) -> None:
    trainer(tmp_path / "run", cls=transformers.Trainer, save_steps=6).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-12")
    run = trainer(tmp_path / "run")
    run.train(resume_from_checkpoint=True)
    assert same(weights(run), weights(whole))
    assert run.checkpoints().steps() == [12]


def test_nothing_to_go_on_from_is_the_trainers_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trainer(tmp_path / "run").train(resume_from_checkpoint=True)
    genesis.save({"a": 1}, tmp_path / "f.pth")
    with pytest.raises(ValueError, match=r"f\.pth: this is no checkpoint of a GenesisTrainer"):
        trainer(tmp_path / "run").train(resume_from_checkpoint=str(tmp_path / "f.pth"))


def test_the_limit_and_the_best_decide_what_stays(tmp_path: Path) -> None:
    run = trainer(
        tmp_path / "run",
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    run.train()
    evaluated = {
        line["step"]: line["eval_loss"] for line in run.state.log_history if "eval_loss" in line
    }
    best = min(evaluated, key=lambda step: (evaluated[step], step))
    manager = run.checkpoints()
    assert set(manager.steps()) == {best, 12}
    assert manager.best() == run.state.best_model_checkpoint
    assert same(run.model.state_dict(), genesis.load(manager.best())["model"])


def test_the_best_is_loaded_though_it_is_still_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = writer.save_staged
    monkeypatch.setattr(
        writer, "save_staged", lambda *args, **more: (time.sleep(2), written(*args, **more))[1]
    )
    run = trainer(
        tmp_path / "run",
        max_steps=6,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    worse = iter((1.0, 2.0))

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        metrics = {"eval_loss": next(worse)}
        run.log(metrics)
        run.control = run.callback_handler.on_evaluate(run.args, run.state, run.control, metrics)
        return metrics

    run.evaluate = evaluate
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-000003.pth")
    assert same(run.model.state_dict(), genesis.load(run.state.best_model_checkpoint)["model"])


def test_an_error_of_a_background_save_is_raised_once(tmp_path: Path) -> None:
    class Blocked(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                (tmp_path / "run" / "checkpoint-000003.pth" / "in the way").mkdir(parents=True)

    run = trainer(tmp_path / "run", callbacks=[Blocked()])
    with pytest.raises(IsADirectoryError):
        run.train()
    genesis.flush()
    (tmp_path / "run" / "checkpoint-000003.pth" / "in the way").rmdir()
    (tmp_path / "run" / "checkpoint-000003.pth").rmdir()
    run.remove_callback(Blocked)
    run.train()


def test_sharded_states_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", max_steps=3)
    run.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"genesis\.integrations\.distributed"):
        run._save_checkpoint(run.model, None)


def prepared() -> tuple[Any, ...]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    accelerator = accelerate.Accelerator(cpu=True)
    return accelerator, *accelerator.prepare(model, optimizer, schedule)


def train(parts: tuple[Any, ...], steps: range) -> list[float]:
    accelerator, model, optimizer, schedule = parts
    found = []
    for step in steps:
        loss = model(torch.full((16, 4), step / 10)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_accelerate_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    manager = genesis.CheckpointManager(tmp_path)
    parts = prepared()
    train(parts, range(3))
    manager.save(2, AccelerateState(parts[0]), background=True).result()
    expected = train(parts, range(3, 6))
    fresh = prepared()
    torch.rand(5)
    state = AccelerateState(fresh[0])
    assert manager.resume(state, weights_only=True) == 3
    assert train(fresh, range(3, 6)) == expected


def test_accelerate_with_other_parts_is_refused(tmp_path: Path) -> None:
    parts = prepared()
    saved = AccelerateState(parts[0]).state_dict()
    empty = AccelerateState(accelerate.Accelerator(cpu=True))
    with pytest.raises(ValueError, match="has 1 models, the Accelerator 0"):
        empty.load_state_dict(saved)


def test_the_trainer_is_a_trainer() -> None:
    assert issubclass(GenesisTrainer, transformers.Trainer)
    assert GenesisTrainer.__module__ == "genesis.integrations.huggingface"
