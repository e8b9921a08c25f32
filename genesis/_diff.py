"""What is different between two checkpoints, array by array, with neither in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        path: the keys that lead to it, joined by ``/``.
        kind: ``"added"``: only in the second file; ``"removed"``: only in the first; ``"changed"``.
        what: in words: shapes and dtypes where they differ, else the values of what is no array.
        max_abs: the largest absolute difference of two elements; nan where one is nan and the other
            is not; ``None`` for what is no array or has another shape.
        max_rel: the same over the larger of the two.
    """

    path: str
    kind: Literal["added", "removed", "changed"]
    what: str
    max_abs: float | None = None
    max_rel: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """What `diff` found; true where there is any difference.

    Attributes:
        changes: the differences, in the order of the first file, then what was added.
        same: how many tensors, arrays and values are equal.
    """

    changes: tuple[Change, ...]
    same: int

    def __bool__(self) -> bool:
        return bool(self.changes)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain containers, for JSON say."""
        return asdict(self)


def diff(one: Any, other: Any) -> Difference:
    """The difference between two states whose arrays are mapped."""
    before, after = dict(_leaves(one)), dict(_leaves(other))
    changes: list[Change] = []
    for path, value in before.items():
        if path not in after:
            changes.append(Change(path, "removed", _described(value)))
        elif (change := _compare(path, value, after[path])) is not None:
            changes.append(change)
    added = [path for path in after if path not in before]
    changes += [Change(path, "added", _described(after[path])) for path in added]
    changed = sum(change.kind != "added" for change in changes)
    return Difference(tuple(changes), len(before) - changed)


def _leaves(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    inner: Any = None
    if isinstance(part, dict):
        inner = part.items()
    elif isinstance(part, list | tuple):
        inner = enumerate(part)
    if not inner:
        yield path, part
        return
    below = f"{path}/" if path else ""
    for key, value in inner:
        yield from _leaves(value, f"{below}{key}")


def _compare(path: str, before: Any, after: Any) -> Change | None:
    if not (_is_array(before) and _is_array(after)):
        if not _is_array(before) and not _is_array(after) and _equal(before, after):
            return None
        return Change(path, "changed", f"{_described(before)} -> {_described(after)}")
    if _described(before) != _described(after):
        return Change(path, "changed", f"{_described(before)} -> {_described(after)}")
    found = _distance(before, after)
    return None if found is None else Change(path, "changed", _described(before), *found)


def _is_array(thing: Any) -> bool:
    return hasattr(thing, "shape") and hasattr(thing, "dtype")


def _equal(before: Any, after: Any) -> bool:
    """Equal, nan to nan included."""
    if isinstance(before, float) and isinstance(after, float) and math.isnan(before):
        return math.isnan(after)
    return type(before) is type(after) and bool(before == after)


def _described(thing: Any) -> str:
    if _is_array(thing):
        return f"{str(thing.dtype).removeprefix('torch.')}{list(thing.shape)}"
    return f"{thing!r:.80}"


def _distance(before: Any, after: Any) -> tuple[float | None, float | None] | None:
    """The largest absolute and relative difference; ``None`` where there is none, and of ``None``
    where elements are no numbers."""
    import numpy as np

    one, other = _numpy(before), _numpy(after)
    if one is None or other is None:
        return None if bool((before == after).all()) else (None, None)
    if one.dtype.kind not in "biufc":
        return None if one.tobytes() == other.tobytes() else (None, None)
    worst = [0.0, 0.0]
    differs = False
    for a, b in _blocks(one, other):
        if a.tobytes() == b.tobytes():
            continue
        both = np.isnan(a) & np.isnan(b) if a.dtype.kind in "fc" else np.zeros(a.shape, bool)
        wide = complex if a.dtype.kind == "c" else np.longdouble
        x, y = np.where(both, 0, a).astype(wide), np.where(both, 0, b).astype(wide)
        with np.errstate(all="ignore"):
            gap = np.where(x == y, 0, abs(x - y))
            scale = np.maximum(abs(x), abs(y))
            share = np.where(gap == 0, 0, gap / np.where(scale == 0, 1, scale))
        differs = differs or bool(gap.any())
        for number, values in enumerate((gap, share)):
            worst[number] = _larger(worst[number], float(values.max()))
    return (worst[0], worst[1]) if differs else None


def _larger(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


_AT_ONCE = 1 << 20
"""Elements that are compared at a time."""


def _blocks(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    one, other = one.reshape(-1), other.reshape(-1)
    for low in range(0, one.size, _AT_ONCE):
        yield one[low : low + _AT_ONCE], other[low : low + _AT_ONCE]


def _numpy(array: Any) -> Any:
    """A tensor or an array as NumPy's, ``None`` where NumPy has no such thing."""
    import numpy as np

    if isinstance(array, np.ndarray):
        return array
    try:
        if hasattr(array, "detach"):
            array = array.detach()
            if array.dtype.itemsize < 4 and array.dtype.is_floating_point:
                array = array.float()
            return array.cpu().resolve_conj().resolve_neg().numpy()
        return np.asarray(array)
    except (TypeError, RuntimeError, NotImplementedError):
        return None
