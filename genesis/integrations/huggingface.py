"""Checkpoints of Hugging Face's Trainer and of Accelerate as genesis files.

    trainer = GenesisTrainer(model=model, args=TrainingArguments("run", save_total_limit=3), ...)
    trainer.train(resume_from_checkpoint=True)

One file a checkpoint, in a folder of a `genesis.CheckpointManager`, which decides what stays.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _load, _random
from .._engine.futures import SaveFuture, log
from .._public import publish
from ..manager import CheckpointManager
from ..retention import BestN, EveryN, LastN, Retention
from ._hosts import require

__all__ = ["AccelerateState", "GenesisCheckpoints", "GenesisTrainer"]

require(("transformers",), (5, 0), "huggingface")
require(("accelerate",), (1, 1), "huggingface")

import transformers  # noqa: E402
from transformers.trainer import TRAINER_STATE_NAME  # noqa: E402
from transformers.trainer_callback import ExportableState  # noqa: E402

_NAME = "checkpoint-{step:06d}.pth"
_ELSEWHERE = (
    "sharded states (FSDP, DeepSpeed) are not for one file: save them with "
    "genesis.integrations.distributed"
)

_Trainer: Any = transformers.Trainer if TYPE_CHECKING else object


class GenesisCheckpoints(_Trainer):  # type: ignore[misc]
    """Put it before a Trainer's class: ``class MyTrainer(GenesisCheckpoints, Seq2SeqTrainer)``.

    A checkpoint is captured when the Trainer saves and written while it trains on: the model's
    state, optimizer, scheduler, scaler, random generators of each process, and the Trainer's own
    state. ``save_total_limit`` and ``load_best_model_at_end`` decide what stays, and an old
    checkpoint is removed only when a newer one is durable. A background save that fails is raised
    by the next save or by the end of `train`, once.

    ``train(resume_from_checkpoint=True)`` goes on from the newest sound checkpoint; a damaged one
    is passed over with a `RecoveredFromBackupWarning`. The path of a file does too, and a folder
    that the plain Trainer wrote is read as ever.

    Attributes:
        weights_only: of loads: build nothing but tensors and plain data. Turn it off in a subclass
            whose optimizer or scheduler keeps other objects.
    """

    weights_only = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pending: list[SaveFuture] = []
        self._resumed: tuple[str, dict[str, Any]] | None = None

    def checkpoints(self, trial: Any = None) -> CheckpointManager:
        """The manager of the run's folder."""
        args = self.args
        metric, greater = args.metric_for_best_model or "loss", bool(args.greater_is_better)
        mode: Any = "max" if greater else "min"
        limit = args.save_total_limit
        keep: Retention = LastN(limit) if limit else EveryN(1)
        if args.load_best_model_at_end:
            keep |= BestN(1, metric, mode=mode)
        folder = self._get_output_dir(trial=trial)
        return CheckpointManager(folder, keep=keep, metric=metric, mode=mode, name=_NAME)

    # Saving

    def _save_checkpoint(self, model: Any, trial: Any, *_: Any, **__: Any) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(_ELSEWHERE)
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        step = self.state.global_step
        manager = self.checkpoints(trial)
        path = os.path.join(manager.checkpoint_dir, _NAME.format(step=step))
        metrics = self._metrics_of(step)
        if manager._metric in metrics and metrics[manager._metric] == self.state.best_metric:
            self.state.best_model_checkpoint = path
        state = self._taken()  # on every rank: the random states are gathered
        if self.args.should_save:
            state["trainer_state"] = self._own_state()
            self._pending.append(manager.save(step, state, metrics=metrics, background=True))
        self._raise_failed([future for future in self._pending if future.done()])

    def _taken(self) -> dict[str, Any]:
        random = _gathered(_random.capture(), self.args.world_size)
        state = {"model": self.accelerator.unwrap_model(self.model).state_dict(), "random": random}
        if self.args.save_only_model:
            return state
        state["optimizer"] = self.optimizer.state_dict()
        state["scheduler"] = self.lr_scheduler.state_dict()
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def _own_state(self) -> str:
        """What the Trainer knows of the run, as it writes it itself."""
        for each in [*self.callback_handler.callbacks, self.control]:
            if isinstance(each, ExportableState):
                known = self.state.stateful_callbacks.get(type(each).__name__)
                if isinstance(known, list):
                    known.append(each.state())
                else:
                    self.state.stateful_callbacks[type(each).__name__] = each.state()
        return json.dumps(dataclasses.asdict(self.state), sort_keys=True)

    def _metrics_of(self, step: int) -> dict[str, float]:
        """What was logged at a step; the metric of the best model also without its ``eval_``."""
        found: dict[str, float] = {}
        for line in self.state.log_history:
            if line.get("step") == step:
                found |= {name: n for name, n in line.items() if isinstance(n, int | float)}
        return found | {name.removeprefix("eval_"): n for name, n in found.items()}

    def _raise_failed(self, ended: list[SaveFuture]) -> None:
        self._pending = [future for future in self._pending if future not in ended]
        errors = [error for future in ended if (error := future.exception()) is not None]
        for error in errors[1:]:
            log.error("a background save failed too", exc_info=error)
        if errors:
            raise errors[0]

    # Going on

    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, *args: Any, **options: Any
    ) -> Any:
        """As the Trainer's, which see; it returns when every checkpoint is durable."""
        with self._opened(resume_from_checkpoint, trial) as folder:
            try:
                output = super().train(folder, trial, *args, **options)
            except BaseException:
                for future in self._pending:
                    future.exception()  # that of the training is raised; these are in the log
                raise
        self._raise_failed(list(self._pending))
        return output

    @contextmanager
    def _opened(self, wanted: Any, trial: Any) -> Iterator[Any]:
        """The folder to give to the Trainer: one with its own state, where a checkpoint of genesis
        is gone on from. All else is given when it asks."""
        loaded = self._loaded(wanted, trial)
        if loaded is None:
            yield wanted
            return
        with tempfile.TemporaryDirectory(prefix="genesis-resume-") as folder:
            Path(folder, TRAINER_STATE_NAME).write_text(loaded["trainer_state"], encoding="utf-8")
            self._resumed = folder, loaded
            try:
                yield folder
            finally:
                self._resumed = None

    def _loaded(self, wanted: Any, trial: Any) -> dict[str, Any] | None:
        if wanted is True:
            found = self.checkpoints(trial).newest({"weights_only": self.weights_only})
            return None if found is None else _checked(found[1], self.args.output_dir)
        if wanted and os.path.isfile(wanted):
            return _checked(_load.load(wanted, weights_only=self.weights_only), wanted)
        return None

    def _part(self, folder: Any, name: str) -> Any:
        """A part of the checkpoint that is gone on from; ``None`` where the Trainer reads a folder
        of its own, or the checkpoint has no such part."""
        is_ours = self._resumed is not None and self._resumed[0] == folder
        return self._resumed[1].get(name) if self._resumed and is_ours else None

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        state = self._part(resume_from_checkpoint, "model")
        if state is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            (self.model if model is None else model).load_state_dict(state)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        state = self._part(checkpoint, "optimizer")
        if state is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(self._part(checkpoint, "scheduler"))
        if scaler := self._part(checkpoint, "scaler"):
            self.accelerator.scaler.load_state_dict(scaler)

    def _load_rng_state(self, checkpoint: Any) -> None:
        states = self._part(checkpoint, "random")
        if states is None:
            super()._load_rng_state(checkpoint)
        elif self.args.process_index < len(states):
            _random.restore(states[self.args.process_index])

    def _load_best_model(self) -> None:
        for future in self._pending:
            future.exception()  # waits: the best may be on its way; errors are raised by train
        path = self.state.best_model_checkpoint
        if not os.path.isfile(path):
            super()._load_best_model()
            return
        state = _load.load(path, only="model", weights_only=self.weights_only)
        self.model.load_state_dict(state["model"])


