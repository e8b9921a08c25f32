"""Metadata of a checkpoint as JSON: takes what people have, and names what cannot be.

Numbers of NumPy, torch and JAX become Python's, a mapping becomes a dict, a tuple a list. What JSON
has no word for, inf and nan, is noted apart. Nothing else is converted, and nothing is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_MAX_DEPTH = 100
_MAX_BITS = 10_000
"""Of an integer: Python converts none of more than 4,300 digits to text and back."""

_CURE = "metadata is for JSON values; anything else belongs in the state"

Note = tuple[list[str | int], str]
"""Where a value stands that JSON cannot write, and what it is: ``(["best"], "inf")``."""


def encode(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[Note]]:
    """Metadata as JSON values, with ``None`` for each inf and nan, and the notes on those.

    Raises:
        TypeError, ValueError: something in it cannot be written; the message names its place.
    """
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping of JSON values, not {_kind(metadata)}")
    notes: list[Note] = []
    return _mapping(metadata, [], notes), notes


def decode(metadata: dict[str, Any], notes: list[Any]) -> dict[str, Any]:
    """Put back what `encode` noted apart.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the notes are not of this metadata.
    """
    for steps, word in notes:
        *above, last = steps
        inner: Any = metadata
        for step in above:
            inner = inner[step]
        if inner[last] is not None or word not in ("inf", "-inf", "nan"):
            raise ValueError(f"no place for {word!r:.20}")
        inner[last] = float(word)
    return metadata


def _value(value: Any, place: list[str | int], notes: list[Note]) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return _int(value, place)
    if isinstance(value, float):
        return _float(float(value), place, notes)
    if len(place) > _MAX_DEPTH:
        raise ValueError(
            f"{_named(place[:3])} is nested more than {_MAX_DEPTH} deep, or holds itself"
        )
    if isinstance(value, Mapping):
        return _mapping(value, place, notes)
    if isinstance(value, list | tuple):
        return [_value(each, [*place, number], notes) for number, each in enumerate(value)]
    return _value(_number(value, place), place, notes)


def _int(value: int, place: list[str | int]) -> int:
    if value.bit_length() > _MAX_BITS:
        raise ValueError(f"{_named(place)} has more than {_MAX_BITS:,} bits; {_CURE}")
    return int(value)


def _float(value: float, place: list[str | int], notes: list[Note]) -> float | None:
    if math.isfinite(value):
        return value
    notes.append((place, str(value)))
    return None


def _number(value: Any, place: list[str | int]) -> Any:
    """The Python number of a NumPy scalar or a 0-dimensional array or tensor."""
    hint = ""
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        if getattr(value, "mask", False):
            raise TypeError(f"{_named(place)} is masked, so it has no value; {_CURE}")
        try:
            number = value.item()
        except Exception as exc:  # of a device without memory, or of a trace
            raise TypeError(f"{_named(place)} is {_kind(value)} without a value: {exc}") from exc
        if type(number) in (bool, int, float, str):
            return number
    elif hasattr(value, "tolist"):
        hint = " (its tolist() can be written)"
    raise TypeError(f"{_named(place)} is {_kind(value)}{hint}; {_CURE}")


def _mapping(mapping: Mapping[Any, Any], place: list[str | int], notes: list[Note]) -> Any:
    made: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    for key, value in mapping.items():
        text = _key(key, place)
        if text in made:
            raise ValueError(
                f"{_named(place)} has the keys {keys[text]!r} and {key!r}, which JSON takes for one"
            )
        keys[text] = key
        made[text] = _value(value, [*place, text], notes)
    return made


def _key(key: Any, place: list[str | int]) -> str:
    """A key as JSON writes it."""
    if isinstance(key, str):
        return str(key)
    if getattr(key, "shape", None) == ():
        key = _number(key, place)
    if isinstance(key, bool) or key is None:
        return {True: "true", False: "false", None: "null"}[key]
    if isinstance(key, int):
        return int.__repr__(_int(key, place))
    if isinstance(key, float) and math.isfinite(key):
        return float.__repr__(key)
    raise TypeError(f"{_named(place)} has the key {key!r:.80} of {_kind(key)}; {_CURE}")


def _named(place: list[str | int]) -> str:
    return "metadata" + "".join(f"[{step!r:.60}]" for step in place)


def _kind(value: object) -> str:
    cls = type(value)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )
