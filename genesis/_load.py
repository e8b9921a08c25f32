"""The plain calls: save and load, checkpoints of model and optimizer, checks of a file.

Each is a few lines over the writer and the store; `genesis.aio` has the same, awaited.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Unpack

from . import _contents, _diff, _inspect
from ._arguments import what_is_held
from ._contents import Contents
from ._diff import Difference
from ._engine.scheduler import scheduler
from ._engine.statistics import of_load
from ._file import reader
from ._inspect import Report
from ._options import (
    FilePath,
    LoadChoices,
    LoadOptions,
    check_names,
    spelled_out,
)
from ._progress import Progress
from .storage.places import resolve


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
        only: load a part of the state: what stands under a path of keys (``"model"``,
            ``"model/layer.0.weight"``), or under each that a pattern fits (``"*/exp_avg"``), or of
            which a function says so. The part stands in dicts like those that it was saved in.
            Where the state is made of plain containers, tensors and arrays, no other chunk is read.
        progress: as for `save`: called as chunks of 16 MiB are read, on any thread, by one at a
            time.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError: the file is damaged or no checkpoint; a `pickle.UnpicklingError`.
        UnsafeLoadError: `weights_only` met something else.
        KeyError: nothing is what `only` asks for.

    Thread-safe, and safe beside any number of writers: it sees the old file or the new one.
    """
    check_names(options, LoadChoices)
    choices = LoadChoices(**options)
    path = _settled(file_path)
    progress = Progress(choices.progress, path)
    began = time.perf_counter()
    state = reader.load(path, choices, progress)
    took = time.perf_counter() - began
    scheduler.statistics.add(of_load(progress.total, took))
    return state


def _settled(file_path: FilePath) -> str:
    """The real path of a file, once every background save of it that is under way has ended."""
    path = resolve(file_path)
    scheduler.settle(path)
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


def load_into(
    file_path: FilePath,
    into: Any,
    *,
    part: str | None = None,
    weights_only: bool = False,
    assign: bool = False,
) -> None:
    """Fill the tensors of a module, or of a dict of tensors and arrays, from a file, in place.

    The file is mapped and verified, and copied from array by array: there is no second copy of the
    model in memory, and tensors on a device are filled where they are.

    Args:
        file_path: the file.
        into: a torch module, or a dict, nested or not, of tensors and NumPy arrays.
        part: the keys, joined by ``/``, of what the state is to be taken from. Without it that is
            the whole state, or for a module what `save_checkpoint` keeps as its model.
        weights_only: as for `load`.
        assign: of a module: its parameters and buffers become the mapped ones of the file instead,
            and nothing is copied. So a model on the device meta is there at once, on the CPU; its
            pages are read when they are touched, and changing them changes no file. Make its
            optimizer afterwards.

    Raises:
        ValueError: names, shapes or dtypes differ, or a target takes no elements (one on the device
            meta, an expanded one, a read-only one). All of it is named, nothing was changed.
        TypeError: `into` holds something that cannot be filled.
        KeyError: there is no such part. Otherwise as `load`.
    """
    from . import _load_into

    state = load(file_path, mmap=True, verify=True, weights_only=weights_only)
    give = _load_into.assign if assign else _load_into.fill
    give(into, _load_into.part_of(state, part, into), os.fsdecode(file_path))


def inspect(file_path: FilePath) -> Contents:
    """What is in a file: every tensor and array with its path, dtype, shape, size and offset, plain
    values, the writer, metadata, and what a manager noted.

    Only the ends of the file and its skeleton are read and verified; no array is, no object is
    built, and nothing of the file is run. A plain pickle is read as a whole. Waits for a background
    save of the path, as `load` does; looks at no backup.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError: what was read is damaged, or it is no checkpoint.
    """
    return _contents.inspect(_settled(file_path))


def diff(one: FilePath, other: FilePath, *, weights_only: bool = True) -> Difference:
    """What was added, removed and changed from one checkpoint to another, and how far.

    Both are mapped and verified, and compared array by array.

    Args:
        weights_only: as for `load`, and here on unless it is turned off.

    Raises: as `load`.
    """
    options: LoadOptions = {"mmap": True, "verify": True, "weights_only": weights_only}
    return _diff.diff(load(one, **options), load(other, **options))


def load_metadata(file_path: FilePath) -> dict[str, Any]:
    """What `save` was given as ``metadata``, ``{}`` if nothing.

    Only the ends of the file are read and verified, so it takes as long for any size, and nothing
    of the state is built or run. Waits for a background save of the path, as `load` does; looks at
    no backup.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError: its ends are damaged, or genesis did not write it.
    """
    return reader.metadata(_settled(file_path))


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
        give_to(checkpoint, model, optimizer)
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


def give_to(checkpoint: Any, model: Any, optimizer: Any) -> None:
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
    from . import _safe

    _safe.add_safe_globals(objects)


def safe_globals(objects: Iterable[_Safe]) -> AbstractContextManager[None]:
    """`add_safe_globals` for the length of a with block. All threads see what it adds."""
    from . import _safe

    return _safe.safe_globals(objects)
