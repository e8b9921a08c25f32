"""Pytrees of JAX arrays onto shardings of eight devices, in a process that has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from contention import HELPERS

pytest.importorskip("jax", reason="JAX is not installed")

TOOLS = """
import sys
sys.path.append(sys.argv[2])
import warnings
from pathlib import Path
from contention import held
from typing import NamedTuple
import numpy as np, jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import genesis
from genesis.integrations.jax import restore
path = sys.argv[1]
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
rows, both, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P("data", "model"), P()))
class Adam(NamedTuple):
    count: jax.Array
    mu: dict
def state(sharding=None):
    w = jnp.arange(64.0).reshape(8, 8)
    w = w if sharding is None else jax.device_put(w, sharding)
    return {"params": {"w": w, "b": jnp.ones(8, jnp.bfloat16)},
            "opt": (Adam(jnp.int32(3), {"w": w + 1}), None), "step": 7}
def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()
def refused(call, *words):
    try:
        call()
    except ValueError as exc:
        assert all(word in str(exc) for word in words), exc
    else:
        raise AssertionError("it was not refused")
"""

CASES = {
    "the sharding of the template": """
genesis.save(state(both), path, clear=False)
got = restore(path, state(rows))
equal(got, state())
assert got["params"]["w"].sharding == rows and got["opt"][0].mu["w"].sharding == rows
assert got["step"] == 7 and isinstance(got["opt"][0], Adam)
""",
    "shapes alone, and one sharding for all": """
genesis.save(state(rows), path, clear=False)
shapes = jax.eval_shape(state)
got = restore(path, shapes, sharding=whole)
equal(got, state())
assert all(leaf.sharding == whole for leaf in jax.tree.leaves(got["params"]))
""",
    "a prefix of shardings": """
tree = {"params": state()["params"], "opt": state()["opt"]}
genesis.save(tree, path, clear=False)
got = restore(path, tree, sharding={"params": whole, "opt": whole})
equal(got, tree)
""",
    "a part, and weights_only": """
genesis.save({"params": state(both)["params"], "step": 3}, path)
template = state(rows)["params"]
for weights_only in (False, True):
    got = restore(path, template, part="params", weights_only=weights_only)
    equal(got, template)
    assert got["w"].sharding == rows
""",
    "what does not fit is named before an array is made": """
genesis.save(state(), path, clear=False)
other = state()
other["params"]["w"] = jnp.zeros((8, 4))
other["params"]["b"] = jnp.ones(8)
other["params"]["c"] = other["opt"][0].mu.pop("w")
refused(lambda: restore(path, other), "does not fit", "params/w is float32 of (8, 4)",
        "in the file float32 of (8, 8)", "params/b is float32 of (8,), in the file bfloat16",
        "params/c is not in the file", "opt/0/mu/w is in the file alone")
""",
    "a sharded array is saved whole, once": """
genesis.save({"w": state(both)["params"]["w"]}, path)
(row,) = genesis.inspect(path).arrays
assert row.shape == (8, 8) and row.bytes == 256
assert (genesis.load(path)["w"] == jnp.arange(64.0).reshape(8, 8)).all()
""",
    "a file that is cut short afterwards": """
tree = {"w": jnp.arange(1e6), "b": jnp.ones(3)}
genesis.save(tree, path, clear=False)
for sharding in (None, whole):
    got = restore(path, tree, sharding=sharding)
    with open(path, "r+b") as file:
        file.truncate(0)
    equal(got, tree)
    genesis.save(tree, path, clear=False)
""",
    "typed keys": """
keys = jax.random.split(jax.random.key(3), 8)
genesis.save({"key": keys}, path)
got = restore(path, {"key": keys}, sharding=rows)["key"]
assert got.sharding == rows and (jax.random.key_data(got) == jax.random.key_data(keys)).all()
""",
    "a replicated array over memory that others write": """
memory = np.zeros(4_000_064, np.uint8)
start = -memory.__array_interface__["data"][0] % 64
memory = memory[start : start + 4_000_000].view("f4")
with held(Path(path).parent):
    future = genesis.save({"x": jax.device_put(memory, whole)}, path, background=True)
    memory.fill(7)
future.result(60)
assert not np.asarray(genesis.load(path)["x"]).any()
""",
    "donated after the call": """
for sharding in (None, rows):
    w = state(sharding)["params"]["w"]
    future = genesis.save({"w": w}, path, background=True)
    step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    step(w).block_until_ready()
    future.result()
    assert (genesis.load(path)["w"] == jnp.arange(64.0).reshape(8, 8)).all()
""",
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_on_eight_devices(tmp_path: Path, case: str) -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TOOLS + case, tmp_path / "f", HELPERS],
        env=os.environ | flags,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
