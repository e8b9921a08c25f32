"""Ranks that are forked from one process, which has imported torch once for all of them.

Run as a script, it reads a line of JSON for each job, ``[program, folder, ranks, seconds]``, and
answers with one: what the ranks printed. With `seconds` it kills one of them, so long after the
second line. A rank that fails prints why after ``FAILED``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from typing import Any

warnings.simplefilter("ignore")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import Replicate, Shard, distribute_tensor  # noqa: E402

import genesis  # noqa: E402
from genesis.integrations.distributed import GenesisReader, GenesisWriter  # noqa: E402

NAMES = {
    "dcp": dcp, "dist": dist, "distribute_tensor": distribute_tensor, "fully_shard": fully_shard,
    "genesis": genesis, "GenesisReader": GenesisReader, "GenesisWriter": GenesisWriter,
    "get_state_dict": get_state_dict, "init_device_mesh": init_device_mesh, "os": os,
    "Replicate": Replicate, "set_state_dict": set_state_dict, "Shard": Shard, "torch": torch,
}  # fmt: skip
"""What a program finds, beside `rank`, `world` and `folder`."""


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(job(*json.loads(line))), flush=True)


def job(program: str, folder: str, ranks: int, seconds: float | None) -> list[str]:
    reading, writing = os.pipe()
    children = [start(program, folder, rank, ranks, writing) for rank in range(ranks)]
    os.close(writing)
    with os.fdopen(reading) as output:
        said = []
        if seconds is not None:
            said = []  # one of each rank, beside what torch 2.8 lets out of gloo
            while sum(not line.startswith("[Gloo]") for line in said) < 2:
                said.append(output.readline())
            time.sleep(seconds)
            os.kill(random.choice(children), signal.SIGKILL)
        said += output
    for child in children:
        os.waitpid(child, 0)
    return said


def start(program: str, folder: str, rank: int, ranks: int, output: int) -> int:
    if child := os.fork():
        return child
    os.dup2(output, sys.stdout.fileno())
    try:
        run(program, {**NAMES, "folder": folder, "rank": rank, "world": ranks})
    except BaseException:
        print("FAILED", f"rank {rank}", traceback.format_exc(), flush=True)
    finally:
        os._exit(0)


def run(program: str, names: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    store = f"file://{names['folder']}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=names["rank"], world_size=names["world"]
    )
    exec(program, names)
    dist.barrier()


if __name__ == "__main__":
    main()
