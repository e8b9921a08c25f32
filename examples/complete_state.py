"""Save everything a training run is made of, its learning rate schedule and generators included."""

import random
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

import genesis

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


class Run:
    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
        self.optimizer = optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = LambdaLR(self.optimizer, lambda epoch: 0.9**epoch)
        self.losses: list[float] = []
        self.best: dict[str, float] = defaultdict(lambda: float("inf"))
        self.epoch = 0

    def train_one_epoch(self) -> None:
        batch = torch.tensor(random.sample(range(len(images)), 512))
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(images[batch]), labels[batch])
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.losses.append(loss.item())
        self.best["loss"] = min(self.best["loss"], loss.item())
        self.epoch += 1

    def checkpoint(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": self.scheduler.state_dict(),
            "schedule": self.scheduler.lr_lambdas,  # the lambda itself
            "losses": self.losses,
            "best": self.best,  # and another one, in the defaultdict
            "generators": (random.getstate(), torch.get_rng_state()),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        self.epoch = checkpoint["epoch"]
        self.losses, self.best = checkpoint["losses"], checkpoint["best"]
        self.scheduler = LambdaLR(self.optimizer, checkpoint["schedule"])
        self.model.load_state_dict(checkpoint["model_state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        self.scheduler.load_state_dict(checkpoint["scheduler_state_dict"])
        python_state, torch_state = checkpoint["generators"]
        random.setstate(python_state)
        torch.set_rng_state(torch_state)


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "full_checkpoint.pth"
    first = Run()
    for _ in range(5):
        first.train_one_epoch()
    genesis.save(first.checkpoint(), path)
    for _ in range(5):
        first.train_one_epoch()

    second = Run()
    second.restore(genesis.load(path))
    print(f"resumed after epoch {second.epoch}")
    for _ in range(5):
        second.train_one_epoch()

print("first run: ", *(f"{loss:.4f}" for loss in first.losses))
print("second run:", *(f"{loss:.4f}" for loss in second.losses))
assert first.losses == second.losses
assert first.best == second.best
assert second.best["accuracy"] == float("inf")  # the lambda came along
