"""genesis for coroutines, on asyncio and trio: the plain calls, awaited.

The event loop is held for the capture of a state, and for a look at its path: waiting, writing and
loading happen on threads. Cancelling a call never cuts a write that has begun (`genesis._bridge`).
"""

from .. import _public
from ._calls import (
    load,
    load_async,
    load_checkpoint,
    load_metadata,
    remove,
    safe_load_checkpoint,
    save,
    save_async,
    save_checkpoint,
    validate_checkpoint,
    verify,
)
from ._manager import CheckpointManager
from ._stream import stream

__all__ = [
    "CheckpointManager",
    "load",
    "load_async",
    "load_checkpoint",
    "load_metadata",
    "remove",
    "safe_load_checkpoint",
    "save",
    "save_async",
    "save_checkpoint",
    "stream",
    "validate_checkpoint",
    "verify",
]

_public.publish(globals())
