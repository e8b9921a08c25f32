"""Keep the most recent checkpoints of a run, and only those."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn, optim

import genesis

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)

model = nn.Linear(64, 10)
optimizer = optim.Adam(model.parameters(), lr=0.01)

with tempfile.TemporaryDirectory() as folder:
    manager = genesis.CheckpointManager(folder, max_checkpoints=3)
    for epoch in range(1, 8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        manager.save_checkpoint(model, optimizer, epoch, loss.item())

    kept = sorted(file.name for file in Path(folder).iterdir())
    print("kept", *kept)
    assert kept == [f"epoch_{epoch:06d}.pth" for epoch in (5, 6, 7)]

    latest = genesis.load(Path(folder) / kept[-1])
    model.load_state_dict(latest["model_state_dict"])
    optimizer.load_state_dict(latest["optimizer_state_dict"])
    print(f"loaded epoch {latest['epoch']}, loss {latest['loss']:.4f}")
