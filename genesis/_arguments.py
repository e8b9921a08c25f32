"""Arguments that were meant otherwise: what stands in the place of a path, a state or an object is
named, with the call that was meant.

It looks at types and names only, and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MethodType
from typing import Any

_KEYS_SHOWN = 10


def refuse_swapped(state: object, file_path: object) -> None:
    """Refuse a path that stands where the state belongs, and the other way round.

    Raises:
        TypeError: so it is.
    """
    if _is_path(state) and not _is_path(file_path):
        raise TypeError(
            f"the path comes last, and is {_described(file_path)} here; the first argument, "
            f"{state!r:.80}, looks like the path: swap them"
        )


def refuse_objects(**states: object) -> None:
    """Refuse a model or an optimizer where its state dict is expected.

    Raises:
        TypeError: one of them has a ``state_dict()``, or is that method.
    """
    for name, thing in states.items():
        if isinstance(thing, MethodType) and thing.__name__ == "state_dict":
            raise TypeError(f"{name} is the method state_dict, not what it returns: call it")
        if has_state_dict(thing) and not isinstance(thing, Mapping):
            raise TypeError(f"{name} is {_described(thing)}, not its state: pass its .state_dict()")


def state_of(name: str, thing: Any) -> Any:
    """What a model or an optimizer gives as its state.

    Raises:
        TypeError: it has no ``state_dict()``.
    """
    if not has_state_dict(thing):
        meant = (
            "pass the object itself, not its state"
            if isinstance(thing, Mapping)
            else ("pass an object that has one, or save your own dict with genesis.save")
        )
        raise TypeError(f"{name} is {_described(thing)}, which has no state_dict(): {meant}")
    return thing.state_dict()


def what_is_held(state: object) -> str:
    """What a loaded state is, for people who looked for something else in it."""
    if not isinstance(state, Mapping):
        return f"it holds {_described(state)}"
    if not state:
        return "it holds an empty dict"
    keys = [f"{key!r:.60}" for key in list(state)[:_KEYS_SHOWN]]
    more = len(state) - len(keys)
    listed = ", ".join(keys) + (f" and {more} more" if more else "")
    bare = all(hasattr(value, "shape") for value in state.values())
    return f"it holds {listed}" + ("; these look like a bare model state dict" if bare else "")


def _is_path(thing: object) -> bool:
    return isinstance(thing, str | bytes | os.PathLike)


def has_state_dict(thing: object) -> bool:
    """Whether a thing is an object, and no class, with a ``state_dict()``."""
    return not isinstance(thing, type) and callable(getattr(thing, "state_dict", None))


def _described(thing: object) -> str:
    name = type(thing).__name__
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"
