"""The checkpoint manager, awaited."""

from __future__ import annotations

from typing import Any, Unpack

from .. import manager
from .._engine.futures import SaveReport
from .._options import FilePath, SaveChoices, SaveOptions, spelled_out
from ._calls import submit


class CheckpointManager:
    """`genesis.CheckpointManager` whose `save_checkpoint` is awaited."""

    def __init__(self, checkpoint_dir: FilePath, max_checkpoints: int = 5) -> None:
        self._manager = manager.CheckpointManager(checkpoint_dir, max_checkpoints)

    @spelled_out(SaveChoices)
    async def save_checkpoint(
        self, model: Any, optimizer: Any, epoch: int, loss: Any, **options: Unpack[SaveOptions]
    ) -> SaveReport:
        """Save one epoch; return when it is durable and older ones are removed. Cancellation as for
        `genesis.aio.save`."""
        return await submit(self._manager.request(model, optimizer, epoch, loss, options))

    def checkpoints(self) -> dict[int, str]:
        """The path of each epoch's checkpoint, lowest epoch first."""
        return self._manager.checkpoints()

    def latest(self) -> str | None:
        """The path of the checkpoint that was written last, ``None`` where there is none."""
        return self._manager.latest()
