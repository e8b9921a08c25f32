"""How the arrays of each framework are pickled: one module a framework, found by name.

A framework's module is imported when an object of that framework is met, and an object of a
framework is met only where the framework is loaded already. So nothing here imports any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from .._plan import DataRegion

Reducer = Callable[[Any, DataRegion], Any]
"""Takes an object and the region for its bytes; returns what `object.__reduce__` may return, or
``NotImplemented`` for the object's own reduction."""

_MODULES = {
    "torch": "torch",
    "numpy": "numpy",
    "ml_dtypes": "numpy",
    "jax": "jax",
    "jaxlib": "jax",
    f"{__name__}.torch": "torch",
}
"""The root package of a class -> the module of this package that knows it."""


def reducer_for(cls: type) -> Reducer | None:
    """The reducer of a class's instances, ``None`` where no framework claims the class."""
    for base in cls.__mro__:
        module = base.__module__
        if name := _MODULES.get(module) or _MODULES.get(module.partition(".")[0]):
            reducer: Reducer | None = import_module(f"{__name__}.{name}").reducer_for(cls)
            return reducer
    return None
