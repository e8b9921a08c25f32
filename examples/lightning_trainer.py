"""Lightning with genesis's plugin: checkpoints in the background, kept by `ModelCheckpoint`, and a
second Trainer that goes on from the last."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import genesis
from genesis.integrations.lightning import GenesisCheckpointIO


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(folder: Path, epochs: int, ckpt_path: str | None = None) -> lightning.Trainer:
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    keep = ModelCheckpoint(folder, save_top_k=2, save_last=True, monitor="loss")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        plugins=[GenesisCheckpointIO(background=True)],
        callbacks=[keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), DataLoader(data, 128, shuffle=True), ckpt_path=ckpt_path)
    return trainer


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "lightning_run")
    train(folder, 3)
    trainer = train(folder, 6, ckpt_path="last")
    print("kept", *sorted(path.name for path in folder.glob("*.ckpt")))

    best = genesis.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    model = Digits()
    model.load_state_dict(best["state_dict"])
    print(f"step {trainer.global_step}; the best is of epoch {best['epoch']}, sound and loaded")


if __name__ == "__main__":
    main()
