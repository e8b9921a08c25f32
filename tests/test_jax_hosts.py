"""States of Optax and Flax, saved as they are and restored in the form of a template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genesis

jax = pytest.importorskip("jax", reason="JAX is not installed")
pytest.importorskip("jax.experimental")

from genesis.integrations.jax import restore  # noqa: E402

jnp = jax.numpy


def same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (type(a), a.dtype, a.shape) == (type(b), b.dtype, b.shape)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.array_equal(a, b)


@pytest.mark.parametrize("weights_only", [False, True])
def test_states_of_optax(weights_only: bool, path: Path) -> None:
    optax = pytest.importorskip("optax", reason="optax is not installed")
    params = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-3, 0, 10))
    )
    _, state = optimizer.update(params, optimizer.init(params), params)
    saved = {"params": params, "opt": state, "key": jax.random.key(1)}
    if weights_only:
        del saved["key"]
    genesis.save(saved, path, background=True, clear=False).result()
    loaded = restore(path, template=jax.eval_shape(lambda: saved), weights_only=weights_only)
    same(saved, loaded)
    optimizer.update(params, loaded["opt"], params)


def test_a_train_state_of_linen(path: Path) -> None:
    linen = pytest.importorskip("flax.linen", reason="flax is not installed")
    optax = pytest.importorskip("optax", reason="optax is not installed")
    train_state = pytest.importorskip("flax.training.train_state", reason="flax is not installed")

    model = linen.Dense(3)
    optimizer = optax.adam(0.1)

    def make() -> Any:
        params = model.init(jax.random.key(0), jnp.ones((1, 4)))
        return train_state.TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)

    state = make()
    state = state.apply_gradients(grads=state.params)
    genesis.save(state, path, clear=False)
    # The file has functions that are not the same ones as the template's: those of the template
    # are what is wanted.
    loaded = restore(path, template=make())
    assert (loaded.tx, int(loaded.step)) == (optimizer, 1)
    same(state.params, loaded.params)
    same(state.opt_state, loaded.opt_state)


def test_states_of_nnx(path: Path) -> None:
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")

    def state(seed: int) -> Any:
        model = nnx.Sequential(
            nnx.Linear(4, 3, rngs=nnx.Rngs(seed)), nnx.Dropout(0.1, rngs=nnx.Rngs(5))
        )
        return nnx.state(model)

    saved = state(0)
    genesis.save(saved, path, clear=False)
    same(saved, restore(path, template=state(1)))
    same(saved, restore(path, template=jax.eval_shape(lambda: state(1))))
