"""Training state, saved in the background and never lost.

    genesis.save(state, "run.pth")                            durable when it returns
    future = genesis.save(state, "run.pth", background=True)  captured when it returns
    future.result()                                           durable now
    state = genesis.load("run.pth")                           verified

`save_checkpoint` and `load_checkpoint` do the same for a model and an optimizer, and
`CheckpointManager` keeps the newest checkpoints of a folder. Every call has an awaitable twin in
`genesis.aio`, for asyncio and trio. A file is the old one or the new one at any instant, whatever
kills the program; a damaged one raises and never gives a wrong tensor.
"""

from . import _public
from ._contents import ArrayRow, Contents
from ._diff import Change, Difference
from ._engine.futures import SaveFuture, SaveReport
from ._engine.statistics import Statistics
from ._errors import (
    ChecksumError,
    CorruptCheckpointError,
    DurabilityUnknownError,
    GenesisError,
    NewerFormatError,
    NotACheckpointError,
    PrecisionWarning,
    RebuildError,
    RecoveredFromBackupWarning,
    TruncatedError,
    UnpicklableStateError,
    UnsafeLoadError,
)
from ._inspect import Report
from ._load import (
    add_safe_globals,
    diff,
    inspect,
    load,
    load_checkpoint,
    load_into,
    load_metadata,
    safe_globals,
    safe_load_checkpoint,
    validate_checkpoint,
    verify,
)
from ._save import (
    configure,
    flush,
    prewarm,
    release_memory,
    remove,
    save,
    save_checkpoint,
    statistics,
)
from ._version import __version__
from .data import ResumableLoader
from .manager import CheckpointManager
from .state import TrainState

__all__ = [
    "ArrayRow",
    "Change",
    "CheckpointManager",
    "ChecksumError",
    "Contents",
    "CorruptCheckpointError",
    "Difference",
    "DurabilityUnknownError",
    "GenesisError",
    "NewerFormatError",
    "NotACheckpointError",
    "PrecisionWarning",
    "RebuildError",
    "RecoveredFromBackupWarning",
    "Report",
    "ResumableLoader",
    "SaveFuture",
    "SaveReport",
    "Statistics",
    "TrainState",
    "TruncatedError",
    "UnpicklableStateError",
    "UnsafeLoadError",
    "__version__",
    "add_safe_globals",
    "configure",
    "diff",
    "flush",
    "inspect",
    "load",
    "load_checkpoint",
    "load_into",
    "load_metadata",
    "prewarm",
    "release_memory",
    "remove",
    "safe_globals",
    "safe_load_checkpoint",
    "save",
    "save_checkpoint",
    "statistics",
    "validate_checkpoint",
    "verify",
]

_public.publish(globals())

_SUBMODULES = ("aio", "nn", "optim")


def __getattr__(name: str) -> object:
    # They work after a plain `import genesis`, and cost nothing until they are used.
    if name in _SUBMODULES:
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # Not nn and optim: what lists a module looks at each name, and would load torch for it.
    return sorted({*globals(), "aio"})
