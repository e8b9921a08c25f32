"""Hugging Face's Trainer with checkpoints of genesis: saved in the background, and a second Trainer
that goes on from the newest."""

from __future__ import annotations

import sys
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import TrainingArguments

from genesis.integrations.huggingface import GenesisTrainer


class Digits(nn.Module):
    """Returns what the Trainer asks of a model: a loss and what it was made of."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def digits() -> list[dict[str, Any]]:
    images, labels = load_digits(return_X_y=True)
    rows = zip(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels), strict=True)
    return [{"images": image, "labels": label} for image, label in rows]


def trainer(folder: str, steps: int) -> GenesisTrainer:
    args = TrainingArguments(
        folder,
        max_steps=steps,
        save_steps=20,
        save_total_limit=2,
        per_device_train_batch_size=128,
        learning_rate=1e-2,
        logging_steps=20,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return GenesisTrainer(model=Digits(), args=args, train_dataset=digits())


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else "huggingface_run"
    trainer(folder, 40).train()
    second = trainer(folder, 80)
    second.train(resume_from_checkpoint=True)
    print("steps kept:", second.checkpoints().steps(), "loss:", second.state.log_history[-1])


if __name__ == "__main__":
    main()
