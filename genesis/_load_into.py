"""Filling what is there: tensors and arrays of a model get the bytes of a checkpoint in place.

The file is mapped, so there is never a second copy of the model; names, shapes and dtypes are
compared before anything is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from ._arguments import has_state_dict, what_is_held
from ._pickle import sketch


def fill(into: Any, state: Any, file_path: str) -> None:
    """Copy a loaded state into a module's tensors, or into a dict of tensors and arrays.

    Raises:
        ValueError: names, shapes or dtypes differ, or a target takes no elements; all of it is
            named, nothing is changed.
        TypeError: `into` is neither, or holds what cannot be filled in place.
    """
    found, wanted = dict(_leaves(state)), dict(_leaves(_targets(into)))
    _refuse_others(state, found, wanted, file_path, _refusal)
    for path, target in wanted.items():
        _copy(target, found[path])


def assign(into: Any, state: Any, file_path: str) -> None:
    """Make the tensors of a loaded state a module's own. Raises as `fill`, but that a target may be
    one that takes no elements."""
    if not (has_state_dict(into) and hasattr(into, "named_parameters")):
        raise TypeError(f"assign=True is for a module of torch, not for a {type(into).__name__}")
    found, wanted = dict(_leaves(state)), dict(_leaves(into.state_dict()))
    _refuse_others(state, found, wanted, file_path, lambda target: "")
    into.load_state_dict(state, assign=True)


def _refuse_others(
    state: Any,
    found: dict[str, Any],
    wanted: dict[str, Any],
    file_path: str,
    refusal: Callable[[Any], str],
) -> None:
    """Refuse a state that does not fit, with everything in which it does not.

    Args:
        found, wanted: leaves by their paths.
        refusal: why a target would not take what fits it.
    """
    if not (found.keys() & wanted.keys()):
        raise ValueError(f"{file_path} holds another state: {what_is_held(state)}")
    problems = [*_differences(found, wanted, refusal)]
    if problems:
        listed = "; ".join(problems)
        raise ValueError(f"{file_path} does not fit, and nothing was changed: {listed}")


def part_of(state: Any, part: str | None, into: Any) -> Any:
    """What `into` is filled from.

    Raises:
        KeyError: the state has no such part.
    """
    if part is None:
        is_checkpoint = isinstance(state, dict) and "model_state_dict" in state
        is_model = hasattr(into, "named_parameters")
        return state["model_state_dict"] if is_checkpoint and is_model else state
    found = sketch.chosen(state, part)
    rest = part
    while rest:
        (key,) = found
        found, rest = found[key], rest[len(str(key)) + 1 :]
    return found


def _targets(into: Any) -> Any:
    if has_state_dict(into) and hasattr(into, "named_parameters"):
        return into.state_dict()
    if isinstance(into, MutableMapping):
        return into
    raise TypeError(
        f"load_into fills a module or a dict of tensors and arrays, not a {type(into).__name__}: "
        "use its load_state_dict(genesis.load(...))"
    )


def _leaves(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(part, dict | MutableMapping):
        yield path, part
        return
    below = f"{path}/" if path else ""
    for key, value in part.items():
        yield from _leaves(value, f"{below}{key}")


def _differences(
    found: dict[str, Any], wanted: dict[str, Any], refusal: Callable[[Any], str]
) -> Iterator[str]:
    for path in wanted:
        if path not in found:
            yield f"{path} is not in the file"
            continue
        here, there = _look(wanted[path]), _look(found[path])
        if here is None:
            yield f"{path} is a {type(wanted[path]).__name__}, which cannot be filled"
        elif here != there:
            described = "no tensor or array" if there is None else f"{there[1]} of {there[0]}"
            yield f"{path} is {here[1]} of {here[0]}, in the file {described}"
        elif why := refusal(wanted[path]):
            yield f"{path} {why}"
    for path in found:
        if path not in wanted:
            yield f"{path} is in the file alone"


def _look(thing: Any) -> tuple[tuple[int, ...], str] | None:
    """Shape and dtype, of what has both and can be written to."""
    if not hasattr(thing, "shape") or not (hasattr(thing, "copy_") or _is_numpy(thing)):
        return None
    return tuple(thing.shape), str(thing.dtype).removeprefix("torch.")


def _refusal(target: Any) -> str:
    """Why a target would refuse its elements, or lose them; ``""`` if it takes them. Asked before
    the first copy, for a copy that fails would leave the targets before it changed."""
    if _is_numpy(target):
        return "" if target.flags.writeable else "is read-only"
    if target.is_meta:
        return "is on the device meta, which holds no elements: pass assign=True"
    steps = zip(target.shape, target.stride(), strict=True) if _is_strided(target) else ()
    if any(length > 1 and step == 0 for length, step in steps):
        return "is expanded, so that elements share their memory: clone it first"
    return ""


def _is_strided(tensor: Any) -> bool:
    return str(tensor.layout) == "torch.strided"


def _is_numpy(thing: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(thing, numpy.ndarray)


def _copy(target: Any, source: Any) -> None:
    if _is_numpy(target):
        target[...] = source
    else:
        import torch

        with torch.no_grad():
            target.copy_(torch.as_tensor(source))
