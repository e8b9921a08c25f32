"""FSDP2 on several ranks, saved in the background through torch.distributed.checkpoint, and resumed
on however many ranks the next start has.

    torchrun --nproc-per-node 2 examples/distributed_trainer.py run
    torchrun --nproc-per-node 4 examples/distributed_trainer.py run
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from genesis.integrations.distributed import GenesisReader, GenesisWriter

SAVE_EVERY = 10


class Run:
    """Model and optimizer, and how they go to a checkpoint and come back."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        fully_shard(self.model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.folder, self.step = folder, 0

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "step": self.step}

    def resume(self) -> None:
        if not (self.folder / "metadata.pth").exists():
            return
        state = self.state()
        dcp.load(state, storage_reader=GenesisReader(self.folder))
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.step = state["step"]

    def train(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss


def main() -> None:
    dist.init_process_group("gloo")
    # Of its own: the background save talks to the other ranks while the training does.
    saving_group = dist.new_group(backend="gloo")
    run = Run(Path(sys.argv[1] if len(sys.argv) > 1 else "distributed_run"))
    run.resume()
    first = run.step
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    saving = None
    for _ in range(3 * SAVE_EVERY):
        mine = torch.randperm(len(images))[:128]
        loss = run.train(images[mine], labels[mine])
        if run.step % SAVE_EVERY == 0:
            if saving is not None:
                saving.result()  # one save of a folder at a time
            saving = dcp.async_save(
                run.state(),
                storage_writer=GenesisWriter(run.folder),
                process_group=saving_group,
            )
    saving.result()
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} ranks: step {first} to {run.step}, loss {loss:.3f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
