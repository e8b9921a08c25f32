"""A module of torch under a name of ours: `genesis.nn` is torch.nn, `genesis.optim` is torch.optim.

torch is loaded when one of the two is first imported or used, never before.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def alias(name: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of the module ``genesis.NAME`` that stands for
    ``torch.NAME``.

    The modules inside it that torch has loaded get a name of ours as well, so that
    ``import genesis.nn.functional as F`` finds torch's own and loads no second copy.

    Raises:
        ModuleNotFoundError: torch is not installed.
    """
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"genesis.{name} is torch.{name}, and torch is not installed; "
            "install it with: pip install torch",
            name="torch",
        ) from exc
    module = importlib.import_module(f"torch.{name}")
    for inner, loaded in tuple(sys.modules.items()):
        if inner.startswith(f"torch.{name}."):
            sys.modules.setdefault(f"genesis{inner.removeprefix('torch')}", loaded)

    def look_up(attribute: str) -> Any:
        return getattr(module, attribute)

    return look_up, lambda: dir(module)
