"""Where users meet genesis: the names of public objects, and the line of theirs that called us.

It renames what a module lists in ``__all__`` and touches nothing else.
"""

from __future__ import annotations

import sys
from typing import Any, get_type_hints


def publish(namespace: dict[str, Any]) -> None:
    """Let each class and function in ``__all__`` say that it is of this module: a pickle, `help`
    and a traceback then show no private module, and moving the code breaks no pickle.

    Args:
        namespace: the module's ``globals()``.
    """
    for name in namespace["__all__"]:
        thing = namespace[name]
        if getattr(thing, "__module__", "").startswith("genesis."):
            if "__annotations__" in vars(thing) and isinstance(thing, type):
                # Looked up while they still can be: by the name of the module that wrote them.
                thing.__annotations__ = get_type_hints(thing)
            thing.__module__ = namespace["__name__"]


def level_of_caller() -> int:
    """The `stacklevel` with which our caller warns the first frame that is not of genesis."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    return level
