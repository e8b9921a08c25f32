"""What stands for something outside of a state, a file say, is refused when it is saved.

A class is asked about once for each save; nothing here looks into an object's attributes.
"""

from __future__ import annotations

from ._frameworks import Reducer

_REFUSED: dict[type, Reducer] = {}
"""A class -> the reducer that raises for its instances."""


def reducer_for(cls: type) -> Reducer | None:
    """The reducer that refuses a class's instances, ``None`` where nothing speaks against them."""
    return next((_REFUSED[base] for base in cls.__mro__ if base in _REFUSED), None)
