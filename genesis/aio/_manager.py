"""The checkpoint manager, awaited."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, Unpack

import anyio

from .. import manager
from .._engine.futures import SaveReport, log
from .._engine.scheduler import Request
from .._options import (
    FilePath,
    LoadChoices,
    LoadOptions,
    SaveChoices,
    SaveOptions,
    spelled_out,
)
from ..manager import Which
from ..manager.parts import give_back, numbers, taken
from ..manager.preemption import Preemption
from ..manager.schedule import When
from ..manager.watch import News
from ..retention import Checkpoint, Mode, Retention
from . import _bridge
from ._calls import submit

P = ParamSpec("P")
T = TypeVar("T")


class CheckpointManager:
    """`genesis.CheckpointManager`, awaited: the same arguments, and the same calls.

    `due` and `preemption` are plain calls. What looks into the folder does so on a thread. A save
    captures its state before it first suspends, as `genesis.aio.save` does. Use ``async with`` to
    wait for every save at the end.
    """

    def __init__(
        self,
        checkpoint_dir: FilePath,
        max_checkpoints: int = 5,
        *,
        keep: Retention | None = None,
        metric: str = "loss",
        mode: Mode = "min",
        name: str = "epoch_{step:06d}.pth",
        every_steps: int | None = None,
        every_seconds: float | None = None,
        when: When | None = None,
        links: bool = False,
    ) -> None:
        self._manager = manager.CheckpointManager(
            checkpoint_dir,
            max_checkpoints,
            keep=keep,
            metric=metric,
            mode=mode,
            name=name,
            every_steps=every_steps,
            every_seconds=every_seconds,
            when=when,
            links=links,
        )

    @property
    def checkpoint_dir(self) -> str:
        """The real path of the folder."""
        return self._manager.checkpoint_dir

    @spelled_out(SaveChoices)
    async def save(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, Any] | None = None,
        **options: Unpack[SaveOptions],
    ) -> SaveReport:
        """Save a step; return when it is durable and older ones are removed. Cancellation as for
        `genesis.aio.save`."""
        return await self._saved(
            self._manager.request(step, taken(state), numbers(metrics), options)
        )

    @spelled_out(SaveChoices)
    async def save_checkpoint(
        self, model: Any, optimizer: Any, epoch: int, loss: Any, **options: Unpack[SaveOptions]
    ) -> SaveReport:
        """Save one epoch; return when it is durable and older ones are removed. Cancellation as for
        `genesis.aio.save`."""
        return await self._saved(
            self._manager.checkpoint_request(model, optimizer, epoch, loss, options)
        )

    async def _saved(self, request: Request) -> SaveReport:
        return await submit(request, began=self._manager.note)

    def due(self, step: int) -> bool:
        """Whether to save at this step, as `genesis.CheckpointManager.due`."""
        return self._manager.due(step)

    def preemption(
        self, signals: Iterable[int] = manager.PREEMPTION, *, grace: float | None = None
    ) -> Preemption:
        """`genesis.CheckpointManager.preemption`, a plain context manager. Await your saves inside
        the block: leaving it waits for what is left, and holds the event loop meanwhile."""
        return self._manager.preemption(signals, grace=grace)

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  as the plain call
        """`genesis.CheckpointManager.flush`. Cancelling ends the waiting only."""
        await _on_thread(self._manager.flush, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """`flush`; a failure of a save never hides the error that ends the block."""
        try:
            await self.flush()
        except Exception as exc:
            if error is None:
                raise
            log.error("a background save failed beside %r", error, exc_info=exc)

    async def all(self) -> list[Checkpoint]:
        """`genesis.CheckpointManager.all`, on a thread."""
        return await _on_thread(self._manager.all)

    async def steps(self) -> list[int]:
        """`genesis.CheckpointManager.steps`, on a thread."""
        return await _on_thread(self._manager.steps)

    async def checkpoints(self) -> dict[int, str]:
        """`genesis.CheckpointManager.checkpoints`, on a thread."""
        return await _on_thread(self._manager.checkpoints)

    async def latest(self) -> str | None:
        """`genesis.CheckpointManager.latest`, on a thread."""
        return await _on_thread(self._manager.latest)

    async def best(self) -> str | None:
        """`genesis.CheckpointManager.best`, on a thread."""
        return await _on_thread(self._manager.best)

    async def watch(self, timeout: float | None = None, *, poll: float = 1.0) -> AsyncIterator[int]:  # noqa: ASYNC109  as the plain call
        """`genesis.CheckpointManager.watch`, an async iterator: ``async for step in ...``."""
        news = News(self._manager.catalogue)
        since = time.monotonic()
        while True:
            for step in await _on_thread(news.look):
                yield step
                since = time.monotonic()
            if timeout is not None and time.monotonic() - since >= timeout:
                return
            await anyio.sleep(poll)

    @spelled_out(LoadChoices)
    async def restore(
        self, step: Which = "latest", into: Any = None, **options: Unpack[LoadOptions]
    ) -> Any:
        """`genesis.CheckpointManager.restore`: loaded on a thread, put into place by this one."""
        state = await _on_thread(self._manager.restore, step, **options)
        if into is not None:
            give_back(into, state)
        return state

    @spelled_out(LoadChoices)
    async def resume(self, state: Any, **options: Unpack[LoadOptions]) -> int:
        """`genesis.CheckpointManager.resume`: loaded on a thread, put into place by this one."""
        found = await _on_thread(self._manager.newest, options)
        if found is None:
            return 0
        give_back(state, found[1])
        return found[0] + 1


async def _on_thread(call: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
    return await _bridge.call(partial(call, *args, **keywords))
