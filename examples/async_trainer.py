"""Train, save and serve HTTP in one event loop, none waiting for another.

Start it with ``python examples/async_trainer.py``, and while it trains ask for

- ``curl 127.0.0.1:8000/status``: the step and the loss of this moment;
- ``curl 127.0.0.1:8000/checkpoint -o latest.pth``: the last durable checkpoint, verified;
- ``curl 127.0.0.1:8000/stop``: save once more, and leave.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn, optim

import genesis.aio

SAVE_EVERY = 20


class Trainer:
    def __init__(self, path: Path, steps: int) -> None:
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images / 16, dtype=torch.float32)
        self.labels = torch.tensor(labels)
        self.model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
        self.optimizer = optim.AdamW(self.model.parameters(), lr=1e-3)
        self.path, self.steps = path, steps
        self.step, self.loss, self.saved_step = 0, None, None
        self.stopped = False

    async def train(self) -> None:
        saving = None
        while self.step < self.steps and not self.stopped:
            await asyncio.to_thread(self.train_one_step)
            if self.step % SAVE_EVERY == 0:
                saving = await self.save_after(saving)
        await (await self.save_after(saving))

    def train_one_step(self) -> None:
        batch = torch.randint(len(self.images), (256,))
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.images[batch]), self.labels[batch])
        loss.backward()
        self.optimizer.step()
        self.step, self.loss = self.step + 1, loss.item()

    async def save_after(self, earlier: asyncio.Task[None] | None) -> asyncio.Task[None]:
        """Capture the state now; training goes on while a thread writes it. The save before it is
        waited for: a path takes one at a time."""
        if earlier is not None:
            await earlier
        future = genesis.save_checkpoint(
            self.model.state_dict(),
            self.optimizer.state_dict(),
            self.path,
            background=True,
            metadata={"step": self.step},
        )
        return asyncio.create_task(self.finish(future, self.step))

    async def finish(self, future: genesis.SaveFuture, step: int) -> None:
        await future
        self.saved_step = step

    def status(self) -> bytes:
        facts = {"step": self.step, "loss": self.loss, "saved_step": self.saved_step}
        return json.dumps(facts).encode() + b"\n"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = (await reader.readline() or b"GET /").split()[1]
        while (await reader.readline()).strip():
            pass  # the headers
        if target == b"/checkpoint" and self.saved_step is not None:
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n")
            # The file as it was when the stream began, each chunk verified, whatever is saved
            # over it meanwhile.
            async for chunk in genesis.aio.stream(self.path):
                writer.write(chunk)
                await writer.drain()
        elif target in (b"/status", b"/stop"):
            self.stopped = self.stopped or target == b"/stop"
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n")
            writer.write(self.status())
        else:
            writer.write(b"HTTP/1.0 404 Not Found\r\n\r\n")
        writer.close()
        await writer.wait_closed()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="0 takes any (%(default)s)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="for the checkpoint; a temporary one if absent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer((options.folder or Path(scratch)) / "latest.pth", options.steps)
        server = await asyncio.start_server(trainer.answer, "127.0.0.1", options.port)
        async with server:
            print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
            await trainer.train()
    print(f"step {trainer.step}, loss {trainer.loss}, saved at step {trainer.saved_step}")


if __name__ == "__main__":
    asyncio.run(main())
