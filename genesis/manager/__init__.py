"""A folder of checkpoints: when to save, what to keep, what to go on from.

The manager names files, finds them and removes old ones. Saving and loading are `_save`'s and
`_load`'s; retention decides and removes nothing; what there is, is read from the files' ends.
"""

from __future__ import annotations

import errno
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from operator import index
from signal import SIGTERM
from types import TracebackType
from typing import Any, Literal, Self, SupportsIndex, Unpack, overload

from .. import _load
from .._arguments import state_of
from .._engine.futures import SaveFuture, SaveReport, log
from .._engine.scheduler import Request, scheduler
from .._errors import (
    CorruptCheckpointError,
    NewerFormatError,
    RebuildError,
    RecoveredFromBackupWarning,
    UnsafeLoadError,
)
from .._file.layout import Mark
from .._options import (
    FilePath,
    LoadChoices,
    LoadOptions,
    SaveChoices,
    SaveOptions,
    check_names,
    spelled_out,
)
from .._os import files
from .._public import level_of_caller
from ..retention import Checkpoint, LastN, Mode, Retention, by_metric, check_mode
from .catalogue import Catalogue, named
from .links import BEST, LATEST, keep_pointed
from .names import Names
from .orders import Orders
from .parts import give_back, number_of, numbers, taken
from .preemption import Preemption
from .removal import being_read, remove, to_remove
from .schedule import Schedule, When
from .watch import News

Which = Literal["latest", "best"] | int

PREEMPTION = (SIGTERM,)
"""What schedulers of clusters send before they kill."""

_LOOKS = 10
"""How often the links are looked at again where other saves become durable meanwhile."""


