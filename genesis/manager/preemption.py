"""A signal that asks a run to end soon, noted instead of obeyed at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any

from .._engine.futures import log


class Preemption:
    """Whether one of some signals has come, as a context manager; see
    `CheckpointManager.preemption`.

    Attributes:
        signal: the first that came, ``None`` so far.
    """

    def __init__(
        self, signals: Iterable[int], grace: float | None, flush: Callable[[float | None], None]
    ) -> None:
        self.signal: signal.Signals | None = None
        self._signals = tuple(map(signal.Signals, signals))
        self._grace = grace
        self._flush = flush
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Preemption:
        try:
            for number in self._signals:
                self._before[number] = signal.signal(number, self._note)
        except ValueError as exc:
            self._restore()
            raise RuntimeError("preemption needs the main thread, which receives signals") from exc
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            log.info("%s: the run is asked to end", self.signal.name)
        before = self._before.get(signal.Signals(number))
        if callable(before):
            before(number, frame)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._flush(self._grace)
        except Exception as exc:
            if error is None:
                raise
            log.error("a save failed beside the error that ends the run", exc_info=exc)
        finally:
            self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            # Not known where it was not set from Python.
            signal.signal(number, signal.SIG_DFL if before is None else before)
