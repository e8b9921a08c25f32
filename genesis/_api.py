"""The plain calls: save and load, checkpoints of model and optimizer, checks of a file.

Each is a few lines over the writer and the store; `genesis.aio` has the same, awaited.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal, Unpack, overload

from . import _fs, _inspect, _store
from ._arguments import refuse_objects, refuse_swapped, what_is_held
from ._clearing import Clearing, refuse_emptied
from ._futures import SaveFuture, SaveReport
from ._inspect import Report
from ._locks import Turn
from ._options import (
    FilePath,
    LoadChoices,
    LoadOptions,
    SaveChoices,
    SaveOptions,
    check_names,
    spelled_out,
)
from ._writer import Request, writer


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
    path = _fs.resolve(file_path)
    clear = options.get("clear")
    clearing = Clearing(state, path, wanted=not background if clear is None else clear)

    def begin() -> None:
        if clear is not False:
            refuse_emptied(state, path, part)
        clearing.note()

    return Request(path=path, state=state, begin=begin, **options), clearing


def _start(request: Request, clearing: Clearing, background: bool) -> SaveReport | SaveFuture:
    if background:
        return writer.submit(replace(request, done=clearing.clear))
    report = writer.save(request)
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


@spelled_out(LoadChoices)
def load(file_path: FilePath, **options: Unpack[LoadOptions]) -> Any:
    """Load what `save`, `pickle.dump` or `dill.dump` wrote.

    If a background save of the path is under way in this process, it is waited for first. If the
    file is missing or damaged and a sound backup stands beside it, that is loaded, with a
    `RecoveredFromBackupWarning`. Tensors and arrays are freed one by one: a part of a state
    that is kept keeps no other, but for NumPy arrays under 16 KiB, which share their memory. Clone
    a tensor that is to be resized.

    Args:
        file_path: the file.
        verify: check every byte against its checksum before anything is built. ``None`` means
            ``True``, but with `mmap` only for what is read at once: all except the arrays.
        mmap: map the arrays from the file; their pages are read when touched. They can be written,
            which never changes the file. All of them share the mapping, which goes with the last.
        weights_only: build only tensors, arrays and plain containers; run nothing from the file.
            For files from people you do not know.
        map_location: where tensors go, as for `torch.load`, also those of plain pickles.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError: the file is damaged or no checkpoint; a `pickle.UnpicklingError`.
        UnsafeLoadError: `weights_only` met something else.

    Thread-safe, and safe beside any number of writers: it sees the old file or the new one.
    """
    check_names(options, LoadChoices)
    return _store.load(_settled(file_path), **options)


def _settled(file_path: FilePath) -> str:
    """The real path of a file, once every background save of it that is under way has ended."""
    path = _fs.resolve(file_path)
    writer.settle(path)
    return path


@spelled_out(LoadChoices)
def load_checkpoint(file_path: FilePath, **options: Unpack[LoadOptions]) -> tuple[Any, Any]:
    """Load a checkpoint; return ``(model_state_dict, optimizer_state_dict)``.

    Raises:
        KeyError: the file holds no such checkpoint. Otherwise as `load`.
    """
    return parts_of(load(file_path, **options), file_path)


def parts_of(state: Any, file_path: FilePath) -> tuple[Any, Any]:
    """The two parts of a loaded checkpoint."""
    try:
        return state["model_state_dict"], state["optimizer_state_dict"]
    except (KeyError, TypeError, IndexError) as exc:
        raise KeyError(
            f"{os.fsdecode(file_path)} holds no checkpoint of save_checkpoint ({exc!r}): "
            f"{what_is_held(state)}; genesis.load returns whatever it does hold"
        ) from exc


def load_metadata(file_path: FilePath) -> dict[str, Any]:
    """What `save` was given as ``metadata``, ``{}`` if nothing.

    Only the ends of the file are read and verified, so it takes as long for any size, and nothing
    of the state is built or run. Waits for a background save of the path, as `load` does; looks at
    no backup.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError: its ends are damaged, or genesis did not write it.
    """
    return _store.metadata(_settled(file_path))


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
    return writer.turns.turn(_fs.resolve(file_path))


def remove_in_turn(turn: Turn, *, missing_ok: bool) -> None:
    """Wait for the turn, remove the file, and leave."""
    with turn, turn:
        turn.wait()
        if not _store.remove(turn.path) and not missing_ok:
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
    writer.flush(timeout)


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
    writer.pool.threads = threads or writer.pool.threads
    writer.max_pending_bytes = max_pending_bytes or writer.max_pending_bytes
    if keep_arenas is not None:
        _store.arenas.set_keep(keep_arenas)
    if keep_seconds is not None:
        _store.keep_for(keep_seconds)


def release_memory() -> None:
    """Give the staging memory that is kept for later saves back to the system. What a save is using
    stays until it ends. Thread-safe."""
    _store.arenas.release()


def prewarm(state_dict: Any) -> None:
    """Make staging memory for a state of this size present, so that the first background save
    stalls no longer than the later ones. Raises as `save` does where the state cannot be saved."""
    _store.make_present(size_of(state_dict), huge=True)


def size_of(state_dict: Any) -> int:
    """Bytes of staging memory that a background save of a state takes."""
    return _store.plan(state_dict, sharded="allow").size


def safe_load_checkpoint(
    file_path: FilePath, model: Any, optimizer: Any = None, *, weights_only: bool = False
) -> bool:
    """Load a checkpoint into a model and an optimizer; say what happened; never raise an Exception.

    Takes what `save_checkpoint` wrote, a dict with more entries beside those, or a bare model state
    dict. An optimizer state that does not fit is a printed warning: the model is loaded all the
    same.

    Returns:
        Whether the model's state was loaded.
    """
    try:
        checkpoint = load(file_path, weights_only=weights_only)
        load_into(checkpoint, model, optimizer)
    except FileNotFoundError:
        _say(f"Checkpoint {os.fsdecode(file_path)} not found")
        return False
    except Exception as exc:
        _say(f"Error loading checkpoint: {exc}")
        return False
    _say("Checkpoint loaded successfully")
    return True


def _say(text: str) -> None:
    """`print`, whatever a path or a message holds that standard output cannot show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def load_into(checkpoint: Any, model: Any, optimizer: Any) -> None:
    """Load the parts of a checkpoint, or a bare model state dict, and say so."""
    if "model_state_dict" not in checkpoint:
        model.load_state_dict(checkpoint)
        return
    model.load_state_dict(checkpoint["model_state_dict"])
    _say("Model state loaded successfully")
    if optimizer is not None and "optimizer_state_dict" in checkpoint:
        _load_optimizer(checkpoint["optimizer_state_dict"], optimizer)
    told = []
    if "epoch" in checkpoint:
        told.append(f" from epoch {checkpoint['epoch']}")
    if "loss" in checkpoint:
        told.append(f", loss: {checkpoint['loss']}")
    if told:
        _say("Loaded checkpoint" + "".join(told))


