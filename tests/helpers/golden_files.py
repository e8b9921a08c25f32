"""The golden files: what is in them, and, run as a program, the writing of them.

A file that is there is never written again: it stands for every file of its format version that
people have. A new version of the format gets new files beside the old ones.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from optional import torch

FOLDER = Path(__file__).parents[1] / "golden"
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "bool", "complex64"),
)


class Settings:
    """Of `__main__` when this is run as a program, so that dill writes it by value."""

    rate = 0.5


def plain_state() -> dict[str, Any]:
    shared = ["shared"]
    state: dict[str, Any] = {
        "none": None,
        "numbers": [0, -1, 255, 1 << 40, -(1 << 100), 0.1, float("inf"), 2.5 - 1j, True],
        "texts": ("", "text", "größe 🌱", b"", b"\x00\xff", bytearray(b"mutable")),
        "sets": ({1, 2, 3}, frozenset({"a"})),
        "large": bytes(range(256)) * 300,
        "shared": [shared, shared],
        "order": OrderedDict(b=1, a=2),
        5: {("tuple", 1): "as a key"},
    }
    state["itself"] = state
    return state


def numpy_state() -> dict[str, Any]:
    numbers = np.arange(24, dtype="<f8").reshape(2, 3, 4)
    return {
        "float64": numbers,
        "transposed": numbers.transpose(),
        "fortran": np.asfortranarray(numbers[0].astype("<i4")),
        "big endian": np.arange(5, dtype=">u2"),
        "structure": np.array([(1, 2.5), (3, 4.5)], dtype=[("x", "<i4"), ("y", "<f8")]),
        "time": np.array(["2026-01-01", "NaT"], dtype="datetime64[s]"),
        "text": np.array(["ab", "c"]),
        "bool": np.array([True, False]),
        "half": np.float16(1.5),
        "0-d": np.array(7),
        "empty": np.empty((0, 3), dtype="<f4"),
    }


def torch_state() -> dict[str, Any]:
    numbers = torch.arange(12).reshape(3, 4)
    model: dict[str, Any] = {name: numbers.to(getattr(torch, name)) for name in DTYPES}
    model["weight"] = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    model["tied"] = model["weight"]
    model["view of it"] = model["weight"].detach()[1]
    model["strided"] = numbers.t()
    model["0-d"] = torch.tensor(3.5)
    model["empty"] = torch.empty(0, 3)
    optimizer = {
        "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.full((3, 4), 0.25)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}],
    }
    return {"epoch": 3, "model_state_dict": model, "optimizer_state_dict": optimizer}


def dill_state() -> dict[str, Any]:
    settings = Settings()
    settings.layers = [64, 10]
    objects = np.array([None, "x", 3], dtype=object)
    return {"settings": settings, "again": settings, "w": torch.arange(3.0), "a": objects}


STATES = {"plain": plain_state, "numpy": numpy_state, "torch": torch_state, "dill": dill_state}


def golden(name: str) -> Path:
    return FOLDER / f"version-1-{name}.pth"


def main() -> None:
    import genesis

    for name, make in STATES.items():
        if not golden(name).exists():
            genesis.save(make(), golden(name), metadata={"golden": name, "größe": [1, None]})


if __name__ == "__main__":
    main()
