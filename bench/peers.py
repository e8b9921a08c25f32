"""One adapter for each way to save a state, each set up as its own documentation recommends.

An adapter only calls its peer; it neither measures nor repairs. What a peer cannot take, it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib.util
import json
import os
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from states import State, Tree, flat, leaves

# "files": the files are synced, the directory that names them is not.
Durable = Literal["no", "files", "yes"]
How = Literal["whole", "restricted", "mapped", "partial"]
ALL = frozenset({"torch", "numpy", "jax", "objects"})
TORCH = frozenset({"torch", "objects"})


def _nothing() -> None:
    pass


@dataclass
class Ticket:
    """A save that was called. `captured` waits until the state may change, `wait` for the end."""

    captured: Callable[[], object] = _nothing
    wait: Callable[[], object] = _nothing
    finished: Callable[[], bool] = lambda: True


class Peer:
    """A way to save. The class attributes say what it promises; `check` in measure.py tests it."""

    name: ClassVar[str]
    what: ClassVar[str]
    durable: ClassVar[Durable] = "no"
    background: ClassVar[bool] = False
    # The state may change when the call returns (True), or only once `captured` returns (False).
    copies: ClassVar[bool] = True
    # It makes a directory, a new one for each save; else it replaces the file of the last save.
    directory: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]] = ALL
    dill: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    hows: ClassVar[tuple[How, ...]] = ("whole",)
    # Memory it may need beside the state, in copies of it.
    extra_copies: ClassVar[float] = 1.0

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot run here, or None."""
        absent = [module for module in cls.needs if importlib.util.find_spec(module) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    @classmethod
    def refuses(cls, state: State) -> str | None:
        """Why it cannot save this state, or None."""
        if state.kind not in cls.kinds:
            return f"takes no {state.kind} state"
        if state.needs_dill and not cls.dill:
            return "cannot pickle lambdas and closures"
        return None

    def imports(self) -> None:
        """Import what it needs, so that no measurement pays for it."""
        for module in self.needs:
            importlib.import_module(module)

    def set_up(self, tree: Tree, folder: str) -> None:
        """Start what lives as long as the training run: pools, processes, staging memory."""

    def save(self, tree: Tree, path: str) -> Ticket:
        raise NotImplementedError

    def guard(self, ticket: Ticket) -> contextlib.AbstractContextManager[Any]:
        """What the trainer puts around the update in place."""
        if not self.copies:
            ticket.captured()
        return contextlib.nullcontext()

    def tick(self) -> None:
        """What the trainer calls after every step."""

    def template(self, tree: Tree, how: How, probe: tuple[str, str]) -> Any:
        """What a resuming trainer holds before it loads. Not timed."""

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        raise NotImplementedError

    def tear_down(self) -> None:
        """End what `set_up` started."""


# ------------------------------------------------------------------------------ torch.save


class TorchSave(Peer):
    name = "torch.save"
    what = "torch.save(state, path)"
    hows = ("whole", "restricted", "mapped", "partial")
    extra_copies = 0.1

    def save(self, tree: Tree, path: str) -> Ticket:
        import torch

        torch.save(tree, path)
        return Ticket()

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        import torch

        mapped = how in ("mapped", "partial")
        loaded = torch.load(path, mmap=mapped, weights_only=how == "restricted")
        return _copied(loaded[probe[0]][probe[1]]) if how == "partial" else loaded


def _copied(array: Any) -> Any:
    """A copy of an array, so that a mapped one has been read."""
    return array.clone() if hasattr(array, "clone") else array.copy()


class TorchSaveFsync(TorchSave):
    name = "torch.save + fsync"
    what = "torch.save(state, file); os.fsync(file)"
    durable = "files"

    def save(self, tree: Tree, path: str) -> Ticket:
        import torch

        with open(path, "wb") as file:
            torch.save(tree, file)
            file.flush()
            os.fsync(file.fileno())
        return Ticket()


class DeepcopyThread(TorchSave):
    name = "deepcopy + thread"
    what = "copy.deepcopy(state), then torch.save on a thread"
    background = True
    extra_copies = 1.1

    def set_up(self, tree: Tree, folder: str) -> None:
        self._pool = ThreadPoolExecutor(1)

    def save(self, tree: Tree, path: str) -> Ticket:
        import torch

        return _ticket(self._pool.submit(torch.save, copy.deepcopy(tree), path))

    def tear_down(self) -> None:
        self._pool.shutdown()


def _ticket(future: Future[Any], captured: Callable[[], object] = _nothing) -> Ticket:
    return Ticket(captured, future.result, future.done)


# ------------------------------------------------------------------------- dill and joblib


class PlainDill(Peer):
    name = "dill, copied backup"
    what = "the plain algorithm: copy the old file aside, dill.dump, remove the copy"
    dill = True
    needs = ("dill",)
    extra_copies = 2.0

    def save(self, tree: Tree, path: str) -> Ticket:
        import dill

        backup = f"{path}.bak"
        if os.path.exists(path):
            shutil.copy2(path, backup)
        with open(path, "wb") as file:
            dill.dump(tree, file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(backup)
        return Ticket()

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        import dill

        with open(path, "rb") as file:
            return dill.load(file)


class AiofilesDill(PlainDill):
    name = "aiofiles + dill.dumps"
    what = "a coroutine: dill.dumps(state), then await file.write through aiofiles"
    background = True
    needs = ("dill", "aiofiles")
    extra_copies = 3.0

    def set_up(self, tree: Tree, folder: str) -> None:
        self._loop = asyncio.new_event_loop()

    def save(self, tree: Tree, path: str) -> Ticket:
        task = self._loop.create_task(self._write(tree, path))
        self.tick()  # up to its first suspension, as in a trainer that is a coroutine itself
        return Ticket(wait=lambda: self._loop.run_until_complete(task), finished=task.done)

    async def _write(self, tree: Tree, path: str) -> None:
        import aiofiles
        import dill

        data = dill.dumps(tree)
        async with aiofiles.open(path, "wb") as file:
            await file.write(data)

    def tick(self) -> None:
        self._loop.run_until_complete(asyncio.sleep(0))

    def tear_down(self) -> None:
        self._loop.close()


class Joblib(Peer):
    name = "joblib"
    what = "joblib.dump(state, path)"
    needs = ("joblib",)
    extra_copies = 2.0

    def save(self, tree: Tree, path: str) -> Ticket:
        import joblib

        joblib.dump(tree, path)
        return Ticket()

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        import joblib

        return joblib.load(path)


# ------------------------------------------------------------------------------ safetensors


class Safetensors(Peer):
    name = "safetensors"
    what = "safetensors save_file: arrays by name, numbers as JSON metadata"
    kinds = frozenset({"torch", "numpy", "jax"})
    needs = ("safetensors",)
    hows = ("whole", "partial")

    def set_up(self, tree: Tree, folder: str) -> None:
        array = next(iter(flat(tree).values()))
        module = type(array).__module__.split(".")[0]
        framework = {"torch": "torch", "numpy": "numpy"}.get(module, "flax")
        self._module = importlib.import_module(f"safetensors.{framework}")
        self._framework = framework

    def save(self, tree: Tree, path: str) -> Ticket:
        arrays = flat(tree)
        others = {name: leaf for name, leaf in leaves(tree) if name not in arrays}
        self._module.save_file(arrays, path, metadata={"state": json.dumps(others)})
        return Ticket()

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        from safetensors import safe_open

        if how == "whole":
            return self._module.load_file(path)
        with safe_open(path, framework=self._framework) as file:
            tensor = file.get_tensor("/".join(probe))
        return _copied(tensor)


# ------------------------------------------------------------------- torch.distributed.checkpoint


class Dcp(Peer):
    name = "dcp.save"
    what = "torch.distributed.checkpoint.save, one rank"
    durable = "files"
    directory = True
    hows = ("whole", "partial")

    def imports(self) -> None:
        super().imports()
        import torch.distributed.checkpoint as dcp

        self._dcp = dcp

    def save(self, tree: Tree, path: str) -> Ticket:
        self._dcp.save(tree, checkpoint_id=path, no_dist=True)
        return Ticket()

    def template(self, tree: Tree, how: How, probe: tuple[str, str]) -> Any:
        if how == "partial":
            return {probe[0]: {probe[1]: _blank(tree[probe[0]][probe[1]])}}
        return _blank(tree)

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        self._dcp.load(template, checkpoint_id=path, no_dist=True)
        return template


def _blank(tree: Any) -> Any:
    """The same tree with tensors of zeros, present in memory as a model's own are."""
    import torch

    if isinstance(tree, torch.Tensor):
        return torch.full_like(tree, 0)
    if isinstance(tree, dict):
        return type(tree)((key, _blank(value)) for key, value in tree.items())
    if isinstance(tree, list):
        return [_blank(value) for value in tree]
    return tree


class DcpThread(Dcp):
    name = "dcp.async_save"
    what = "dcp.async_save as its recipe calls it: a copy, then a thread"
    background = True
    extra_copies = 2.0

    def save(self, tree: Tree, path: str) -> Ticket:
        future = self._dcp.async_save(tree, checkpoint_id=path, no_dist=True)
        return _ticket(future)


class DcpThreadReuse(DcpThread):
    name = "dcp.async_save, stager kept"
    what = "dcp.async_save with one DefaultStager kept, so that its memory is reused"

    def set_up(self, tree: Tree, folder: str) -> None:
        self._stager = self._make_stager(shared=False, background=False)

    def _make_stager(self, *, shared: bool, background: bool) -> Any:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        # Pinned memory and copies without waiting need a GPU.
        return DefaultStager(
            StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=shared,
                use_async_staging=background,
                use_non_blocking_copy=False,
            )
        )

    def save(self, tree: Tree, path: str) -> Ticket:
        future = self._dcp.async_save(
            tree, checkpoint_id=path, no_dist=True, async_stager=self._stager
        )
        return _ticket(future)

    def tear_down(self) -> None:
        self._stager.close()


class DcpStager(DcpThreadReuse):
    name = "dcp.async_save, async staging"
    what = "dcp.async_save, DefaultStager with shared memory and async staging, then a thread"
    copies = False

    def set_up(self, tree: Tree, folder: str) -> None:
        self._stager = self._make_stager(shared=True, background=True)

    def save(self, tree: Tree, path: str) -> Ticket:
        response = self._dcp.async_save(
            tree, checkpoint_id=path, no_dist=True, async_stager=self._stager
        )
        return _ticket(response.upload_completion, response.staging_completion.result)


class DcpProcess(Dcp):
    name = "dcp.async_save, process"
    what = "dcp.async_save, a copy, then a process of its own (started beforehand)"
    background = True
    extra_copies = 3.0

    def set_up(self, tree: Tree, folder: str) -> None:
        import torch
        import torch.distributed

        _start_process_group()
        self._save({"warm": torch.zeros(1)}, os.path.join(folder, "warm")).result()

    def _save(self, tree: Tree, path: str) -> Any:
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        return self._dcp.async_save(
            tree, checkpoint_id=path, async_checkpointer_type=AsyncCheckpointerType.PROCESS
        )

    def save(self, tree: Tree, path: str) -> Ticket:
        return _ticket(self._save(tree, path))

    def tear_down(self) -> None:
        import torch.distributed

        torch.distributed.destroy_process_group()


class DcpProcessStager(DcpThreadReuse):
    name = "dcp.async_save, async staging, process"
    what = "dcp.async_save, DefaultStager with shared memory and async staging, then a process"
    copies = False

    def set_up(self, tree: Tree, folder: str) -> None:
        import torch

        _start_process_group()
        self._stager = self._make_stager(shared=True, background=True)
        warm = self._save({"warm": torch.zeros(1)}, os.path.join(folder, "warm"))
        warm.upload_completion.result()

    def _save(self, tree: Tree, path: str) -> Any:
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        return self._dcp.async_save(
            tree,
            checkpoint_id=path,
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            async_stager=self._stager,
        )

    def save(self, tree: Tree, path: str) -> Ticket:
        response = self._save(tree, path)
        return _ticket(response.upload_completion, response.staging_completion.result)

    def tear_down(self) -> None:
        import torch.distributed

        super().tear_down()
        torch.distributed.destroy_process_group()


def _start_process_group() -> None:
    import torch.distributed

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)


