"""Loading into what is there: models that must stay as they are if their state does not fit, and
tensors that others hold. Imports no library, and knows torch's objects where torch is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def load_doubtful_modules(parts: Mapping[str, Any], states: Mapping[str, Any]) -> set[str]:
    """Load the models whose states look as if they did not fit: `Module.load_state_dict` changes
    what it can before it raises, and a hook of a model may make an old state fit.

    Args:
        parts: all objects, by name; those that are no modules of torch are left alone.
        states: theirs.

    Returns:
        The names of those that were loaded.

    Raises:
        ValueError: some do not fit, each with what its ``load_state_dict`` said; nothing of any was
            changed.
    """
    doubtful = {name: part for name, part in parts.items() if not _looks_right(part, states[name])}
    # Only here, so that a state that fits costs no second copy of the model.
    before = [pair for module in doubtful.values() for pair in _copied(module)]
    errors: dict[str, Exception] = {}
    for name, module in doubtful.items():
        try:
            module.load_state_dict(states[name])
        except Exception as exc:
            errors[name] = exc
    if errors:
        for tensor, copy in before:
            tensor.copy_(copy)
        told = "; ".join(f"{name}: {exc}" for name, exc in errors.items())
        raise ValueError(f"the state does not fit this TrainState; {told}") from next(
            iter(errors.values())
        )
    return set(doubtful)


def filled_in_place(here: Any, saved: Any) -> bool:
    """Copy a tensor of torch into another of the same shape and dtype, on whatever device that is.

    Returns:
        Whether they were two such tensors.
    """
    if not _fills(here, saved):
        return False
    with sys.modules["torch"].no_grad():
        here.copy_(saved)
    return True


def would_be_orphaned(here: Any, saved: Any) -> bool:
    """Whether a tensor that an optimizer may hold would have to be replaced."""
    return is_trained(here) and not _fills(here, saved)


def is_trained(thing: Any) -> bool:
    """Whether a thing is a tensor of torch that an optimizer may hold."""
    torch = sys.modules.get("torch")
    if not torch or not isinstance(thing, torch.Tensor):
        return False
    return bool(thing.requires_grad and thing.is_leaf)


def _fills(here: Any, saved: Any) -> bool:
    torch = sys.modules.get("torch")
    if not torch or not isinstance(here, torch.Tensor) or not isinstance(saved, torch.Tensor):
        return False
    return bool(here.shape == saved.shape and here.dtype == saved.dtype)


def _looks_right(part: Any, state: Any) -> bool:
    torch = sys.modules.get("torch")
    if not torch or not isinstance(part, torch.nn.Module):
        return True
    return isinstance(state, Mapping) and _shapes(part.state_dict()) == _shapes(state)


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _shape(value) for name, value in state.items()}


def _shape(value: Any) -> Any:
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError):  # extra state; a parameter that has no shape yet
        return None


def _copied(module: Any) -> list[tuple[Any, Any]]:
    return [
        (tensor, tensor.to("cpu", copy=True))
        for tensor in module.state_dict().values()
        if _shape(tensor) is not None and hasattr(tensor, "copy_")
    ]
