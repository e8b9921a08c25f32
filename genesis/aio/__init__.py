"""genesis for coroutines, on asyncio and trio: the plain calls, awaited.

The event loop is held for the capture of a state, and for a look at its path: waiting, writing,
loading and the first touch of memory happen on threads. Cancelling a call never cuts a write that
has begun (`genesis.aio._bridge`).
"""

from .. import _public
from .._pickle import arrays as _arrays
from . import _bridge
from ._calls import (
    diff,
    flush,
    inspect,
    load,
    load_async,
    load_checkpoint,
    load_into,
    load_metadata,
    prewarm,
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
    "diff",
    "flush",
    "inspect",
    "load",
    "load_async",
    "load_checkpoint",
    "load_into",
    "load_metadata",
    "prewarm",
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

# Here, where importing takes its time anyway, and not when the first call holds an event loop.
_bridge.load_backends()
_arrays.load_those_in_use()
