"""How the arrays of each framework are pickled: one module a framework, found by name.

A framework's module is imported when an object of that framework is met, and an object of a
framework is met only where the framework is loaded already. So nothing here imports any of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from .buffers import DATA, NDARRAY, DataRegion

Reducer = Callable[[Any], Any]
"""Takes an object; returns what `object.__reduce__` may return."""

_MODULES = {
    "torch": "torch",
    "numpy": "numpy",
    "ml_dtypes": "numpy",
    "jax": "jax",
    "jaxlib": "jax",
}
"""The root package of a class -> the module of this package that knows it."""

_MARKS = {"torch": "Tensor", "numpy": "ndarray", "jax": "Array"}
"""What a framework has and another module of its name, a script of the user's say, has not."""

_ABSENT = object()


def is_another(root: str) -> bool:
    """Whether a package that is called like a framework has been loaded and is not the framework:
    somebody's own, or ``None`` where an import of it is forbidden."""
    module = sys.modules.get(root, _ABSENT)
    return root in _MARKS and module is not _ABSENT and not hasattr(module, _MARKS[root])


def reducer_for(cls: type, region: DataRegion) -> Reducer | None:
    """How a class's instances are reduced, their bytes placed in `region`.

    ``None`` where no framework claims the class, or the framework leaves it to itself.
    """
    for base in cls.__mro__:
        module = base.__module__
        root = module.partition(".")[0] if isinstance(module, str) else ""
        if (name := _MODULES.get(root)) and not is_another(name):
            reducer: Reducer | None = import_module(f"{__package__}.{name}").reducer_for(
                cls, region
            )
            return reducer
    return None


def load_those_in_use() -> None:
    """Import the modules of the frameworks that the program has loaded, for who must not be held by
    it later."""
    roots = [root for root in _MODULES if sys.modules.get(root) is not None]
    names = {_MODULES[root] for root in roots}
    for name in sorted(names | ({"torch_plain"} if "torch" in names else set())):
        # A module that only has the name of a framework is no reason to fail before it is needed.
        with suppress(Exception):
            import_module(f"{__package__}.{name}")


def opening(state: object, region: DataRegion) -> tuple[bytes, dict[int, tuple[int, Any]]]:
    """What stands in a skeleton of `state` behind its preamble: opcodes, and the memo that they
    leave. Their arrays are placed in `region`."""
    if "torch" not in sys.modules or is_another("torch"):
        return b"", _memo(object())
    torch = import_module(f"{__package__}.torch")
    # Not in a second layout: what was wrong with the first may be what the ledger left out.
    found = region.hints is None and import_module(f"{__package__}.torch_plain").ledger_for(state)
    if found:
        ledger, members = found
        return ledger.opcodes, ledger.open(members, region)
    return b"", _memo(torch.FROM_BUFFER)


def _memo(from_buffer: object) -> dict[int, tuple[int, Any]]:
    slots = DATA, from_buffer, NDARRAY
    return {id(slot): (number, slot) for number, slot in enumerate(slots)}


def preamble(region: DataRegion) -> bytes:
    """The opcodes that a skeleton begins with. They fill memo slot 2, which `NDARRAY` has, and
    tell a reader that no two arrays share a byte: that of a `DataRegion` is so."""
    return ARRAYS if region.has_arrays else _NO_ARRAYS


ARRAYS = b"\x80\x05\x8c\x05numpy\x8c\x07ndarray\x93\x940"
"""PROTO 5, the global ``numpy.ndarray``, MEMOIZE, POP. No pickler writes it like this."""

_NO_ARRAYS = b"\x80\x05N\x940"
"""PROTO 5, NONE, MEMOIZE, POP."""

PREAMBLES = ARRAYS, _NO_ARRAYS


def keeps_arrays_apart(skeleton: bytes | memoryview) -> bool:
    """Whether its writer promises that no two arrays share a byte of the data region."""
    return any(begins_with(skeleton, preamble) for preamble in PREAMBLES)


def begins_with(skeleton: bytes | memoryview, opcodes: bytes) -> bool:
    return skeleton[: len(opcodes)] == opcodes
