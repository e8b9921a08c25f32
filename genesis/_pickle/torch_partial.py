"""Tensors that are not all here: of which other processes hold the rest, or that have no values.

It refuses them, or waits for what is on its way, and does not know how the others are pickled.
Classes are told by name: nothing of `torch.distributed` is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._options import Sharded
from .buffers import RefusedObjectError

_GATHER = (
    "save it with torch.distributed.checkpoint and the GenesisWriter of "
    "genesis.integrations.distributed; or gather it, with tensor.full_tensor() or with "
    "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True)), and save it on one rank; or give each rank a "
    "path of its own and sharded='allow'"
)


def check_for(cls: type, sharded: Sharded) -> Callable[[Any], None] | None:
    """What refuses instances of a class, ``None`` where nothing speaks against them."""
    for base in cls.__mro__:
        if base.__module__.startswith("torch.") and base.__name__ in _CHECKS:
            check, is_of_ranks = _CHECKS[base.__name__]
            return None if is_of_ranks and sharded == "allow" else check
    return None


def _check_dtensor(tensor: Any) -> None:
    mesh = tensor.device_mesh
    for dimension, placement in enumerate(tensor.placements):
        ranks = mesh.size(dimension)
        if ranks > 1 and not placement.is_replicate():
            raise RefusedObjectError(
                f"this is one rank's part, {tuple(tensor.to_local().shape)}, of a DTensor of shape "
                f"{tuple(tensor.shape)} that {ranks} ranks share ({placement})",
                _GATHER,
            )


def _check_sharded_tensor(tensor: Any) -> None:
    there, here = len(tensor.metadata().shards_metadata), len(tensor.local_shards())
    if here < there:
        raise RefusedObjectError(
            f"this rank has {here} of the {there} shards of a ShardedTensor of shape "
            f"{tuple(tensor.size())}",
            "use StateDictType.FULL_STATE_DICT and save it on one rank; or give each rank a path "
            "of its own and sharded='allow'",
        )


def _refuse_fake(tensor: Any) -> None:
    raise RefusedObjectError(
        f"a fake tensor of shape {tuple(tensor.shape)} has no values",
        "save the real tensor, or use torch.save in torch.serialization.skip_data()",
    )


def _wait(tensor: Any) -> None:
    """What a collective operation has not written yet would be saved as what was there before."""
    tensor.trigger_wait()


_CHECKS: dict[str, tuple[Callable[[Any], None], bool]] = {
    "DTensor": (_check_dtensor, True),
    "ShardedTensor": (_check_sharded_tensor, True),
    "FakeTensor": (_refuse_fake, False),
    "AsyncCollectiveTensor": (_wait, False),
}
"""The name of a class of torch -> what checks an instance, and whether ``sharded="allow"`` lets it
pass."""
