"""What is taken of a state and its metrics for a save, and how a loaded state is given back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from .._arguments import has_state_dict


def taken(state: Any) -> Any:
    """What is saved of a state: what its ``state_dict`` gives, and that of the values of a dict."""
    if has_state_dict(state):
        return state.state_dict()
    if type(state) is dict:
        return {
            key: part.state_dict() if has_state_dict(part) else part for key, part in state.items()
        }
    return state


def give_back(into: Any, state: Any) -> None:
    """Put a loaded state into what `taken` took it from."""
    if callable(getattr(into, "load_state_dict", None)):
        into.load_state_dict(state)
        return
    if not isinstance(into, MutableMapping) or not isinstance(state, Mapping):
        raise TypeError(
            f"into must have load_state_dict() or be a dict, and is a {type(into).__name__}"
        )
    if missing := [key for key in into if key not in state]:
        there = ", ".join(map(repr, state))
        raise KeyError(f"the checkpoint has no {', '.join(map(repr, missing))}; it has {there}")
    for key, part in into.items():
        if callable(getattr(part, "load_state_dict", None)):
            part.load_state_dict(state[key])
        else:
            into[key] = state[key]


def numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as numbers of Python.

    Raises:
        TypeError: one is no number, or has no name.
    """
    found: dict[str, float] = {}
    for name, value in (metrics or {}).items():
        number = number_of(value)
        if number is None or not isinstance(name, str):
            raise TypeError(f"metrics[{name!r}] is no number by a name, but {value!r:.80}")
        found[name] = number
    return found


def number_of(value: Any) -> float | None:
    """A number of Python, NumPy or a tensor of one element; ``None`` for anything else."""
    if isinstance(value, str | bytes):
        return None
    try:
        # Not float() at once, which warns of a tensor that requires gradients.
        return float(value.item() if callable(getattr(value, "item", None)) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
