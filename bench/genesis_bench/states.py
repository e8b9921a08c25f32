"""The states that are saved: each as a training loop would hand it over, sized by the caller.

A state is built in the process that saves it; nothing here is written or read.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

MB = 1_000_000
Kind = Literal["torch", "numpy", "jax", "objects"]
Tree = dict[str, Any]


@dataclass
class State:
    """A state and what a training step does to it.

    `fresh` gives the dict to save: a new one each time, as `module.state_dict()` does.
    `touch` changes every tensor, in place where the framework can.
    `probe` names the one tensor that a partial load wants.
    """

    name: str
    kind: Kind
    fresh: Callable[[], Tree]
    touch: Callable[[], None]
    probe: tuple[str, str]
    needs_dill: bool = False
    trainer: Any = None
    nbytes: int = field(init=False)
    count: int = field(init=False)

    def __post_init__(self) -> None:
        arrays = list(flat(self.fresh()).values())
        self.nbytes = sum(int(array.nbytes) for array in arrays)
        self.count = len(arrays)


# What a full run takes, and what `--quick` takes, in bytes.
SIZES: dict[str, tuple[int, int]] = {
    "big": (1000 * MB, 100 * MB),
    "small": (4 * MB, 4 * MB),
    "many": (100 * MB, 10 * MB),
    "few": (100 * MB, 10 * MB),
    "huge": (8000 * MB, 200 * MB),
    "objects": (4 * MB, 1 * MB),
    "plain_objects": (4 * MB, 1 * MB),
    "numpy": (300 * MB, 100 * MB),
    "jax": (300 * MB, 100 * MB),
}
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("big", "huge", "gpt", "small", "many", "few", "tensors"), "torch"),
    **dict.fromkeys(("objects", "plain_objects"), "objects"),
    "numpy": "numpy",
    "jax": "jax",
}
SMALL_TENSOR = 1000  # bytes of a tensor of `many`; `few` has the same bytes in a 1000th as many


def build(name: str, nbytes: int, count: int | None = None) -> State:
    """Make a state of about `nbytes` bytes; `count` tensors, where the state leaves that open."""
    if name in ("big", "huge", "gpt"):
        return _gpt(name, nbytes)
    if name == "small":
        return _small(nbytes)
    if name in ("many", "few", "tensors"):
        default = nbytes // SMALL_TENSOR // (1000 if name == "few" else 1)
        return _tensors(name, nbytes, count or max(1, default))
    if name in ("objects", "plain_objects"):
        return _objects(name, nbytes)
    if name == "numpy" or name == "jax":
        return _arrays(name, nbytes)
    raise ValueError(f"no state is called {name!r}")


# ------------------------------------------------------------------------------------- torch


def _gpt(name: str, nbytes: int) -> State:
    from .gpt import Trainer, gpt_of

    trainer = Trainer(gpt_of(nbytes))
    trainer.prime()
    return _trained(name, trainer, "blocks.4.up.weight")


def _small(nbytes: int) -> State:
    """1,200 parameters of 960 bytes with AdamW: 4,800 tensors, all under 1 KB."""
    from torch import nn

    from .gpt import Trainer

    layers = max(2, round(1200 * nbytes / (4 * MB)))
    module = nn.Sequential(
        *(nn.Linear(15 + i % 2, 16 - i % 2, bias=False) for i in range(layers)),
    )
    trainer = Trainer(module)
    trainer.prime()
    return _trained("small", trainer, f"{layers // 2}.weight")


def _trained(name: str, trainer: Any, probe: str) -> State:
    import torch

    tensors = [tensor for tensor in flat(trainer.state()).values() if tensor.dim()]

    def touch() -> None:
        with torch.no_grad():
            torch._foreach_mul_(tensors, 1.0009765625)

    return State(name, "torch", trainer.state, touch, ("model", probe), trainer=trainer)


def _tensors(name: str, nbytes: int, count: int) -> State:
    import torch

    length = max(1, nbytes // count // 4)
    tensors = [torch.randn(length) for _ in range(count)]
    named = {f"layer.{i:06d}.weight": tensor for i, tensor in enumerate(tensors)}
    return State(
        name,
        "torch",
        lambda: {"model": dict(named)},
        lambda: torch._foreach_add_(tensors, 0.25),
        ("model", f"layer.{count // 2:06d}.weight"),
    )


# ----------------------------------------------------------------------------- numpy and jax


def _arrays(name: str, nbytes: int) -> State:
    """The shapes of the GPT's state: 100 parameters with two moments each, 300 arrays."""
    import numpy as np

    from .gpt import gpt_of

    generator = np.random.default_rng(0)
    block = generator.standard_normal(1 << 20, dtype=np.float32)
    shapes = {key: tuple(value.shape) for key, value in gpt_of(nbytes).named_parameters()}
    tree = {
        part: {key: np.resize(block, shape) for key, shape in shapes.items()}
        for part in ("model", "first_moment", "second_moment")
    }
    make = _jax_state if name == "jax" else _numpy_state
    return make(tree, ("model", "blocks.4.up.weight"))


