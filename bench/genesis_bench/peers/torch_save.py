"""torch.save, alone, synced, and on a thread."""

from __future__ import annotations

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..states import Tree
from .base import How, Peer, Ticket, copied, ticket


class TorchSave(Peer):
    name = "torch.save"
    what = "torch.save(state, path)"
    hows = ("whole", "restricted", "mapped", "partial")
    extra_copies = 0.1

    def save(self, tree: Tree, path: str) -> Ticket:
        import torch

        torch.save(tree, path)
        return Ticket()

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        import torch

        mapped = how in ("mapped", "partial")
        loaded = torch.load(path, mmap=mapped, weights_only=how == "restricted")
        return copied(loaded[probe[0]][probe[1]]) if how == "partial" else loaded


class TorchSaveFsync(TorchSave):
    name = "torch.save + fsync"
    what = "torch.save(state, file); os.fsync(file)"
    durable = "files"

    def save(self, tree: Tree, path: str) -> Ticket:
        import torch

        with open(path, "wb") as file:
            torch.save(tree, file)
            file.flush()
            os.fsync(file.fileno())
        return Ticket()


class DeepcopyThread(TorchSave):
    name = "deepcopy + thread"
    what = "copy.deepcopy(state), then torch.save on a thread"
    background = True
    extra_copies = 1.1

    def set_up(self, tree: Tree, folder: str) -> None:
        self._pool = ThreadPoolExecutor(1)

    def save(self, tree: Tree, path: str) -> Ticket:
        import torch

        return ticket(self._pool.submit(torch.save, copy.deepcopy(tree), path))

    def tear_down(self) -> None:
        self._pool.shutdown()
