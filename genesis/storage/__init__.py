"""Where checkpoints lie: a `Storage` has names, each read by a `Source` and written by a `Sink`.

    memory = genesis.storage.Memory()
    genesis.save(state, memory / "model")
    genesis.load(memory / "model")

A path of the local file system needs none of this. A storage of your own gives a path with
``Location(storage, name)``, and `genesis.testing.StorageTests` says whether it keeps the promises.
It moves bytes and never asks what they mean; the order of a commit of a local file is in `local`.
"""

from .. import _public
from .folder import Folder
from .memory import Memory
from .places import Location
from .protocols import Sink, Source, Storage

__all__ = ["Folder", "Location", "Memory", "Sink", "Source", "Storage"]

_public.publish(globals())