# ------------------------------------------------------------------------------------ others


class Orbax(Peer):
    name = "orbax async"
    what = "orbax StandardCheckpointer, which saves in the background"
    durable = "files"
    background = True
    directory = True
    kinds = frozenset({"numpy", "jax"})
    needs = ("orbax.checkpoint",)

    @classmethod
    def missing(cls) -> str | None:
        absent = importlib.util.find_spec("orbax") is None
        return "not installed: orbax-checkpoint" if absent else None

    def set_up(self, tree: Tree, folder: str) -> None:
        import orbax.checkpoint as ocp

        self._checkpointer = ocp.StandardCheckpointer()
        self._pool = ThreadPoolExecutor(1)

    def save(self, tree: Tree, path: str) -> Ticket:
        self._checkpointer.save(path, tree)
        waiter = self._pool.submit(self._checkpointer.wait_until_finished)
        return _ticket(waiter)

    def template(self, tree: Tree, how: How, probe: tuple[str, str]) -> Any:
        import jax
        import orbax.checkpoint as ocp

        return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        return self._checkpointer.restore(path, template)

    def tear_down(self) -> None:
        self._pool.shutdown()
        self._checkpointer.close()


class TorchCheckpointing(Peer):
    name = "torch_checkpointing"
    what = "torch_checkpointing: staged to shared memory, written by a process (started beforehand)"
    background = True
    copies = False
    directory = True
    needs = ("torch_checkpointing",)
    hows = ("whole", "partial")
    extra_copies = 2.0

    def set_up(self, tree: Tree, folder: str) -> None:
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        # Its direct I/O passes the open and fails at the first write on ext4.
        storage = LocalFileSystemStorageConfig(use_direct_io=False)
        config = CheckpointManager.Config(storage_config=storage)
        self._manager = CheckpointManager(config)
        self._manager.save(os.path.join(folder, "warm"), {"warm": 1}).result()
        self._manager.prewarm_staging(tree)

    def save(self, tree: Tree, path: str) -> Ticket:
        return _ticket(self._manager.save(path, tree), self._staged)

    def _staged(self) -> None:
        with self._manager.lock():
            pass

    def guard(self, ticket: Ticket) -> contextlib.AbstractContextManager[Any]:
        return self._manager.lock()

    def template(self, tree: Tree, how: How, probe: tuple[str, str]) -> Any:
        if how == "partial":
            return {probe[0]: {probe[1]: _blank(tree[probe[0]][probe[1]])}}
        return dict.fromkeys(tree)

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        return self._manager.load(path, into=template)

    def tear_down(self) -> None:
        self._manager.close()


