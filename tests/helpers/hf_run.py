"""A small Trainer run for `test_huggingface`, and as a program one to be killed: FOLDER KILL_AT."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    TrainerCallback,
    TrainingArguments,
)

from genesis.integrations.huggingface import GenesisTrainer  # noqa: E402

STEPS = 12


class Killed(TrainerCallback):
    """Ends the process as SIGKILL does, at a step."""

    def __init__(self, at: int) -> None:
        self._at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def rows(count: int = 40) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        ids = torch.randint(5, 50, (6,), generator=generator)
        found.append({"input_ids": ids, "labels": torch.tensor(number % 2)})
    return found


def trainer(folder: Any, cls: Any = GenesisTrainer, **options: Any) -> Any:
    """With dropout, shuffling and a schedule, on the CPU."""
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    callbacks = options.pop("callbacks", [])
    chosen = {
        "max_steps": STEPS,
        "save_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    } | options
    return cls(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(str(folder), **chosen),
        train_dataset=rows(),
        eval_dataset=rows(8),
        callbacks=callbacks,
    )


def losses(run: Any) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in run.state.log_history if "loss" in line}


if __name__ == "__main__":
    trainer(sys.argv[1], callbacks=[Killed(int(sys.argv[2]))]).train()
