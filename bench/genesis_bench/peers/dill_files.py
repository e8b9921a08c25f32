"""dill, as a program without a library for checkpoints uses it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from typing import Any, ClassVar

from ..states import Tree
from .base import How, Peer, Ticket


class PlainDill(Peer):
    name = "dill, copied backup"
    what = "the plain algorithm: copy the old file aside, dill.dump, remove the copy"
    dill = True
    needs: ClassVar[tuple[str, ...]] = ("dill",)
    extra_copies = 2.0

    def save(self, tree: Tree, path: str) -> Ticket:
        import dill

        backup = f"{path}.bak"
        if os.path.exists(path):
            shutil.copy2(path, backup)
        with open(path, "wb") as file:
            dill.dump(tree, file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(backup)
        return Ticket()

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        import dill

        with open(path, "rb") as file:
            return dill.load(file)


class AiofilesDill(PlainDill):
    name = "aiofiles + dill.dumps"
    what = "a coroutine: dill.dumps(state), then await file.write through aiofiles"
    background = True
    needs = ("dill", "aiofiles")
    extra_copies = 3.0

    def set_up(self, tree: Tree, folder: str) -> None:
        self._loop = asyncio.new_event_loop()

    def save(self, tree: Tree, path: str) -> Ticket:
        task = self._loop.create_task(self._write(tree, path))
        self.tick()  # up to its first suspension, as in a trainer that is a coroutine itself
        return Ticket(wait=lambda: self._loop.run_until_complete(task), finished=task.done)

    async def _write(self, tree: Tree, path: str) -> None:
        import aiofiles
        import dill

        data = dill.dumps(tree)
        async with aiofiles.open(path, "wb") as file:
            await file.write(data)

    def tick(self) -> None:
        self._loop.run_until_complete(asyncio.sleep(0))

    def tear_down(self) -> None:
        self._loop.close()
