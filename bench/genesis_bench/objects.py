"""States of Python objects: seconds of the processor that pickle, dill, cloudpickle and genesis
take, one row a state.

Each is run in this process, so that its classes are of ``__main__``. It takes a number of objects,
100,000 by default: ``python bench/run.py objects 1000``.
"""

from __future__ import annotations

import collections
import dataclasses
import fractions
import io
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import dill
import numpy as np

import genesis


@dataclasses.dataclass
class Sample:
    number: int
    name: str
    weights: list[float]


Step = collections.namedtuple("Step", "state action reward")


class Node:
    def __init__(self, child: Any) -> None:
        self.children = [child]


def tree(levels: int) -> Any:
    node = None
    for _ in range(levels):
        node = Node(node)
    return node


def states(count: int) -> dict[str, Callable[[], Any]]:
    text = {f"key {n}": f"value {n}" for n in range(5 * count)}
    return {
        "objects, importable": lambda: [fractions.Fraction(n, 7) for n in range(count)],
        "objects of __main__": lambda: [Sample(n, "a", [0.5]) for n in range(count)],
        "namedtuples of __main__": lambda: [Step(np.float32(n), n, 0.5) for n in range(count)],
        "small arrays": lambda: [np.full(8, n) for n in range(count)],
        "strings": lambda: text,
        "strings and one object of __main__": lambda: {**text, "sample": Sample(1, "a", [])},
        "strings and '__main__.Foo'": lambda: {**text, "name": "__main__.Foo"},
        "strings and '__main__'": lambda: {**text, "name": "__main__"},
        "ints": lambda: dict.fromkeys(range(10 * count), 1),
        "a lambda and objects": lambda: [
            lambda: 1,
            [collections.Counter("a") for _ in range(count)],
        ],
        "tree of 100 levels": lambda: tree(100),
        "tree of 1,000 levels": lambda: tree(1000),
    }


def seconds(call: Callable[[], object]) -> str:
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        try:
            call()
        except Exception as exc:
            return type(exc).__name__[:12]
        best = min(best, time.process_time() - began)
    return f"{best:.3f}"


def times(state: Any, path: Path) -> list[str]:
    calls: list[Callable[[], object]] = [
        partial(module.dump, state, io.BytesIO(), 5) for module in (pickle, dill, cloudpickle)
    ]
    calls.append(partial(genesis.save, state, path, clear=False))
    calls.append(partial(genesis.load, path))
    return [seconds(call) for call in calls]


def main(count: int) -> None:
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    row = "{:36} {:>12} {:>12} {:>12} {:>12} {:>12}".format
    print(row("", "pickle", "dill", "cloudpickle", "genesis", "load"))
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        for name, make in states(count).items():
            print(row(name, *times(make(), Path(folder, "state"))))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100_000)
