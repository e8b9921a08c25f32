"""Programs that run as several ranks of one job, over gloo, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_BEGIN = """
import os, sys
import torch
import torch.distributed as dist
import genesis
folder = {folder!r}
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo", init_method="file://" + folder + "/store", rank=rank,
                        world_size=world)
"""
_END = """
dist.barrier()
dist.destroy_process_group()
"""


def run(program: str, folder: Path, ranks: int = 2) -> list[str]:
    """What each rank printed; raises if one of them failed."""
    text = _BEGIN.format(folder=str(folder)) + program + _END
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", text],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    done = [process.communicate(timeout=300) for process in started]
    for process, (_, errors) in zip(started, done, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in done]