# ----------------------------------------------------------------------------------- genesis


class Genesis(Peer):
    name = "genesis.save"
    what = "genesis.save(state, path): returns when it is durable"
    durable = "yes"
    dill = True
    needs = ("genesis",)
    hows = ("whole", "restricted", "mapped", "partial")
    extra_copies = 0.2

    def imports(self) -> None:
        import genesis

        self._genesis = genesis

    def save(self, tree: Tree, path: str) -> Ticket:
        self._genesis.save(tree, path, clear=False)
        return Ticket()

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        mapped = how in ("mapped", "partial")
        loaded = self._genesis.load(path, mmap=mapped, weights_only=how == "restricted")
        return _copied(loaded[probe[0]][probe[1]]) if how == "partial" else loaded

    def tear_down(self) -> None:
        self._genesis.flush()


class GenesisCopy(Genesis):
    name = "genesis background"
    what = 'genesis.save(state, path, background=True), capture="copy", prewarmed'
    background = True
    capture: ClassVar[Literal["copy", "deferred"]] = "copy"
    extra_copies = 1.1

    def set_up(self, tree: Tree, folder: str) -> None:
        self._genesis.prewarm(tree)

    def save(self, tree: Tree, path: str) -> Ticket:
        future = self._genesis.save(tree, path, background=True, clear=False, capture=self.capture)
        return _ticket(future, future.wait_captured)


class GenesisDeferred(GenesisCopy):
    name = "genesis deferred"
    what = 'genesis.save(state, path, background=True, capture="deferred"), prewarmed'
    copies = False
    capture = "deferred"


PEERS: tuple[type[Peer], ...] = (
    TorchSave,
    TorchSaveFsync,
    PlainDill,
    AiofilesDill,
    DeepcopyThread,
    Safetensors,
    Joblib,
    Dcp,
    DcpThread,
    DcpThreadReuse,
    DcpStager,
    DcpProcess,
    DcpProcessStager,
    TorchCheckpointing,
    Orbax,
    Genesis,
    GenesisCopy,
    GenesisDeferred,
)


def peer_named(name: str) -> type[Peer]:
    """The adapter of a name.

    Raises:
        KeyError: no peer has it.
    """
    return {peer.name: peer for peer in PEERS}[name]
