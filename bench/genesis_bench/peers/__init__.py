"""The ways to save that are measured: one file a peer.

A new one is a subclass of `base.Peer` in a file of its own, and a line in PEERS.
"""

from __future__ import annotations

from .base import Peer, Ticket
from .dcp import Dcp, DcpProcess, DcpProcessStager, DcpStager, DcpThread, DcpThreadReuse
from .dill_files import AiofilesDill, PlainDill
from .genesis_saves import Genesis, GenesisCopy, GenesisDeferred
from .joblib_files import Joblib
from .orbax_async import Orbax
from .safetensors_files import Safetensors
from .torch_checkpointing_manager import TorchCheckpointing
from .torch_save import DeepcopyThread, TorchSave, TorchSaveFsync

__all__ = ["PEERS", "Peer", "Ticket", "peer_named"]

PEERS: tuple[type[Peer], ...] = (
    TorchSave,
    TorchSaveFsync,
    PlainDill,
    AiofilesDill,
    DeepcopyThread,
    Safetensors,
    Joblib,
    Dcp,
    DcpThread,
    DcpThreadReuse,
    DcpStager,
    DcpProcess,
    DcpProcessStager,
    TorchCheckpointing,
    Orbax,
    Genesis,
    GenesisCopy,
    GenesisDeferred,
)


def peer_named(name: str) -> type[Peer]:
    """The adapter of a name.

    Raises:
        KeyError: no peer has it.
    """
    return {peer.name: peer for peer in PEERS}[name]
