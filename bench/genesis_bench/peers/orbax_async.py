"""Orbax."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..states import Tree
from .base import How, Peer, Ticket, ticket


class Orbax(Peer):
    name = "orbax async"
    what = "orbax StandardCheckpointer, which saves in the background"
    durable = "files"
    background = True
    directory = True
    kinds = frozenset({"numpy", "jax"})
    needs = ("orbax.checkpoint",)

    @classmethod
    def missing(cls) -> str | None:
        absent = importlib.util.find_spec("orbax") is None
        return "not installed: orbax-checkpoint" if absent else None

    def set_up(self, tree: Tree, folder: str) -> None:
        import orbax.checkpoint as ocp

        self._checkpointer = ocp.StandardCheckpointer()
        self._pool = ThreadPoolExecutor(1)

    def save(self, tree: Tree, path: str) -> Ticket:
        self._checkpointer.save(path, tree)
        waiter = self._pool.submit(self._checkpointer.wait_until_finished)
        return ticket(waiter)

    def template(self, tree: Tree, how: How, probe: tuple[str, str]) -> Any:
        import jax
        import orbax.checkpoint as ocp

        return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        return self._checkpointer.restore(path, template)

    def tear_down(self) -> None:
        self._pool.shutdown()
        self._checkpointer.close()
