"""Save a model's state, and load it back."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import genesis

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)

# Create and train a model.
model = nn.Linear(64, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
for _ in range(50):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.pth"
    report = genesis.save(model.state_dict(), path)
    print(f"saved {report.bytes:,} bytes")

    twin = nn.Linear(64, 10)
    twin.load_state_dict(genesis.load(path))

right = (twin(images).argmax(1) == labels).sum()
print(f"the loaded model knows {right} of {len(labels)} digits")
assert torch.equal(model(images), twin(images))
