"""Random generators: the global ones of Python, NumPy and torch, and those that a program makes.

A library that nobody has imported has drawn nothing, so none is imported here but to restore.
"""

from __future__ import annotations

import importlib
import random
import sys
import warnings
from typing import Any

from ._public import level_of_caller


def capture() -> dict[str, Any]:
    """Where the global generators stand: of Python, NumPy and torch, and of each CUDA device where
    CUDA is in use. Plain data and tensors."""
    found: dict[str, Any] = {"python": random.getstate()}
    if numpy := sys.modules.get("numpy"):
        found["numpy"] = numpy.random.get_state(legacy=False)
    if torch := sys.modules.get("torch"):
        found["torch"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def restore(found: dict[str, Any]) -> None:
    """Put the global generators back to where `capture` found them.

    What this machine does not have, a CUDA device or one of the libraries, is left out, with a
    `UserWarning`.
    """
    random.setstate(found["python"])
    if "numpy" in found and (numpy := _library("numpy")):
        numpy.random.set_state(found["numpy"])
    if "torch" in found and (torch := _library("torch")):
        torch.set_rng_state(_on_cpu(found["torch"]))
        _restore_cuda(torch, found.get("cuda", []))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        warnings.warn(
            f"the run had a random state of {name}, which is not installed here",
            stacklevel=level_of_caller(),
        )


def _restore_cuda(torch: Any, states: list[Any]) -> None:
    here = torch.cuda.device_count() if states else 0
    for device, state in enumerate(states[:here]):
        torch.cuda.set_rng_state(_on_cpu(state), device)
    if here < len(states):
        warnings.warn(
            f"the run had the random state of {len(states)} CUDA devices and there are {here} here;"
            " what is drawn on the others will differ",
            stacklevel=level_of_caller(),
        )


def is_generator(thing: object) -> bool:
    """Whether a thing is a generator of Python, NumPy or torch."""
    return _kind(thing) is not None


def state_of(generator: Any) -> Any:
    """Where a generator stands."""
    match _kind(generator):
        case "python":
            return generator.getstate()
        case "numpy":
            return generator.bit_generator.state
        case "numpy-legacy":
            return generator.get_state(legacy=False)
    return generator.get_state()


def set_state(generator: Any, state: Any) -> None:
    """Put a generator back to where `state_of` found it."""
    match _kind(generator):
        case "python":
            generator.setstate(state)
        case "numpy":
            generator.bit_generator.state = state
        case "numpy-legacy":
            generator.set_state(state)
        case _:
            generator.set_state(_on_cpu(state))


def _on_cpu(state: Any) -> Any:
    """Where torch wants it, whatever `map_location` the state was loaded with."""
    return state.cpu()


def _kind(thing: object) -> str | None:
    if isinstance(thing, random.Random):
        return "python"
    if numpy := sys.modules.get("numpy"):
        if isinstance(thing, numpy.random.Generator):
            return "numpy"
        if isinstance(thing, numpy.random.RandomState):
            return "numpy-legacy"
    torch = sys.modules.get("torch")
    return "torch" if torch and isinstance(thing, torch.Generator) else None
