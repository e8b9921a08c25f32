"""What a file is worth: whole or damaged, and whether it is laid out as a checkpoint.

Every byte is read and nothing of it is run: no object is built, no module imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from ._errors import (
    ChecksumError,
    CorruptCheckpointError,
    NewerFormatError,
    NotACheckpointError,
    TruncatedError,
)
from ._file import reader
from .storage.local import BACKUP_SUFFIX

Kind = Literal[
    "sound", "layout", "missing", "unreadable", "truncated", "damaged", "newer-format",
    "not-a-checkpoint",
]  # fmt: skip

_KINDS: Final[tuple[tuple[type[CorruptCheckpointError], Kind], ...]] = (
    (TruncatedError, "truncated"),
    (ChecksumError, "damaged"),
    (NewerFormatError, "newer-format"),
    (NotACheckpointError, "not-a-checkpoint"),
    (CorruptCheckpointError, "damaged"),
)
_VALID: Final = "Checkpoint is valid"


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found.

    Attributes:
        ok: whether the file is whole, so that `load` gives back what was saved.
        kind: ``"sound"``; ``"layout"``: whole too, but not as `save_checkpoint` lays it out;
            ``"missing"``; ``"unreadable"``: the system refuses it; ``"truncated"``; ``"damaged"``;
            ``"newer-format"``: of a later genesis; ``"not-a-checkpoint"``: another kind of file.
        problem: what is wrong, ``""`` for a sound file.
        place: where: ``"byte 1,234"`` of the file or ``"['model_state_dict']['w']"`` of the state,
            ``""`` where no single place is to blame.
    """

    ok: bool
    kind: Kind
    problem: str = ""
    place: str = ""

    def __bool__(self) -> bool:
        return self.ok


def verify(path: str) -> Report:
    """The report on a file, the backup beside it mentioned where `load` would return that."""
    report = _report(path)
    backup = path + BACKUP_SUFFIX
    if report.kind in ("missing", "truncated", "damaged", "not-a-checkpoint") and reader.is_sound(
        backup
    ):
        problem = f"{report.problem}; a sound backup stands beside it: {backup}"
        return Report(False, report.kind, problem, report.place)
    return report


def _report(path: str) -> Report:
    try:
        problem, place = _judge(reader.outline(path))
    except FileNotFoundError:
        return Report(False, "missing", f"there is no file {path}")
    except OSError as exc:
        return Report(False, "unreadable", f"{path}: {exc.strerror or exc}")
    except CorruptCheckpointError as exc:
        kind = next(kind for error, kind in _KINDS if isinstance(exc, error))
        place = "" if exc.offset is None else f"byte {exc.offset:,}"
        return Report(False, kind, exc.problem, place)
    return Report(True, "layout" if problem else "sound", problem, place)


def validate(path: str) -> tuple[bool, str]:
    """Whether a file is a checkpoint of a model with parameters, and what is wrong if not."""
    try:
        problem, _place = _judge(reader.outline(path))
    except (OSError, CorruptCheckpointError) as exc:
        return False, f"Error validating checkpoint: {exc}"
    return not problem, problem or _VALID


def _judge(checkpoint: Any) -> tuple[str, str]:
    """What is wrong with the layout, and where; both empty where nothing is."""
    if not isinstance(checkpoint, dict):
        return "Checkpoint is not a dictionary", ""
    if "model_state_dict" not in checkpoint:
        return "Missing model_state_dict", ""
    state, place = checkpoint["model_state_dict"], "['model_state_dict']"
    if not isinstance(state, dict):
        return "model_state_dict is not a dictionary", place
    if not state:
        return "model_state_dict is empty", place
    for key, value in state.items():
        if not hasattr(value, "shape") and not _is_no_tensor_by_right(key, value):
            return f"Invalid tensor for key {str(key)!r}", f"{place}[{str(key)!r}]"
    return "", ""


def _is_no_tensor_by_right(key: object, value: Any) -> bool:
    """What torch puts into a state dict beside tensors: what `get_extra_state` of a module gave,
    and the packed weights of a quantized layer with their dtype."""
    if not isinstance(key, str):
        return False
    *above, last = key.split(".")
    if last == "_extra_state":
        return True
    if last == "dtype" and above[-1:] == ["_packed_params"]:
        return getattr(value, "name", "").startswith("torch.")
    leaves = list(_leaves(value)) if last == "_packed_params" else []
    tensors = [leaf for leaf in leaves if hasattr(leaf, "shape")]
    return bool(tensors) and all(leaf is None or hasattr(leaf, "shape") for leaf in leaves)


def _leaves(value: Any) -> Iterator[Any]:
    parts = value if isinstance(value, (list, tuple)) else (value,)
    for part in parts:
        yield from part if isinstance(part, (list, tuple)) else (part,)