class GenesisTrainer(GenesisCheckpoints, transformers.Trainer):  # type: ignore[misc]
    """Hugging Face's Trainer with checkpoints of genesis: see `GenesisCheckpoints`."""


class AccelerateState:
    """All that an Accelerator has prepared, as one object with `state_dict`, for a manager::

        state = AccelerateState(accelerator)
        manager.save(step, state, background=True)  # on the main process
        step = manager.resume(state)

    It takes models, optimizers, schedulers, the scaler, what ``register_for_checkpointing`` was
    given, and the random generators of each process. Prepare everything in the same order before
    it is loaded. With several processes call `state_dict` on each.

    Args:
        accelerator: of Accelerate.

    Raises:
        ValueError: it shards the states of models.
    """

    def __init__(self, accelerator: Any) -> None:
        if str(accelerator.distributed_type).rpartition(".")[2] in (
            "FSDP",
            "DEEPSPEED",
            "MEGATRON_LM",
        ):
            raise ValueError(_ELSEWHERE)
        self._accelerator = accelerator

    def _parts(self) -> dict[str, list[Any]]:
        a = self._accelerator
        return {
            "models": [a.unwrap_model(model) for model in a._models],
            "optimizers": list(a._optimizers),
            "schedulers": list(a._schedulers),
            "registered": list(a._custom_objects),
            "scaler": [] if a.scaler is None else [a.scaler],
        }

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts, by kind, in the order in which they were prepared."""
        taken: dict[str, Any] = {
            kind: [part.state_dict() for part in parts] for kind, parts in self._parts().items()
        }
        random = _gathered(_random.capture(), self._accelerator.num_processes)
        return taken | {"random": random, "step": self._accelerator.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each part its state.

        Raises:
            ValueError: there are more or fewer parts of a kind than were saved; nothing was
                changed.
        """
        parts = self._parts()
        for kind, there in parts.items():
            saved = len(state_dict[kind])
            if saved != len(there):
                raise ValueError(
                    f"the checkpoint has {saved} {kind}, the Accelerator {len(there)}: prepare the "
                    "same ones before you load"
                )
        for kind, there in parts.items():
            for part, state in zip(there, state_dict[kind], strict=True):
                part.load_state_dict(state)
        self._accelerator.step = state_dict["step"]
        if (number := self._accelerator.process_index) < len(state_dict["random"]):
            _random.restore(state_dict["random"][number])


def _gathered(own: dict[str, Any], processes: int) -> list[dict[str, Any]]:
    """What each process has, by rank."""
    if processes == 1:
        return [own]
    from torch import distributed

    found: list[Any] = [None] * processes
    distributed.all_gather_object(found, own)
    return found


def _checked(state: Any, where: Any) -> dict[str, Any]:
    if not isinstance(state, dict) or "trainer_state" not in state:
        raise ValueError(
            f"{os.fsdecode(where)}: this is no checkpoint of a GenesisTrainer, which has a "
            "'trainer_state'; load it with genesis.load"
        )
    return state


publish(globals())
