"""The plain calls: save and load, checkpoints of model and optimizer, checks of a file.

Each is a few lines over the writer and the store; `genesis.aio` has the same, awaited.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Literal, Unpack, overload

from ._arguments import refuse_objects, refuse_swapped
from ._clearing import Clearing, refuse_emptied
from ._engine.futures import SaveFuture, SaveReport
from ._engine.queues import Turn
from ._engine.scheduler import Request, scheduler
from ._engine.statistics import Statistics
from ._file import writer
from ._options import (
    FilePath,
    SaveChoices,
    SaveOptions,
    check_names,
    spelled_out,
)
from .storage.places import resolve


@overload
def save(
    state_dict: Any,
    file_path: FilePath,
    *,
    background: Literal[False] = ...,
    **options: Unpack[SaveOptions],
) -> SaveReport: ...
@overload
def save(
    state_dict: Any,
    file_path: FilePath,
    *,
    background: Literal[True],
    **options: Unpack[SaveOptions],
) -> SaveFuture: ...
@overload
def save(
    state_dict: Any, file_path: FilePath, *, background: bool, **options: Unpack[SaveOptions]
) -> SaveReport | SaveFuture: ...
@spelled_out(SaveChoices)
def save(
    state_dict: Any,
    file_path: FilePath,
    *,
    background: bool = False,
    **options: Unpack[SaveOptions],
) -> SaveReport | SaveFuture:
    """Save a state in one step: the file is the old one or the new one, never a part.

    Args:
        state_dict: a dict, or any object that pickle or dill can save; tensors and arrays in it
            may be of any size.
        file_path: the file. A symlink stays one, and its target is replaced.
        background: return when the state is captured, and write on a thread.
        clear: empty the dict when the file is durable, to free its memory: of the entries that
            still hold what was captured. Only a plain ``dict`` or ``OrderedDict`` is emptied.
            ``None`` means ``True``, and in the background ``False``. An empty dict, which an
            earlier save may have left, is saved with a warning, and without one if this is
            ``False``.
        capture: of a background save. ``"copy"``: everything may be changed when the call returns.
            ``"deferred"``: tensors of 64 KiB or more are copied by the writer; do not change or
            resize them before `SaveFuture.wait_captured` returns.
        on_busy: of a background save, when an earlier save of this path is under way or memory for
            pending saves is used up. ``"wait"``; ``"skip"``: save nothing; ``"supersede"``: take
            the place of a save of this path that is queued and not started, once the state is
            captured; else wait.
        metadata: a small mapping of JSON values to store beside the state. Keys become strings and
            tuples lists, as in JSON; inf, nan, NumPy scalars and tensors of no dimension are taken
            as the numbers that they are.
        sharded: tensors of which this process holds one part of several, as a rank of FSDP does.
            ``"refuse"`` them: several ranks would write one path, and each file would claim to be
            the whole. ``"allow"``: save this rank's parts, to a path of its own.
        progress: a callable of ``(done_bytes, total_bytes)``, called as pieces of some tens of MiB
            are written, by the thread that writes, and with two equal numbers when the file is
            durable. What it raises is logged, and the save goes on. ``True``: a bar of tqdm or
            rich, on standard error. `SaveFuture.progress` tells the same.

    Returns:
        A `SaveReport`, or in the background a `SaveFuture` whose result is one.

    Raises:
        UnpicklableStateError: something in the state cannot be saved; the message names its place.
        TypeError, ValueError: an argument is wrong; or the dict is empty, without ``clear=False``,
            and the file is not.
        RuntimeError: the call would wait for a save of this path that cannot go on before it
            returns: made in a signal handler that interrupted one, or on an event loop with one
            that waits.
        OSError: it could not be written. `file_path` holds the old file, the dict is untouched.
        DurabilityUnknownError: it was written, but may not outlive a power cut.
        In the background the last two are raised by the future's `result`, the others at once.

    Thread-safe. Saves of one path become durable in the order of the calls, also among threads;
    among processes the last to finish wins.
    """
    request, clearing = make_request(state_dict, file_path, options, background)
    return _start(request, clearing, background)


def make_request(
    state: Any,
    file_path: FilePath,
    options: SaveOptions,
    background: bool,
    *,
    part: str | None = None,
) -> tuple[Request, Clearing]:
    """Check the arguments of a save; return it, and what empties its dict once it is durable.

    Args:
        background: then nothing is cleared unless the options say so: a dict that empties itself
            at some later moment is a race in the caller's program.
        part: the key of what an earlier save may have emptied, where it is not the state itself.

    Raises:
        TypeError: an option is unknown.
        ValueError: the value of an option is none of its choices.
    """
    check_names(options, SaveChoices)
    refuse_swapped(state, file_path)
    path = resolve(file_path)
    clear = options.get("clear")
    clearing = Clearing(state, path, wanted=not background if clear is None else clear)

    def begin() -> None:
        if clear is not False:
            refuse_emptied(state, path, part)
        clearing.note()

    # Another save clears when its turn has ended.
    done = clearing.clear if background else lambda: None
    return Request(path=path, state=state, begin=begin, done=done, **options), clearing


def _start(request: Request, clearing: Clearing, background: bool) -> SaveReport | SaveFuture:
    if background:
        return scheduler.submit(request)
    report = scheduler.save(request)
    clearing.clear()
    return report


@overload
def save_checkpoint(
    model_state_dict: Any,
    optimizer_state_dict: Any,
    file_path: FilePath,
    *,
    background: Literal[False] = ...,
    **options: Unpack[SaveOptions],
) -> SaveReport: ...
@overload
def save_checkpoint(
    model_state_dict: Any,
    optimizer_state_dict: Any,
    file_path: FilePath,
    *,
    background: Literal[True],
    **options: Unpack[SaveOptions],
) -> SaveFuture: ...
@overload
def save_checkpoint(
    model_state_dict: Any,
    optimizer_state_dict: Any,
    file_path: FilePath,
    *,
    background: bool,
    **options: Unpack[SaveOptions],
) -> SaveReport | SaveFuture: ...
@spelled_out(SaveChoices)
def save_checkpoint(
    model_state_dict: Any,
    optimizer_state_dict: Any,
    file_path: FilePath,
    *,
    background: bool = False,
    **options: Unpack[SaveOptions],
) -> SaveReport | SaveFuture:
    """Save ``{"model_state_dict": ..., "optimizer_state_dict": ...}`` with `save`.

    The dict that is cleared afterwards is that outer one: the two that were passed stay as they
    are. Everything else is as for `save`.
    """
    request, clearing = checkpoint_request(
        model_state_dict, optimizer_state_dict, file_path, options, background
    )
    return _start(request, clearing, background)


def checkpoint_request(
    model_state: Any,
    optimizer_state: Any,
    file_path: FilePath,
    options: SaveOptions,
    background: bool,
) -> tuple[Request, Clearing]:
    """`make_request` for the dict that `save_checkpoint` saves.

    Raises:
        TypeError: an argument is a model, an optimizer, or in the place of another.
    """
    refuse_swapped(model_state, file_path)
    refuse_objects(model_state_dict=model_state, optimizer_state_dict=optimizer_state)
    state = {"model_state_dict": model_state, "optimizer_state_dict": optimizer_state}
    return make_request(state, file_path, options, background, part="model_state_dict")


def remove(file_path: FilePath, *, missing_ok: bool = False) -> None:
    """Remove a checkpoint, its backup, and what killed writers left of it, durably.

    Waits for every save of the path that was submitted before, so that none of them brings the file
    back afterwards, as it does after `os.remove`. Through a symlink the file that it leads to is
    removed.

    Args:
        file_path: the checkpoint file.
        missing_ok: whether it is no error that neither file nor backup is there.

    Raises:
        FileNotFoundError: neither is there.
        IsADirectoryError, PermissionError, OSError: it could not be removed.
        RuntimeError: as for `save`, where the call would wait for ever.

    Thread-safe. Readers that have the file open keep it.
    """
    turn = removal(file_path)
    with turn, turn:
        turn.enter()
        remove_in_turn(turn, missing_ok=missing_ok)


def removal(file_path: FilePath) -> Turn:
    """A place among the saves of a path, not taken yet."""
    return scheduler.turns.turn(resolve(file_path))


def remove_in_turn(turn: Turn, *, missing_ok: bool) -> None:
    """Wait for the turn, remove the file, and leave."""
    with turn, turn:
        turn.wait()
        if not writer.remove(turn.path) and not missing_ok:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), turn.path)


def flush(timeout: float | None = None) -> None:
    """Wait until every background save submitted so far is durable, and its callbacks have
    returned; in such a callback, for the saves alone.

    Raises:
        TimeoutError: some are not after `timeout` seconds.
        RuntimeError: in a signal handler, where a save that it interrupted cannot go on before it
            returns. The others have ended.
        Exception: the first failure that nobody asked its future for, or of a callback; it and
            others are logged.
    """
    scheduler.flush(timeout)


def statistics() -> Statistics:
    """Counts, bytes and times of all saves and loads of this process so far.

    Takes microseconds, waits for nothing, and a save is counted before its future resolves.
    A forked child starts with zeros. Thread-safe.
    """
    return scheduler.statistics.value()


def configure(
    *,
    threads: int | None = None,
    max_pending_bytes: int | None = None,
    keep_arenas: int | None = None,
    keep_seconds: float | None = None,
) -> None:
    """Change the writer of this process; what is not given stays as it is.

    Args:
        threads: saves that are written at a time, 2 by default.
        max_pending_bytes: bytes that background saves may hold in memory before `on_busy` decides;
            a quarter of the machine's memory by default.
        keep_arenas: pieces of staging memory kept for later saves, 2 by default. What is held
            beyond that is let go of at once.
        keep_seconds: how long more than 64 MiB of it are kept without a save, 60 by default;
            infinity for ever. The first save after that stalls as long as the very first one.

    Raises:
        ValueError: a number is out of range.
    """
    for name, value, least in (
        ("threads", threads, 1),
        ("max_pending_bytes", max_pending_bytes, 1),
        ("keep_arenas", keep_arenas, 0),
        ("keep_seconds", keep_seconds, 0),
    ):
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    scheduler.pool.threads = threads or scheduler.pool.threads
    scheduler.max_pending_bytes = max_pending_bytes or scheduler.max_pending_bytes
    if keep_arenas is not None:
        writer.arenas.set_keep(keep_arenas)
    if keep_seconds is not None:
        writer.keep_for(keep_seconds)


def release_memory() -> None:
    """Give the staging memory that is kept for later saves back to the system. What a save is using
    stays until it ends. Thread-safe."""
    writer.arenas.release()


def prewarm(state_dict: Any) -> None:
    """Make staging memory for a state of this size present, so that the first background save
    stalls no longer than the later ones. Raises as `save` does where the state cannot be saved."""
    writer.make_present(size_of(state_dict), huge=True)


def size_of(state_dict: Any) -> int:
    """Bytes of staging memory that a background save of a state takes."""
    return writer.plan(state_dict, sharded="allow").size
