"""Storage for `torch.distributed.checkpoint` (DCP): sharded states of many ranks as genesis files.

    dcp.save(state, storage_writer=GenesisWriter("run/step_100"))
    dcp.load(state, storage_reader=GenesisReader("run/step_100"))

DCP plans which rank saves what, and who loads which part of it: FSDP2, DTensor and DDP states, on
as many ranks as before or on others. Here is only where the bytes go.

Guarantees:
- At any instant the folder holds the old checkpoint or the new one, whole, whichever rank dies.
  Each rank writes one file of a name that was never there before, durable before it says so.
  `metadata.pth`, which names them, is replaced in one step when all have.
- A rank that fails fails the save on all of them, and what was there stays.
- The files of a checkpoint are removed only by a save that has replaced it, and those of a save
  that died by the next one, under a lock that the coordinator holds for the whole save.
- Every byte that is loaded was checked before.
"""

# ruff: noqa: E402  whether the host is there is asked before it is imported

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import threading
from collections.abc import Iterable
from typing import Any

from ._hosts import require

require(("torch",), (2, 4), "distributed")

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from .._engine.futures import log
from .._errors import CorruptCheckpointError, NotACheckpointError
from .._load import load, load_metadata
from .._os import files
from .._os.descriptors import Descriptor
from .._public import publish
from .._save import save

__all__ = ["GenesisReader", "GenesisWriter"]

_METADATA = "metadata.pth"
_LOCK = ".metadata.pth.saving"
_RANK_FILE = re.compile(r"rank\d+\.[0-9a-f]{16}\.pth")
"""The file of one rank. The digits are of one save alone."""

_Path = str | os.PathLike[str]
_Part = dict[str, dict[tuple[int, ...] | None, Any]]
"""A rank's file: the name of each value -> where in the whole tensor a piece begins -> the piece.
Of what is no tensor the place is ``None``."""


class GenesisWriter(StorageWriter):
    """Where `dcp.save` and `dcp.async_save` write.

    The folder must be on storage that all ranks share. It may hold a checkpoint, which is replaced.
    One writer is for one save at a time.

    Args:
        path: the folder; made if it is missing. The ``checkpoint_id`` of a save takes its place.

    Raises (what a rank raises, DCP raises on all of them, in a ``CheckpointException``):
        UnpicklableStateError, OSError: as `genesis.save`.
        RuntimeError: another process is saving to the folder, or a later save of this process.
    """

    def __init__(self, path: _Path) -> None:
        self._folder = files.resolve_directory(path)
        self._rank = 0
        self._saving: _Saving | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_saving": None}  # for the process of an async_save

    @property
    def checkpoint_id(self) -> str:
        """The folder."""
        return self._folder

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: _Path) -> bool:
        return _is_folder(checkpoint_id)

    def reset(self, checkpoint_id: _Path | None = None) -> None:
        if checkpoint_id is not None:
            self._folder = files.resolve_directory(checkpoint_id)

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=self._folder)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("use_collectives", True):
            raise ValueError(
                "GenesisWriter commits the files of all ranks at once, which takes collectives: "
                "leave out use_collectives=False"
            )
        self._rank = _rank()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        files.make_directories(self._folder)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self._saving = _Saving.begin(self._folder)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = f"rank{self._rank}.{secrets.token_hex(8)}.pth"
        state: _Part = {}
        results = []
        for item in plan.items:
            value = planner.resolve_data(item)
            if item.type == WriteItemType.BYTE_IO:
                assert isinstance(value, io.BytesIO)
                stored: Any = value.getvalue()
                size = len(stored)
            else:
                assert isinstance(value, torch.Tensor)
                stored = _alone(value.detach())
                size = stored.nbytes
            state.setdefault(item.index.fqn, {})[_offset(item.index)] = stored
            results.append(WriteResult(item.index, size, name))
        if state:
            save(state, os.path.join(self._folder, name), clear=False)
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        assert self._saving is not None
        saving, self._saving = self._saving, None
        metadata.storage_data = {each.index: each.storage_data for part in results for each in part}
        metadata.storage_meta = self.storage_meta()
        try:
            saving.commit(metadata, sorted(set(metadata.storage_data.values())))
        finally:
            saving.end()


