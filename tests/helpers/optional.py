"""The libraries that genesis works with and does not need, as far as they are installed.

Each name is the module itself, or a stand-in that is false and skips whatever uses it: the test,
or the whole file of tests if that uses it while it is imported. No version is looked at.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest

OPTIONAL = ("torch", "jax", "sklearn")


class Missing:
    """What stands for a library that is not installed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by pytest and inspect of whatever a file of tests holds
            raise AttributeError(name)
        skip(self._name)


def skip(name: str) -> Any:
    pytest.skip(f"{name} is not installed", allow_module_level=True)


def optional(name: str) -> Any:
    """A module of one of these libraries, or its stand-in."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name not in OPTIONAL:  # it is installed, and lacks something itself
            raise
        return Missing(exc.name)


torch = optional("torch")
nn = optional("torch.nn")
jax = optional("jax")

needs_torch = pytest.mark.skipif(not torch, reason="torch is not installed")
"""For tests that use it in a program of their own."""
