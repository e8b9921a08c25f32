"""What is in a file, by its skeleton alone: no array is read and no object is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ._file import reader
from ._file.layout import Mark


@dataclass(frozen=True, slots=True)
class ArrayRow:
    """A tensor or an array of a file.

    Attributes:
        path: the keys that lead to it, joined by ``/``, as the option `only` of `load` takes them;
            numbers stand for places in lists, through which `only` does not go.
        kind: ``"torch"`` or ``"numpy"``; arrays of JAX are ``"numpy"`` in a file.
        dtype: its name as the framework writes it: ``"bfloat16"``, ``"<f4"``.
        shape: its lengths.
        bytes: of its elements.
        offset: of its first element in the data region of the file, in bytes.
    """

    path: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What `inspect` found.

    Attributes:
        path: of the file.
        bytes: its size.
        arrays: a row for each tensor and array, in the order of the state.
        values: everything else that is plain, by its path: numbers, strings, ``None``.
        writer: the name and version of what wrote it, ``""`` for a plain pickle.
        python: the version of Python that wrote it.
        pickler: ``"pickle"`` or ``"dill"``: what reading it takes.
        metadata: what the save was given.
        step, time, metrics: of a manager's checkpoint; ``None``, 0.0 and ``{}`` for any other.
    """

    path: str
    bytes: int
    arrays: tuple[ArrayRow, ...]
    values: dict[str, Any]
    writer: str = ""
    python: str = ""
    pickler: str = "pickle"
    metadata: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    time: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def array_bytes(self) -> int:
        """Bytes of all arrays; those that share memory are counted each."""
        return sum(row.bytes for row in self.arrays)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain containers, for JSON say."""
        return asdict(self)


def inspect(path: str) -> Contents:
    """The contents of a file."""
    size, index, outline = reader.contents(path)
    rows: list[ArrayRow] = []
    values: dict[str, Any] = {}
    for place, leaf in _leaves(outline):
        if isinstance(leaf, ArrayRow):
            rows.append(leaf)
        else:
            values[place] = leaf
    mark = index.mark if index else Mark()
    return Contents(
        path=path,
        bytes=size,
        arrays=tuple(rows),
        values=values,
        writer=index.writer if index else "",
        python=index.python if index else "",
        pickler=index.pickler if index else "pickle",
        metadata=index.metadata if index else {},
        step=mark.step,
        time=mark.time,
        metrics=mark.metrics,
    )


_PLAIN = bool, int, float, complex, str, bytes, type(None)


def _leaves(outline: object) -> Iterator[tuple[str, Any]]:
    """Arrays as rows, and plain values, each with its path. What only code could build is left out,
    but for the arrays in it. A container that stands in several places is walked in the first."""
    from ._safe.described import ArrayInfo, Opaque

    seen: set[int] = set()
    waiting: list[tuple[str, object, bool]] = [("", outline, True)]
    while waiting:
        path, part, is_known = waiting.pop()
        if isinstance(part, ArrayInfo):
            row = ArrayRow(path, part.kind, part.dtype, part.shape, part.nbytes, part.offset)
            yield path, row
        elif isinstance(part, _PLAIN):
            if is_known:
                yield path, part
        elif id(part) not in seen:
            seen.add(id(part))
            inner: list[tuple[object, object]] = []
            if isinstance(part, dict):
                inner = list(part.items())
            elif isinstance(part, list | tuple):
                inner = list(enumerate(part))
            elif isinstance(part, Opaque):
                inner, is_known = list(enumerate(part.parts)), False
            below = f"{path}/" if path else ""
            waiting += [
                (f"{below}{_shown(key)}", value, is_known) for key, value in reversed(inner)
            ]


def _shown(key: object) -> str:
    return key if isinstance(key, str) else repr(key)[:200]
