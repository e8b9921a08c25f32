"""Keep every epoch's checkpoint, and the best model under a name of its own."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn, optim

import genesis

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
# Few images to train on and a high learning rate: the loss on the others goes up and down.
train_images, train_labels = images[:300], labels[:300]
val_images, val_labels = images[300:], labels[300:]

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = optim.Adam(model.parameters(), lr=0.03)


def train_one_epoch() -> None:
    for batch in torch.randperm(len(train_images)).split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
        optimizer.step()


@torch.no_grad()
def validate() -> float:
    return nn.functional.cross_entropy(model(val_images), val_labels).item()


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    losses: list[float] = []
    for epoch in range(12):
        train_one_epoch()
        val_loss = validate()
        genesis.save_checkpoint(
            model.state_dict(),
            optimizer.state_dict(),
            folder / f"checkpoint_epoch_{epoch}.pth",
            background=True,
        )
        if val_loss < min(losses, default=float("inf")):
            # Saves of one path become durable in the order they were made: the best one stays.
            genesis.save(model.state_dict(), folder / "best_model.pth", background=True)
            print(f"epoch {epoch}: new best model, loss {val_loss:.4f}")
        losses.append(val_loss)

    genesis.flush()
    model.load_state_dict(genesis.load(folder / "best_model.pth"))
    print(f"last loss {losses[-1]:.4f}, best loss {min(losses):.4f}, loaded {validate():.4f}")
    assert validate() == min(losses)
