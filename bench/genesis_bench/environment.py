"""Describes the machine and the versions that a result belongs to, in one line and as a dict.

Names no host, user or path.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from typing import Any

from . import procfs

PACKAGES = (
    "genesis-checkpoint",
    "torch",
    "numpy",
    "jax",
    "orbax-checkpoint",
    "torch-checkpointing",
    "safetensors",
    "joblib",
    "dill",
    "aiofiles",
)

BIAS = (
    "Bias: genesis's authors wrote this. One machine, one disk, states of float32 on the CPU. "
    "Each peer has a process of its own and no other work to do; memory that a peer keeps for the "
    "next save is warm. File writers replace the file of the save before, directory writers get a "
    "new directory and its removal is free. Processes are started, and staging memory is prepared "
    "where a peer offers that, before the clock runs. Peers differ in what they do for the time: "
    "only genesis makes checksums, syncs the directory and keeps the old file until the new one "
    "is durable. Processor time that the kernel spends on writing back is nobody's. Cold loads are "
    "cold for this machine's page cache only; a virtual disk may have a cache of its own behind it."
)


def describe(folder: str) -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": procfs.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": procfs.file_system(folder),
        "python": platform.python_version(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # genesis on PYTHONPATH instead of installed: a checkout.
        return "checkout" if package.startswith("genesis") else "absent"


def line(environment: dict[str, Any]) -> str:
    """The environment in one line."""
    packages = ", ".join(
        f"{name} {version}"
        for name, version in environment["packages"].items()
        if version != "absent"
    )
    return (
        f"{environment['processor']}, {environment['cores']} cores, "
        f"{environment['memory_gb']} GB; {environment['kernel']}, {environment['file_system']}; "
        f"Python {environment['python']}, {packages}"
    )
