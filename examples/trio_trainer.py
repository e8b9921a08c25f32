"""Train and save under trio, while another task of the same loop reports on both."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import trio
from sklearn.datasets import load_digits
from torch import nn, optim

import genesis.aio

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
optimizer = optim.AdamW(model.parameters(), lr=1e-3)


def train_one_step() -> float:
    batch = torch.randint(len(images), (256,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
    loss.backward()
    optimizer.step()
    return loss.item()


async def train(path: Path, progress: trio.MemorySendChannel[str]) -> None:
    async with progress:
        for step in range(1, 101):
            loss = await trio.to_thread.run_sync(train_one_step)
            if step % 20 == 0:
                report = await genesis.aio.save_checkpoint(
                    model.state_dict(), optimizer.state_dict(), path
                )
                await progress.send(f"step {step}: loss {loss:.3f}, {report.bytes:,} bytes saved")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latest.pth"
        sender, receiver = trio.open_memory_channel[str](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(train, path, sender)
            async for line in receiver:
                print(line)
        model_state, _ = await genesis.aio.load_checkpoint(path)
    assert all(torch.equal(model_state[name], value) for name, value in model.state_dict().items())
    print("loaded what was trained")


if __name__ == "__main__":
    trio.run(main)
