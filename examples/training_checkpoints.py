"""Save model and optimizer every ten epochs, without waiting for the disk, and load one of them."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import genesis

images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
train_loader = DataLoader(data, batch_size=256, shuffle=True)

model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = optim.Adam(model.parameters(), lr=0.001)


def train_one_epoch() -> float:
    total = 0.0
    for batch, targets in train_loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch), targets)
        loss.backward()
        optimizer.step()
        total += loss.item() / len(train_loader)
    return total


with tempfile.TemporaryDirectory() as folder:
    for epoch in range(31):
        train_loss = train_one_epoch()
        if epoch % 10 == 0:
            # Returns as soon as the state is copied; the next epoch may overwrite every weight.
            genesis.save_checkpoint(
                model.state_dict(),
                optimizer.state_dict(),
                Path(folder) / f"checkpoint_epoch_{epoch}.pth",
                background=True,
            )
            print(f"epoch {epoch}: loss {train_loss:.3f}")

    # Every save is on the disk from here on; a failed one would raise here.
    genesis.flush()
    print("saved", *sorted(file.name for file in Path(folder).iterdir()))

    model_state, optimizer_state = genesis.load_checkpoint(Path(folder) / "checkpoint_epoch_30.pth")
    assert all(torch.equal(model_state[name], value) for name, value in model.state_dict().items())
    model.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)
    print(f"loaded epoch 30, loss after one more epoch {train_one_epoch():.3f}")