def _load_optimizer(state: Any, optimizer: Any) -> None:
    try:
        optimizer.load_state_dict(state)
    except Exception as exc:
        _say(f"Warning: Could not load optimizer state: {exc}")
    else:
        _say("Optimizer state loaded successfully")


def validate_checkpoint(file_path: FilePath) -> tuple[bool, str]:
    """Check a checkpoint file without running anything from it.

    Verifies every checksum, then judges the structure from the skeleton's opcodes: a dict with a
    non-empty ``model_state_dict`` whose values are tensors or arrays. Waits for a background save
    of the path, as `load` does; looks at no backup.

    Returns:
        ``(True, "Checkpoint is valid")``, or ``False`` and what is wrong.
    """
    try:
        path = _settled(file_path)
    except (OSError, ValueError) as exc:
        return False, f"Error validating checkpoint: {exc}"
    return _inspect.validate(path)


def verify(file_path: FilePath) -> Report:
    """Check a file, whatever state it holds, and say what kind of trouble it is in, if any.

    Verifies every checksum and reads the structure from the skeleton's opcodes; of a plain pickle,
    which has no checksums, the form. Nothing of the file is run. Waits for a background save of the
    path, as `load` does. Where `load` would return the backup instead, the problem says so.

    Returns:
        A `Report`, true where the file is whole. It raises nothing for a bad file.

    Thread-safe, and safe beside any number of writers.
    """
    return _inspect.verify(_settled(file_path))


_Safe = Callable[..., object] | tuple[Callable[..., object], str]


def add_safe_globals(objects: Iterable[_Safe]) -> None:
    """Let `load(weights_only=True)` call these functions and make and fill instances of these
    classes, in this process.

    They run with arguments from the file: register only what is harmless whatever it is given.

    Args:
        objects: classes and functions, or pairs of one and the name that files know it by
            (``"module.name"``).

    Raises:
        TypeError: something else is among them.
    """
    from . import _restricted

    _restricted.add_safe_globals(objects)


def safe_globals(objects: Iterable[_Safe]) -> AbstractContextManager[None]:
    """`add_safe_globals` for the length of a with block. All threads see what it adds."""
    from . import _restricted

    return _restricted.safe_globals(objects)