class CheckpointManager:
    """The checkpoints of a run in one folder, one file a step.

        with genesis.CheckpointManager("run", keep=LastN(3) | BestN(1, "loss")) as manager:
            for step in range(manager.resume(state), 10_000):
                loss = train(step)
                if manager.due(step):
                    manager.save(step, state, metrics={"loss": loss}, background=True)

    The newest checkpoint is the one that was written last, whatever its step: a run that goes back
    to an earlier step keeps what it writes, and what it abandoned goes first. Old checkpoints are
    removed only after a newer one is durable and its ends have been read back; never the latest,
    one that this process is restoring, a damaged one, or, with `keep` or `links`, the best. Nothing
    but the files is the index, so several processes may use one folder, and one that only reads
    needs no permission to write. Thread-safe.

    Args:
        checkpoint_dir: made with the first save if it is missing. It is looked up here, once: a
            later change of the working directory, or of a symlink, leads nowhere else.
        max_checkpoints: how many of the newest to keep, at least 1.
        keep: what decides instead, of `genesis.retention`.
        metric, mode: what the best checkpoint is the best of, and whether ``"min"`` or ``"max"``
            is. A checkpoint without that metric, or with nan, is never the best.
        name: a template for the names of the files.
        every_steps, every_seconds, when: for `due`. `when` is called with a step, or is
            ``"durable"``: as soon as the last save is.
        links: keep ``latest.pth`` and ``best_model.pth`` beside the files, symlinks that are
            replaced in one step.

    Attributes:
        checkpoint_dir: the real path of the folder.

    Raises:
        ValueError: an argument is out of range, or `checkpoint_dir` is a URL.
    """

    def __init__(
        self,
        checkpoint_dir: FilePath,
        max_checkpoints: int = 5,
        *,
        keep: Retention | None = None,
        metric: str = "loss",
        mode: Mode = "min",
        name: str = "epoch_{step:06d}.pth",
        every_steps: int | None = None,
        every_seconds: float | None = None,
        when: When | None = None,
        links: bool = False,
    ) -> None:
        if max_checkpoints < 1:
            raise ValueError(f"max_checkpoints must be at least 1, not {max_checkpoints}")
        check_mode(mode)
        self.checkpoint_dir = files.resolve_directory(checkpoint_dir)
        self.max_checkpoints = max_checkpoints
        self._keep = keep
        self._metric, self._mode = metric, mode
        self._names = Names(name)
        self._schedule = Schedule(every_steps, every_seconds, when)
        self._links = links
        self.catalogue = Catalogue(self.checkpoint_dir, self._names)
        self._orders = Orders()
        self._pending: dict[SaveFuture, None] = {}

    # Saving

    @overload
    def save(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, Any] | None = ...,
        background: Literal[False] = ...,
        **options: Unpack[SaveOptions],
    ) -> SaveReport: ...
    @overload
    def save(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, Any] | None = ...,
        background: Literal[True],
        **options: Unpack[SaveOptions],
    ) -> SaveFuture: ...
    @overload
    def save(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, Any] | None = ...,
        background: bool,
        **options: Unpack[SaveOptions],
    ) -> SaveReport | SaveFuture: ...
    @spelled_out(SaveChoices)
    def save(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, Any] | None = None,
        background: bool = False,
        **options: Unpack[SaveOptions],
    ) -> SaveReport | SaveFuture:
        """Save a step.

        Args:
            step: a whole number from 0 up. A checkpoint of the same step is replaced.
            state: anything with a ``state_dict()``, such as a `TrainState`; or a dict, whose
                values may be such objects; or any other state that `genesis.save` takes. Nothing
                of it is emptied.
            metrics: numbers by name, NumPy's and tensors of one element included.
            background and every other option: as for `genesis.save`. Older checkpoints are removed
                when the new one is durable.

        Raises:
            ValueError: `step` is negative.
            TypeError: a metric is no number.
            OSError: as `genesis.save`. That an old checkpoint could not be removed is only logged.
        """
        return self._start(self.request(step, taken(state), numbers(metrics), options), background)

    @overload
    def save_checkpoint(
        self,
        model: Any,
        optimizer: Any,
        epoch: int,
        loss: Any,
        *,
        background: Literal[False] = ...,
        **options: Unpack[SaveOptions],
    ) -> SaveReport: ...
    @overload
    def save_checkpoint(
        self,
        model: Any,
        optimizer: Any,
        epoch: int,
        loss: Any,
        *,
        background: Literal[True],
        **options: Unpack[SaveOptions],
    ) -> SaveFuture: ...
    @overload
    def save_checkpoint(
        self,
        model: Any,
        optimizer: Any,
        epoch: int,
        loss: Any,
        *,
        background: bool,
        **options: Unpack[SaveOptions],
    ) -> SaveReport | SaveFuture: ...
    @spelled_out(SaveChoices)
    def save_checkpoint(
        self,
        model: Any,
        optimizer: Any,
        epoch: int,
        loss: Any,
        *,
        background: bool = False,
        **options: Unpack[SaveOptions],
    ) -> SaveReport | SaveFuture:
        """Save the states of a model and an optimizer with `epoch`, `loss` and a timestamp.

        Args:
            model, optimizer: anything with a ``state_dict()``.
            epoch: a whole number from 0 up.
            loss: stored; where it is one number, it is the metric ``"loss"`` too.
            background and every other option: as for `genesis.save`. Older checkpoints are removed
                when the new one is durable.

        Raises:
            ValueError: `epoch` is negative.
            TypeError: `model` or `optimizer` has no ``state_dict()``.
            OSError: as `save`. That an old checkpoint could not be removed is only logged.
        """
        request = self.checkpoint_request(model, optimizer, epoch, loss, options)
        return self._start(request, background)

    def checkpoint_request(
        self, model: Any, optimizer: Any, epoch: int, loss: Any, options: SaveOptions
    ) -> Request:
        """The save of what `save_checkpoint` saves."""
        checkpoint = {
            "epoch": epoch,
            "model_state_dict": state_of("model", model),
            "optimizer_state_dict": state_of("optimizer", optimizer),
            "loss": loss,
            "timestamp": time.time(),
        }
        metrics = {} if (number := number_of(loss)) is None else {"loss": number}
        return self.request(epoch, checkpoint, metrics, options)

    def request(
        self, step: int, state: Any, metrics: dict[str, float], options: SaveOptions
    ) -> Request:
        """The save of one step, with the removal of old ones at its end."""
        check_names(options, SaveChoices)
        name = self._names.name_of(step)
        files.make_directories(self.checkpoint_dir)
        with files.Directory(self.checkpoint_dir) as folder, named(self.checkpoint_dir):
            identity = folder.identity()
        place, now = self._orders.place(), time.time()

        def mark(stall: float | None) -> Mark:
            order = self._orders.order(place, self.catalogue.found())
            return Mark(order, int(step), now, metrics, stall)

        path = os.path.join(self.checkpoint_dir, name)
        return Request(
            path=files.resolve(path),
            state=state,
            done=lambda: self._tidy(path, identity),
            mark=mark,
            **options,
        )

    def _start(self, request: Request, background: bool) -> SaveReport | SaveFuture:
        if not background:
            report = scheduler.save(request)
            self._schedule.note(None)
            return report
        future = scheduler.submit(request)
        self.note(future)
        return future

    def note(self, future: SaveFuture) -> None:
        """Remember a save that is under way, and forget those that have ended well."""
        for each in tuple(self._pending):
            if each.done() and each._failure is None:
                self._pending.pop(each, None)
        self._pending[future] = None
        self._schedule.note(future)

    def due(self, step: int) -> bool:
        """Whether to save at this step: whether one of `every_steps`, `every_seconds` and `when`
        says so, and always where none was given."""
        return self._schedule.due(step)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every background save of this manager is durable.

        Raises:
            TimeoutError: some are not after `timeout` seconds.
            Exception: the first failure among those since the last call; the others are logged.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        failed: BaseException | None = None
        for future in tuple(self._pending):
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            error = future.exception(left)
            self._pending.pop(future, None)
            if error is not None and failed is not None:
                log.error("background save of %s failed", future.path, exc_info=error)
            failed = failed or error
        if failed is not None:
            raise failed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """`flush`; a failure of a save never hides the error that ends the block."""
        try:
            self.flush()
        except Exception as exc:
            if error is None:
                raise
            log.error("a background save failed beside %r", error, exc_info=exc)

    def preemption(
        self, signals: Iterable[int] = PREEMPTION, *, grace: float | None = None
    ) -> Preemption:
        """A context manager that notes a signal instead of dying of it, and is true from then on.

            with manager.preemption() as preempted:
                for step in ...:
                    ends = bool(preempted)
                    if ends or manager.due(step):
                        manager.save(step, state, background=True)
                    if ends:
                        break

        Ask it once a step: a signal between two questions would end the run without its last save.
        Handlers that were there before are called too, and are put back at the end. Leaving the
        block waits, at most `grace` seconds, until every save of this manager is durable.

        Raises:
            RuntimeError: it is entered on another thread than the main one.
            TimeoutError, Exception: at the end, as `flush`; logged where the block ends with an
                error of its own.
        """
        return Preemption(signals, grace, self.flush)

    # After a save

    def _tidy(self, saved: str, identity: tuple[int, int]) -> None:
        """Set the links, and remove what is not kept. A courtesy: the save that it follows is
        durable.

        Args:
            saved: the path that was saved.
            identity: of the folder that it was saved to.
        """
        try:
            with files.Directory(self.checkpoint_dir) as folder:
                if folder.identity() != identity:
                    log.warning(
                        "%s is another directory than when the save began; nothing was removed",
                        self.checkpoint_dir,
                    )
                    return
                if self._links:
                    self._point(folder)
                written = self.catalogue.read(folder)
                best = self._best_of(written)
                keep = self._keep or LastN(self.max_checkpoints)
                guarded = best if self._keep or self._links else None
                for old in to_remove(written, saved, keep, guarded):
                    remove(folder, old)
        except OSError as exc:
            log.warning(
                "an old checkpoint in %s was not removed (%s); the next save tries again",
                self.checkpoint_dir,
                exc,
            )

    def _point(self, folder: files.Directory) -> None:
        for _ in range(_LOOKS):
            written = self.catalogue.read(folder)
            latest = next((each for each in reversed(written) if not each.problem), None)
            wanted = {LATEST: latest, BEST: self._best_of(written)}
            if keep_pointed(folder, wanted):
                return

    def _best_of(self, written: list[Checkpoint]) -> Checkpoint | None:
        whole = [each for each in written if not each.problem]
        return next(iter(by_metric(whole, self._metric, self._mode)), None)

    # What is there

    def all(self) -> list[Checkpoint]:
        """What is known of every checkpoint, lowest step first: its step, path, size, time,
        metrics, and what is wrong with its ends. No state is read."""
        return sorted(self.catalogue.found(), key=lambda each: each.step)

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, lowest first."""
        return [each.step for each in self.all()]

    def checkpoints(self) -> dict[int, str]:
        """The path of each step's checkpoint, lowest step first."""
        return {each.step: each.path for each in self.all()}

    def latest(self) -> str | None:
        """The path of the checkpoint that was written last and whose ends are whole. Where all are
        damaged, of the last; ``None`` where there is none.

        A save that becomes durable afterwards may remove that file. `restore` reads it before
        anything of this process does.
        """
        found = self.catalogue.found()
        whole = [each for each in found if not each.problem]
        return (whole or found)[-1].path if found else None

    def best(self) -> str | None:
        """The path of the checkpoint with the best value of the metric, ``None`` where none has
        one. Of equal ones it is the earlier."""
        best = self._best_of(self.catalogue.found())
        return best.path if best else None

    def watch(self, timeout: float | None = None, *, poll: float = 1.0) -> Iterator[int]:
        """The steps of checkpoints as they become durable, those that are there first; each once,
        in the order in which they were written. For an evaluator, in this process or another.

        Args:
            timeout: seconds without a new one after which it ends; ``None`` for never.
            poll: seconds between two looks at the folder.
        """
        news = News(self.catalogue)
        since = time.monotonic()
        while True:
            for step in news.look():
                yield step
                since = time.monotonic()
            if timeout is not None and time.monotonic() - since >= timeout:
                return
            time.sleep(poll)

    # Going on

    @spelled_out(LoadChoices)
    def restore(
        self, step: Which = "latest", into: Any = None, **options: Unpack[LoadOptions]
    ) -> Any:
        """Load a checkpoint, and put it into what it was taken from.

        A damaged one that was not asked for by its number is passed over, with a
        `RecoveredFromBackupWarning`, for the next newest or next best; it stays where it is.

        Args:
            step: ``"latest"``, ``"best"``, or a number.
            into: an object with ``load_state_dict``, or a dict as it was given to `save`: objects
                in it get their state, and its other values are replaced.
            options: as for `genesis.load`.

        Returns:
            The state, as it was loaded.

        Raises:
            FileNotFoundError: there is no such checkpoint, or none at all.
            KeyError: `into` has a key that the state has not; nothing was changed.
            CorruptCheckpointError: the one that was asked for, or every one, is damaged.
        """
        state = self._loaded(step, options)[1]
        if into is not None:
            give_back(into, state)
        return state

    @spelled_out(LoadChoices)
    def resume(self, state: Any, **options: Unpack[LoadOptions]) -> int:
        """Put the latest sound checkpoint into a state, as `restore` does.

        Returns:
            The step to go on with: one more than the step that was saved, and 0 where there is no
            checkpoint at all.

        Raises:
            CorruptCheckpointError: there are checkpoints, and every one is damaged. Otherwise as
                `restore`.
        """
        found = self.newest(options)
        if found is None:
            return 0
        give_back(state, found[1])
        return found[0] + 1

    def newest(self, options: LoadOptions) -> tuple[int, Any] | None:
        """Step and state of the latest sound checkpoint, ``None`` where there is none at all. Every
        other error as `restore`."""
        try:
            self._require_any("latest")
        except FileNotFoundError:
            return None
        return self._loaded("latest", options)

    def _loaded(self, which: Which, options: LoadOptions) -> tuple[int, Any]:
        damaged: CorruptCheckpointError | None = None
        for each in self._require_any(which):
            try:
                with being_read(each.path):
                    state = _load.load(each.path, **options)
            except (NewerFormatError, RebuildError, UnsafeLoadError):
                raise
            except CorruptCheckpointError as exc:
                if not isinstance(which, str):
                    raise
                damaged = damaged or exc
                warnings.warn(
                    f"the checkpoint of step {each.step} is damaged and passed over: {exc}",
                    RecoveredFromBackupWarning,
                    stacklevel=level_of_caller(),
                )
            except FileNotFoundError:
                continue  # removed since the folder was read
            else:
                return each.step, state
        raise damaged or self._none(which)

    def _require_any(self, which: Which) -> list[Checkpoint]:
        """The checkpoints that may be meant, the first choice first; never none."""
        self._settle()
        written = self.catalogue.found()
        if which == "latest":
            found = written[::-1]
        elif which == "best":
            found = by_metric(written, self._metric, self._mode)
        elif isinstance(which, SupportsIndex) and not isinstance(which, bool):
            found = [each for each in written if each.step == index(which)]
        else:
            raise ValueError(f"step must be 'latest', 'best' or a number, not {which!r}")
        if not found:
            raise self._none(which)
        return found

    def _none(self, which: Which) -> FileNotFoundError:
        steps = ", ".join(map(str, self.steps()[-10:])) or "none at all"
        what = f"no checkpoint {which!r}; there are {steps}"
        return FileNotFoundError(errno.ENOENT, what, self.checkpoint_dir)

    def _settle(self) -> None:
        """Wait for the saves that are under way, well or not."""
        for future in tuple(self._pending):
            future._wait_ended()