class GenesisReader(StorageReader):
    """Where `dcp.load` reads what `GenesisWriter` wrote. Every file that holds a part of what is
    loaded is verified from end to end.

    Args:
        path: the folder. The ``checkpoint_id`` of a load takes its place.

    Raises (on all ranks, in a ``CheckpointException``):
        FileNotFoundError: there is no checkpoint, or a save has replaced it during the load.
        CorruptCheckpointError: a file is damaged; the message names it.
    """

    def __init__(self, path: _Path) -> None:
        self._folder = files.resolve_directory(path)
        self._names: dict[MetadataIndex, str] = {}

    @property
    def checkpoint_id(self) -> str:
        """The folder."""
        return self._folder

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: _Path) -> bool:
        return _is_folder(checkpoint_id)

    def reset(self, checkpoint_id: _Path | None = None) -> None:
        if checkpoint_id is not None:
            self._folder = files.resolve_directory(checkpoint_id)

    # Without **kwargs, by which DCP would go on to look for a metadata file of each rank.
    def read_metadata(self) -> Metadata:
        path = os.path.join(self._folder, _METADATA)
        try:
            metadata = load(path)
        except FileNotFoundError as exc:
            raise FileNotFoundError(exc.errno, _what_is_missing(self._folder), path) from exc
        if not isinstance(metadata, Metadata):
            raise NotACheckpointError(path, "this is no metadata of GenesisWriter")
        return metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        self._names = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self._names[item.storage_index], []).append(item)
        for name, items in by_file.items():
            state = self._load(name)
            for item in items:
                index = item.storage_index
                _hand_over(item, state[index.fqn][_offset(index)], planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _load(self, name: str) -> _Part:
        """A rank's file: verified, then mapped, so that only what is wanted of it is copied."""
        path = os.path.join(self._folder, name)
        try:
            state: _Part = load(path, mmap=True, verify=True, weights_only=True)
        except FileNotFoundError as exc:
            problem = "a save has replaced the checkpoint during this load; load it again"
            if name in (_committed(self._folder) or ()):
                problem = "a file of this checkpoint is missing; load another checkpoint"
            raise FileNotFoundError(errno.ENOENT, problem, path) from exc
        return state


class _Saving:
    """One save of a folder, where the coordinator runs: from the plan to the commit nobody else
    saves there.

    A save that fails on another rank never comes back to its coordinator's `finish`. So within a
    process a later save of the folder takes over from an earlier one, which can then not commit.
    `_mutex` guards the commit against that.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._mutex = threading.Lock()
        self._lock = Descriptor()
        self._ended = False
        self._locked = False
        self._old: set[str] | None = None

    @classmethod
    def begin(cls, folder: str) -> _Saving:
        """Take the lock, and remove what dead saves left."""
        saving = cls(folder)
        with _begun_lock:
            earlier, _begun[folder] = _begun.get(folder), saving
        if earlier is not None:
            earlier.end()
        try:
            saving._take()
            saving._old = _committed(folder)
            if saving._locked and saving._old is not None:
                saving._remove_but(saving._old)
        except BaseException:
            saving.end()
            raise
        return saving

    def _take(self) -> None:
        files.open_lock_file(self._lock, os.path.join(self._folder, _LOCK))
        self._locked = files.lock_file(self._lock.number, wait=False)
        if not self._locked and files.has_locks(self._lock.number):
            raise RuntimeError(
                f"{self._folder}: another process is saving a checkpoint here; wait for its "
                "end, or give each save a folder of its own"
            )

    def commit(self, metadata: Metadata, names: list[str]) -> None:
        """Make the files of these names the checkpoint, durably, and remove the old ones."""
        with self._mutex:
            if self._ended:
                raise RuntimeError(f"{self._folder}: a later save of this folder took over")
            self._look_for(names)
            path = os.path.join(self._folder, _METADATA)
            save(metadata, path, clear=False, metadata={"files": names})
            try:
                self._remove_but(names)
            except OSError as exc:
                log.warning("%s: old files were not removed (%s)", self._folder, exc)

    def _look_for(self, names: list[str]) -> None:
        there = set(files.names(self._folder))
        for name in names:
            if name not in there:
                problem = (
                    "the coordinator does not see this file of another rank; the folder must be on "
                    "storage that all ranks share"
                )
                raise FileNotFoundError(errno.ENOENT, problem, os.path.join(self._folder, name))

    def _remove_but(self, names: Iterable[str]) -> None:
        """Remove the files of all other saves; without a lock only those of the checkpoint that
        this one has replaced: others may be of a save that lives."""
        with files.Directory(self._folder) as folder:
            folder.sync()  # of a metadata file that a dead save replaced
            others = folder.names() if self._locked else self._old or ()
            for name in set(others) - set(names):
                if _RANK_FILE.fullmatch(name):
                    folder.remove(name)

    def end(self) -> None:
        """Let the next save begin; harmless where it has."""
        with self._mutex:
            self._ended = True
            if self._lock:
                files.unlock_file(self._lock.number)
                self._lock.let_go()
        with _begun_lock:
            if _begun.get(self._folder) is self:
                del _begun[self._folder]


_begun: dict[str, _Saving] = {}
"""Folder -> the save of it that this process coordinates."""
_begun_lock = threading.Lock()
"""Guards `_begun`."""


def _committed(folder: str) -> set[str] | None:
    """The files of the checkpoint that a folder holds; ``None`` where that cannot be told."""
    path = os.path.join(folder, _METADATA)
    try:
        return set(load_metadata(path).get("files", ()))
    except FileNotFoundError:
        # What `load` would take the backup of names files too.
        return (
            None
            if any(_METADATA in name for name in files.names(folder) if name != _LOCK)
            else set()
        )
    except CorruptCheckpointError:
        return None


def _what_is_missing(folder: str) -> str:
    if os.path.exists(os.path.join(folder, ".metadata")):
        return "this is a checkpoint of DCP's FileSystemWriter; load it with its FileSystemReader"
    return "there is no checkpoint of GenesisWriter in this folder"


def _is_folder(checkpoint_id: _Path) -> bool:
    try:
        files.resolve_directory(checkpoint_id)
    except (OSError, ValueError, TypeError):
        return False
    return True


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_initialized() else 0


def _offset(index: MetadataIndex) -> tuple[int, ...] | None:
    return None if index.offset is None else tuple(index.offset)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that takes nothing else to its file. genesis saves the storage of a view along
    if the view spans at least half of it."""
    if tensor.layout is not torch.strided:
        return tensor
    size = tensor.untyped_storage().nbytes()
    is_small_part = tensor.is_contiguous() and 2 * tensor.nbytes < size
    return (
        tensor
        if tensor.nbytes == size or is_small_part
        else tensor.clone(memory_format=torch.contiguous_format)
    )


def _hand_over(item: ReadItem, value: Any, planner: LoadPlanner) -> None:
    if item.type == LoadItemType.BYTE_IO:
        planner.load_bytes(item, io.BytesIO(value))
        return
    for dimension, (start, length) in enumerate(
        zip(item.storage_offsets, item.lengths, strict=True)
    ):
        value = value.narrow(dimension, start, length)
    target = planner.resolve_tensor(item).detach()
    if target.size() != value.size():
        raise ValueError(
            f"{item.storage_index.fqn}: the file has {tuple(value.size())} where "
            f"{tuple(target.size())} is to be loaded"
        )
    target.copy_(value)
    planner.commit_tensor(item, target)


publish(globals())
