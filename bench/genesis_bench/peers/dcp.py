"""torch.distributed.checkpoint, in each of its ways."""

from __future__ import annotations

import os
import socket
from typing import Any

from ..states import Tree
from .base import How, Peer, Ticket, blank, ticket


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
            return {probe[0]: {probe[1]: blank(tree[probe[0]][probe[1]])}}
        return blank(tree)

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        self._dcp.load(template, checkpoint_id=path, no_dist=True)
        return template


class DcpThread(Dcp):
    name = "dcp.async_save"
    what = "dcp.async_save as its recipe calls it: a copy, then a thread"
    background = True
    extra_copies = 2.0

    def save(self, tree: Tree, path: str) -> Ticket:
        future = self._dcp.async_save(tree, checkpoint_id=path, no_dist=True)
        return ticket(future)


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
        return ticket(future)

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
        return ticket(response.upload_completion, response.staging_completion.result)


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
        return ticket(self._save(tree, path))

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
        return ticket(response.upload_completion, response.staging_completion.result)

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
