"""Train, stop, and go on from the latest checkpoint.

Run it twice with the same folder: ``python examples/resume.py FOLDER``.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn, optim

import genesis

EPOCHS_A_RUN = 10

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = optim.Adam(model.parameters(), lr=0.01)
first_epoch = 0

checkpoint_path = Path(sys.argv[1]) / "checkpoint_latest.pth"
if checkpoint_path.exists():
    checkpoint = genesis.load(checkpoint_path)
    model.load_state_dict(checkpoint["model_state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    first_epoch = checkpoint["epoch"] + 1
    print(f"resumed from checkpoint, at epoch {first_epoch}, loss {checkpoint['loss']:.4f}")
else:
    print("starting fresh training")

for epoch in range(first_epoch, first_epoch + EPOCHS_A_RUN):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    # One path, saved again and again: at any moment it holds one whole checkpoint.
    genesis.save(
        {
            "epoch": epoch,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "loss": loss.item(),
        },
        checkpoint_path,
        background=True,
    )

genesis.flush()
print(f"stopped after epoch {epoch}, loss {loss.item():.4f}")
