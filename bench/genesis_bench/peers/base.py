"""What every peer is: a way to save, and what it promises.

An adapter only calls its peer, set up as its own documentation recommends; it neither measures nor
repairs. What a peer cannot take, it says.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..states import State, Tree

# "files": the files are synced, the directory that names them is not.
Durable = Literal["no", "files", "yes"]
How = Literal["whole", "restricted", "mapped", "partial"]
ALL = frozenset({"torch", "numpy", "jax", "objects"})
TORCH = frozenset({"torch", "objects"})


def nothing() -> None:
    pass


@dataclass
class Ticket:
    """A save that was called. `captured` waits until the state may change, `wait` for the end."""

    captured: Callable[[], object] = nothing
    wait: Callable[[], object] = nothing
    finished: Callable[[], bool] = lambda: True


class Peer:
    """A way to save. The class attributes say what it promises; `check` in measure.py tests it."""

    name: ClassVar[str]
    what: ClassVar[str]
    durable: ClassVar[Durable] = "no"
    background: ClassVar[bool] = False
    # The state may change when the call returns (True), or only once `captured` returns (False).
    copies: ClassVar[bool] = True
    # It makes a directory, a new one for each save; else it replaces the file of the last save.
    directory: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]] = ALL
    dill: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    hows: ClassVar[tuple[How, ...]] = ("whole",)
    # Memory it may need beside the state, in copies of it.
    extra_copies: ClassVar[float] = 1.0

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot run here, or None."""
        absent = [module for module in cls.needs if importlib.util.find_spec(module) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    @classmethod
    def refuses(cls, state: State) -> str | None:
        """Why it cannot save this state, or None."""
        if state.kind not in cls.kinds:
            return f"takes no {state.kind} state"
        if state.needs_dill and not cls.dill:
            return "cannot pickle lambdas and closures"
        return None

    def imports(self) -> None:
        """Import what it needs, so that no measurement pays for it."""
        for module in self.needs:
            importlib.import_module(module)

    def set_up(self, tree: Tree, folder: str) -> None:
        """Start what lives as long as the training run: pools, processes, staging memory."""

    def save(self, tree: Tree, path: str) -> Ticket:
        raise NotImplementedError

    def guard(self, ticket: Ticket) -> contextlib.AbstractContextManager[Any]:
        """What the trainer puts around the update in place."""
        if not self.copies:
            ticket.captured()
        return contextlib.nullcontext()

    def tick(self) -> None:
        """What the trainer calls after every step."""

    def template(self, tree: Tree, how: How, probe: tuple[str, str]) -> Any:
        """What a resuming trainer holds before it loads. Not timed."""

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        raise NotImplementedError

    def tear_down(self) -> None:
        """End what `set_up` started."""


def ticket(future: Future[Any], captured: Callable[[], object] = nothing) -> Ticket:
    return Ticket(captured, future.result, future.done)


def copied(array: Any) -> Any:
    """A copy of an array, so that a mapped one has been read."""
    return array.clone() if hasattr(array, "clone") else array.copy()


def blank(tree: Any) -> Any:
    """The same tree with tensors of zeros, present in memory as a model's own are."""
    import torch

    if isinstance(tree, torch.Tensor):
        return torch.full_like(tree, 0)
    if isinstance(tree, dict):
        return type(tree)((key, blank(value)) for key, value in tree.items())
    if isinstance(tree, list):
        return [blank(value) for value in tree]
    return tree
