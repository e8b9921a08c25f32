"""genesis: training state saved in the background and never lost.

The plain calls are here, their awaitable twins in `genesis.aio`.

The modules, each importing only from those that stand before it (tests/test_layers.py):

    vocabulary        _version  _errors
    bytes, objects    _format  _memory  _plan  _frameworks/  _pickling  _arena  _restricted/
    operating system  _fs  _locks  _atomic
    threads           _crew  _pool
    one operation     _foreign  _store
    engine            _bridge  _futures  _writer
    faces             _api  _retention  _manager  aio/
"""

from ._api import (
    add_safe_globals,
    configure,
    flush,
    load,
    load_checkpoint,
    load_metadata,
    prewarm,
    safe_globals,
    safe_load_checkpoint,
    save,
    save_checkpoint,
    validate_checkpoint,
)
from ._errors import (
    ChecksumError,
    CorruptCheckpointError,
    DurabilityUnknownError,
    GenesisError,
    NewerFormatError,
    NotACheckpointError,
    RecoveredFromBackupWarning,
    TruncatedError,
    UnpicklableStateError,
    UnsafeLoadError,
)
from ._futures import SaveFuture, SaveReport
from ._manager import CheckpointManager
from ._version import __version__

__all__ = [
    "CheckpointManager",
    "ChecksumError",
    "CorruptCheckpointError",
    "DurabilityUnknownError",
    "GenesisError",
    "NewerFormatError",
    "NotACheckpointError",
    "RecoveredFromBackupWarning",
    "SaveFuture",
    "SaveReport",
    "TruncatedError",
    "UnpicklableStateError",
    "UnsafeLoadError",
    "__version__",
    "add_safe_globals",
    "configure",
    "flush",
    "load",
    "load_checkpoint",
    "load_metadata",
    "prewarm",
    "safe_globals",
    "safe_load_checkpoint",
    "save",
    "save_checkpoint",
    "validate_checkpoint",
]


def __getattr__(name: str) -> object:
    # `genesis.aio` works after a plain `import genesis`, and costs nothing until it is used.
    if name == "aio":
        import importlib

        return importlib.import_module(".aio", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
