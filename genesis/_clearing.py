"""What a save does to the dict it is given: it empties it when the file is durable, to free memory.

Nothing but a plain dict is ever emptied, nothing that came after the capture, and no error of it
reaches the save, which has succeeded. A dict that was emptied already is not saved unnoticed.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any

from ._engine.futures import log
from ._file import reader
from ._public import level_of_caller


def _is_plain(thing: object) -> bool:
    """Exactly a dict: a subclass, an optimizer's ``state`` say, may be somebody's live object."""
    return type(thing) in (dict, OrderedDict)


class Clearing:
    """Empties a dict of what was saved of it.

    Args:
        path: for the log.
        wanted: whether to do anything.
    """

    def __init__(self, state: Any, path: str, *, wanted: bool) -> None:
        self._state: Any = state if wanted and _is_plain(state) else {}
        self._path = path
        self._entries: dict[Any, Any] = {}

    def note(self) -> None:
        """Remember what the dict holds. Before the capture, not after it: what another thread puts
        in between would be removed without having been saved."""
        self._entries = dict(self._state)

    def clear(self) -> None:
        """Remove the entries that still hold what they held."""
        try:
            for key, value in self._entries.items():
                if self._state.get(key, self) is value:
                    del self._state[key]
        except Exception:  # of a key that compares in a way of its own, say
            log.warning("the dict saved to %s was not emptied", self._path, exc_info=True)


def refuse_emptied(state: Any, path: str, part: str | None = None) -> None:
    """Warn that a state is empty, as an earlier save may have left it.

    Args:
        part: a key of the state, to look at what stands there instead.

    Raises:
        ValueError: the file at `path` holds something, which the empty state would replace.
    """
    looked_at = state if part is None else state[part]
    if not _is_plain(looked_at) or looked_at:
        return
    name = "the state" if part is None else f"the state's {part!r}"
    reason = (
        "a save empties the dict that it is given, so an earlier save may have emptied this one; "
        "pass clear=False to that save to keep its dict, or to this one to save an empty state"
    )
    if reader.holds_something(path, part):
        raise ValueError(f"{path}: {name} is empty, and the file there is not; {reason}")
    warnings.warn(f"{path}: {name} is empty; {reason}", stacklevel=level_of_caller())
