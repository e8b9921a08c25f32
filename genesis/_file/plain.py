"""Files of plain ``pickle.dump`` and ``dill.dump``: checked for form, then unpickled.

Such a file has no checksums, so its opcodes are walked first: what is cut off, followed by other
bytes or no pickle at all is refused before any object is built.
"""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

from .._errors import NotACheckpointError, RebuildError
from .._pickle import loading, whereabouts
from ..storage.protocols import Source
from . import kinds

_OF_DISORDER = pickle.UnpicklingError, EOFError, IndexError
"""What the unpickler itself raises, where opcodes follow each other that cannot."""

_OPCODES = frozenset(ord(opcode.code) for opcode in pickletools.opcodes)


def load_pickle(path: str, source: Source, *, weights_only: bool, map_location: Any = None) -> Any:
    """Unpickle an open file, with dill, which reads both kinds. `path` is for messages, the
    rest as for `genesis.load`.

    Raises:
        NotACheckpointError: it is not one whole pickle.
        RebuildError: an object in it cannot be built.
        UnsafeLoadError: `weights_only` refused something in it.
    """
    stream = read_pickle(path, source)
    if weights_only:
        from .. import _safe

        return _safe.load(stream, data=None, path=path, map_location=map_location)
    try:
        return loading.load_foreign(stream, path=path, map_location=map_location)
    except RebuildError as exc:
        cause = exc.__cause__
        if not isinstance(cause, _OF_DISORDER) or not whereabouts.is_of_unpickler(cause):
            raise
        problem = f"the pickle cannot be loaded ({type(cause).__name__}: {cause})"
        raise NotACheckpointError(path, problem) from cause


def read_pickle(path: str, source: Source) -> bytes:
    """The bytes of an open file that is one whole pickle. Raises as `load_pickle`."""
    size = source.size()
    if not size:
        raise NotACheckpointError(path, "the file is empty", 0)
    start = refuse_other_kinds(path, source)
    if start[0] not in _OPCODES:
        raise NotACheckpointError(path, f"not a pickle (it begins with {start[:1]!r})", 0)
    _check_form(path, source, start)
    return source.read(size, 0)


def refuse_other_kinds(path: str, source: Source) -> bytes:
    """Refuse files of other programs by name, before they are read to the end; return how any
    other file begins."""
    size = source.size()
    start = source.read(kinds.LOOKED_AT, 0)
    end = source.read(kinds.LOOKED_AT, max(size - kinds.LOOKED_AT, 0))
    if kind := kinds.of_file(start, end, size):
        raise NotACheckpointError(path, kind.problem, 0, kind.hint)
    return start


def _check_form(path: str, source: Source, start: bytes) -> None:
    # Not with this module: it is a fifth of what `import genesis` would take.
    from .._safe.form import end_of_pickle
    from .._safe.machine import MalformedError

    size = source.size()
    try:
        end = end_of_pickle(source.read, size)
    except MalformedError as exc:
        problem, position = exc.args
        raise _no_pickle(path, f"not a pickle ({problem})", position, start) from exc
    if end != size:
        problem = f"{size - end:,} more bytes follow the end of the pickle"
        raise _no_pickle(path, problem, end, start)


def _no_pickle(path: str, problem: str, position: int, start: bytes) -> NotACheckpointError:
    kind = kinds.of_failed_pickle(start)
    if kind is None:
        return NotACheckpointError(path, problem, position)
    return NotACheckpointError(path, kind.problem, 0, kind.hint)
