"""Every error and warning of genesis, one name for each way a checkpoint can be bad.

Constructors build the message from what is known (path, offset, cure), so that callers raise facts,
not prose. Nothing here imports anything of genesis or does anything but carry those facts.
"""

from __future__ import annotations

import pickle

__all__ = [
    "ChecksumError",
    "CorruptCheckpointError",
    "DurabilityUnknownError",
    "GenesisError",
    "NewerFormatError",
    "NotACheckpointError",
    "PrecisionWarning",
    "RebuildError",
    "RecoveredFromBackupWarning",
    "TruncatedError",
    "UnpicklableStateError",
    "UnsafeLoadError",
]


class GenesisError(Exception):
    """Base of every exception that genesis defines."""


class CorruptCheckpointError(GenesisError, pickle.UnpicklingError):
    """A file cannot be loaded: it is damaged, foreign, of a later version or refused, or what it
    holds cannot be built here, as the subclass says. But for `RebuildError` no object of a genesis
    file was built.

    Attributes:
        path: the file.
        problem: what was wrong.
        offset: where, in bytes from its start; ``None`` where no single place is to blame.
        hint: what to do about it.
    """

    default_hint = "restore the file from another copy, or load an older checkpoint"

    def __init__(
        self, path: str, problem: str, offset: int | None = None, hint: str | None = None
    ) -> None:
        self.path = path
        self.problem = problem
        self.offset = offset
        self.hint = hint or self.default_hint
        where = "" if offset is None else f" at byte {offset:,}"
        super().__init__(f"{path}: {problem}{where}; {self.hint}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.problem, self.offset, self.hint), self.__dict__


class TruncatedError(CorruptCheckpointError):
    """A genesis file ends before its footer, or holds more or fewer bytes than the footer says."""


class ChecksumError(CorruptCheckpointError):
    """Bytes of a genesis file changed after they were written."""


class NewerFormatError(CorruptCheckpointError):
    """The file was written by a later version of genesis than this one."""

    default_hint = "upgrade genesis"


class NotACheckpointError(CorruptCheckpointError):
    """The file is neither a genesis file nor a pickle that can be read."""

    default_hint = "genesis.load reads what genesis.save, pickle.dump and dill.dump write"


class RebuildError(CorruptCheckpointError):
    """An object of the file cannot be built here: its class is gone, or its own code raised.

    The file is not to blame, so no backup was looked for. What was raised is the ``__cause__``.

    Attributes:
        place: where the object stands, as one would index the state: ``"['model'].head"``; ``""``
            where it is the state itself, or not known.
        name: what was looked up, called or filled: ``"module.Class"``; ``""`` where not known.
    """

    default_hint = (
        "the code that the file names has to be importable, and as it was when the file was saved"
    )

    def __init__(
        self,
        path: str,
        problem: str,
        offset: int | None = None,
        hint: str | None = None,
        place: str = "",
        name: str = "",
    ) -> None:
        self.place = place
        self.name = name
        super().__init__(path, problem, offset, hint)


class UnsafeLoadError(CorruptCheckpointError):
    """``weights_only=True`` met something that a file of weights has no need of.

    Attributes:
        refused: the globals or opcodes that were refused, in order of appearance.
    """

    default_hint = (
        "if you trust the file, name what it needs in genesis.add_safe_globals([...]) "
        "or load it with weights_only=False"
    )

    def __init__(
        self,
        path: str,
        problem: str,
        offset: int | None = None,
        hint: str | None = None,
        refused: tuple[str, ...] = (),
    ) -> None:
        self.refused = refused
        super().__init__(path, problem, offset, hint)


class UnpicklableStateError(GenesisError, pickle.PicklingError):
    """Something in the state can be saved neither by pickle nor by dill.

    Attributes:
        place: where it stands, as one would index it: ``"['model']['hooks'][0]"``; of several such
            things that of the one nearest to the top.
        problem: what the pickler said.
        hint: what to do about it.
    """

    default_hint = "remove it from the state, or give its class a __reduce__ or __getstate__"

    def __init__(self, place: str, problem: str, hint: str | None = None) -> None:
        self.place = place
        self.problem = problem
        self.hint = hint or self.default_hint
        super().__init__(f"cannot save state{place}: {problem}; {self.hint}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.place, self.problem, self.hint)


class DurabilityUnknownError(GenesisError, OSError):
    """The new file stands at its path, but the step after that failed.

    The save is committed and every reader sees the new file. Where the directory could not be
    synced it is not known whether the file outlives a power cut; the backup was left in place.

    Attributes:
        path: the file.
        problem: what failed after the commit.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: committed, but {problem}; check the disk and save again")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.problem)


class RecoveredFromBackupWarning(UserWarning):
    """A missing or damaged file was replaced, for this load, by the backup beside it."""


class PrecisionWarning(UserWarning):
    """A load gives numbers of fewer bits than the file holds, since this process has no others."""
