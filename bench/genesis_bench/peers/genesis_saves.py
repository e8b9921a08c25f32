"""genesis, in each of its ways."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ..states import Tree
from .base import How, Peer, Ticket, ticket


class Genesis(Peer):
    name = "genesis.save"
    what = "genesis.save(state, path): returns when it is durable"
    durable = "yes"
    dill = True
    needs = ("genesis",)
    hows = ("whole", "restricted", "mapped", "partial")
    extra_copies = 0.2

    def imports(self) -> None:
        import genesis

        self._genesis = genesis

    def save(self, tree: Tree, path: str) -> Ticket:
        self._genesis.save(tree, path, clear=False)
        return Ticket()

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        if how == "partial":
            return self._genesis.load(path, only="/".join(probe))[probe[0]][probe[1]]
        return self._genesis.load(path, mmap=how == "mapped", weights_only=how == "restricted")

    def tear_down(self) -> None:
        self._genesis.flush()


class GenesisCopy(Genesis):
    name = "genesis background"
    what = 'genesis.save(state, path, background=True), capture="copy", prewarmed'
    background = True
    capture: ClassVar[Literal["copy", "deferred"]] = "copy"
    extra_copies = 1.1

    def set_up(self, tree: Tree, folder: str) -> None:
        self._genesis.prewarm(tree)

    def save(self, tree: Tree, path: str) -> Ticket:
        future = self._genesis.save(tree, path, background=True, clear=False, capture=self.capture)
        return ticket(future, future.wait_captured)


class GenesisDeferred(GenesisCopy):
    name = "genesis deferred"
    what = 'genesis.save(state, path, background=True, capture="deferred"), prewarmed'
    copies = False
    capture = "deferred"
