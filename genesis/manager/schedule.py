"""When to save: every so many steps or seconds, as soon as the last save is durable, or by a rule
of the caller's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from .._engine.futures import SaveFuture

When = Callable[[int], bool] | Literal["durable"]


class Schedule:
    """Rules of which one is enough. Without any, every step is due.

    Raises:
        ValueError: a number is not above 0, or `when` is neither callable nor ``"durable"``.
    """

    def __init__(
        self, every_steps: int | None, every_seconds: float | None, when: When | None
    ) -> None:
        for name, value in (("every_steps", every_steps), ("every_seconds", every_seconds)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if when is not None and when != "durable" and not callable(when):
            raise ValueError(f"when must be 'durable' or take a step, not {when!r}")
        self._steps = every_steps
        self._seconds = every_seconds
        self._when = when
        self._began = time.monotonic()
        self._last: SaveFuture | None = None

    def note(self, future: SaveFuture | None) -> None:
        """A save has begun: of this future, or one that is durable already."""
        self._began, self._last = time.monotonic(), future

    def due(self, step: int) -> bool:
        """Whether a rule asks for a save at this step."""
        if self._steps is None and self._seconds is None and self._when is None:
            return True
        return (
            (self._steps is not None and step % self._steps == 0)
            or (self._seconds is not None and time.monotonic() - self._began >= self._seconds)
            or self._rule(step)
        )

    def _rule(self, step: int) -> bool:
        if self._when == "durable":
            return self._last is None or self._last.done()
        return self._when is not None and bool(self._when(step))
