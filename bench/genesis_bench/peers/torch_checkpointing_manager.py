"""torch_checkpointing."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ..states import Tree
from .base import How, Peer, Ticket, blank, ticket


class TorchCheckpointing(Peer):
    name = "torch_checkpointing"
    what = "torch_checkpointing: staged to shared memory, written by a process (started beforehand)"
    background = True
    copies = False
    directory = True
    needs = ("torch_checkpointing",)
    hows = ("whole", "partial")
    extra_copies = 2.0

    def set_up(self, tree: Tree, folder: str) -> None:
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        # Its direct I/O passes the open and fails at the first write on ext4.
        storage = LocalFileSystemStorageConfig(use_direct_io=False)
        config = CheckpointManager.Config(storage_config=storage)
        self._manager = CheckpointManager(config)
        self._manager.save(os.path.join(folder, "warm"), {"warm": 1}).result()
        self._manager.prewarm_staging(tree)

    def save(self, tree: Tree, path: str) -> Ticket:
        return ticket(self._manager.save(path, tree), self._staged)

    def _staged(self) -> None:
        with self._manager.lock():
            pass

    def guard(self, ticket: Ticket) -> contextlib.AbstractContextManager[Any]:
        return self._manager.lock()

    def template(self, tree: Tree, how: How, probe: tuple[str, str]) -> Any:
        if how == "partial":
            return {probe[0]: {probe[1]: blank(tree[probe[0]][probe[1]])}}
        return dict.fromkeys(tree)

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        return self._manager.load(path, into=template)

    def tear_down(self) -> None:
        self._manager.close()