def _numpy_state(tree: Tree, probe: tuple[str, str]) -> State:
    import numpy as np

    def touch() -> None:
        for array in flat(tree).values():
            np.multiply(array, np.float32(1.0009765625), out=array)

    return State("numpy", "numpy", lambda: _shallow(tree), touch, probe)


def _jax_state(tree: Tree, probe: tuple[str, str]) -> State:
    import jax
    import jax.numpy as jnp

    held = jax.block_until_ready(jax.tree.map(jnp.asarray, tree))
    update = jax.jit(lambda t: jax.tree.map(lambda x: x * 1.0009765625, t))

    # A JAX array never changes: a step makes new ones.
    def touch() -> None:
        held.update(jax.block_until_ready(update(held)))

    return State("jax", "jax", lambda: _shallow(held), touch, probe)


def _shallow(tree: Tree) -> Tree:
    return {part: dict(arrays) for part, arrays in tree.items()}


# ----------------------------------------------------------------------------------- objects


@dataclass
class Sample:
    """A record as a data pipeline keeps it."""

    name: str
    label: int
    weights: tuple[float, ...]
    parent: Sample | None = None


def _objects(name: str, nbytes: int) -> State:
    """Mostly Python objects, some tensors; lambdas and closures too unless it is the plain one."""
    import torch

    rng = random.Random(0)
    # About 100 bytes of pickle for each of the three things made per item.
    count = max(10, nbytes // 300)
    tensors = {f"head.{i}": torch.randn(64) for i in range(8)}
    tree: Tree = {
        "samples": _samples(rng, count),
        "history": [
            {"step": i, "loss": rng.random(), "tags": [f"tag{i % 17}", f"run{i}"]}
            for i in range(count)
        ],
        "vocabulary": {f"token-{rng.getrandbits(64):016x}": i for i in range(count)},
        "generator": rng.getstate(),
    }
    needs_dill = name == "objects"
    if needs_dill:
        tree |= _callables(rng.random())
    return State(
        name,
        "objects",
        lambda: {"model": dict(tensors), **tree},
        lambda: torch._foreach_add_(list(tensors.values()), 0.25),
        ("model", "head.3"),
        needs_dill=needs_dill,
    )


def _samples(rng: random.Random, count: int) -> list[Sample]:
    samples: list[Sample] = []
    for i in range(count):
        parent = samples[i // 2] if i else None
        samples.append(Sample(f"sample-{i}", i % 10, (rng.random(), rng.random()), parent))
    return samples


def _callables(rate: float) -> Tree:
    def decayed(step: int) -> float:
        return rate * 0.99**step

    counts: defaultdict[str, int] = defaultdict(lambda: 7)
    counts["seen"] = 3
    return {"schedule": lambda step: 0.95**step, "decayed": decayed, "counts": counts}


# --------------------------------------------------------------------------------- utilities


def is_array(leaf: object) -> bool:
    """True for a tensor of torch and an array of NumPy or JAX."""
    return hasattr(leaf, "dtype") and hasattr(leaf, "nbytes") and hasattr(leaf, "shape")


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested dicts, lists and tuples, with its keys joined by slashes."""
    if isinstance(tree, dict) and type(tree) is not defaultdict:
        items: Any = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        yield prefix, tree
        return
    for key, value in items:
        yield from leaves(value, f"{prefix}/{key}" if prefix else str(key))


def flat(tree: Any) -> dict[str, Any]:
    """The arrays of a state by name."""
    return {name: leaf for name, leaf in leaves(tree) if is_array(leaf)}


def as_numpy(array: Any) -> Any:
    """A NumPy view of an array or tensor on the CPU."""
    import numpy as np

    return np.asarray(array.detach() if hasattr(array, "detach") else array)


def snapshot(tree: Any) -> dict[str, Any]:
    """A copy of every array, and of what callables answer, to compare a loaded state with."""
    return {name: _value(leaf) for name, leaf in leaves(tree) if is_array(leaf) or _counts(leaf)}


def differences(loaded: Any, expected: dict[str, Any]) -> list[str]:
    """The names under which a loaded state lacks something or has other values."""
    found = dict(leaves(loaded))
    return [
        name
        for name, value in expected.items()
        if name not in found or not _same(_value(found[name]), value)
    ]


def _same(one: Any, other: Any) -> bool:
    import numpy as np

    return np.array_equal(one, other) if is_array(other) else bool(one == other)


def _counts(leaf: Any) -> bool:
    return callable(leaf) or isinstance(leaf, Sample | defaultdict)


def _value(leaf: Any) -> Any:
    if is_array(leaf):
        return as_numpy(leaf).copy()
    if callable(leaf):
        return leaf(3)
    if isinstance(leaf, defaultdict):
        return leaf["never seen"], dict(leaf)
    return leaf.name, leaf.label, leaf.weights, leaf.parent.name if leaf.parent else None
