"""A FastAPI service that trains in a task, saves, and hands out its checkpoint.

It needs the extras ``examples`` and ``service``. Start it with
``uvicorn --app-dir examples serve:app``, and while it trains ask for

- ``curl 127.0.0.1:8000/state``: the step and the loss of this moment, and the step last saved;
- ``curl 127.0.0.1:8000/checkpoint -O``: the last durable checkpoint, each chunk verified;
- ``curl -C - -O 127.0.0.1:8000/checkpoint``: the rest of a download that was cut.

``SERVE_FOLDER`` is where the checkpoint is kept, and ``SERVE_WIDTH`` how wide the model is.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import torch
from fastapi import FastAPI, Header, HTTPException, Response
from fastapi.responses import StreamingResponse
from sklearn.datasets import load_digits
from torch import nn, optim

import genesis.aio

SAVE_EVERY = 20


class Training:
    def __init__(self, path: Path, width: int) -> None:
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images / 16, dtype=torch.float32)
        self.labels = torch.tensor(labels)
        self.model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        self.optimizer = optim.AdamW(self.model.parameters(), lr=1e-3)
        self.path = path
        self.step, self.loss, self.saving, self.saved_step = 0, None, False, None

    async def run(self) -> None:
        while True:
            await asyncio.to_thread(self.train_one_step)
            if self.step % SAVE_EVERY == 0:
                await self.save()

    def train_one_step(self) -> None:
        batch = torch.randint(len(self.images), (256,))
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.images[batch]), self.labels[batch])
        loss.backward()
        self.optimizer.step()
        self.step, self.loss = self.step + 1, loss.item()

    async def save(self) -> None:
        """The event loop answers while this waits until the checkpoint is durable."""
        self.saving = True
        await genesis.aio.save_checkpoint(
            self.model.state_dict(),
            self.optimizer.state_dict(),
            self.path,
            metadata={"step": self.step},
        )
        self.saving, self.saved_step = False, self.step

    def state(self) -> dict[str, object]:
        names = ("step", "loss", "saving", "saved_step")
        return {name: getattr(self, name) for name in names}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    folder = Path(os.environ.get("SERVE_FOLDER", "."))
    app.state.training = Training(folder / "serve.pth", int(os.environ.get("SERVE_WIDTH", "512")))
    task = asyncio.create_task(app.state.training.run())
    try:
        yield
    finally:
        task.cancel()  # a save that has begun to write goes on, and is waited for at the exit
        await asyncio.gather(task, return_exceptions=True)


app = FastAPI(lifespan=lifespan)


@app.get("/state")
async def state() -> dict[str, object]:
    return app.state.training.state()


@app.get("/checkpoint")
async def checkpoint(
    range_: str | None = Header(None, alias="Range"),
    if_range: str | None = Header(None),
    if_none_match: str | None = Header(None),
) -> Response:
    path = app.state.training.path
    try:
        kept = await asyncio.to_thread(path.stat)
    except FileNotFoundError:
        raise HTTPException(404, "nothing has been saved yet") from None
    tag, size = tag_of(kept), kept.st_size
    headers = {"ETag": tag, "Accept-Ranges": "bytes"}
    if if_none_match == tag:
        return Response(status_code=304, headers=headers)
    first, end, status = 0, size, 200
    if range_ and if_range in (None, tag) and (asked := span(range_, size)):
        first, end = asked
        if first >= end:
            raise HTTPException(416, headers={"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        status = 206
    headers["Content-Length"] = str(end - first)
    pieces = part(path, tag, first, end)
    try:
        head = await anext(pieces)
    except StopAsyncIteration:
        raise HTTPException(503, "a new checkpoint came; ask again") from None
    pieces = chained(head, pieces)
    return StreamingResponse(pieces, status, headers, "application/octet-stream")


def tag_of(kept: os.stat_result) -> str:
    return f'"{kept.st_ino:x}-{kept.st_mtime_ns:x}-{kept.st_size:x}"'


def span(asked: str, size: int) -> tuple[int, int] | None:
    """The bytes of ``bytes=FIRST-LAST``, ``bytes=FIRST-`` or ``bytes=-COUNT``; ``None`` where
    it is none of these, which gets the whole."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if not found or asked == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    end = min(int(last) + 1, size) if last else size
    return (int(first), end) if not last or int(last) >= int(first) else None


async def part(path: Path, tag: str, first: int, end: int) -> AsyncIterator[bytes]:
    """The bytes from `first` to `end`; none if a save has made another file than that of `tag`."""
    at = 0
    async with aclosing(genesis.aio.stream(path)) as pieces:
        async for piece in pieces:
            # Now that it is open, whatever is saved changes nothing.
            if at == 0 and tag_of(await asyncio.to_thread(path.stat)) != tag:
                return
            wanted = piece[max(0, first - at) : max(0, end - at)]
            at += len(piece)
            if wanted:
                yield wanted
            if at >= end:
                return


async def chained(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async with aclosing(rest):
        async for piece in rest:
            yield piece
