"""JAX arrays as pickles of ``jax.numpy.asarray`` over a NumPy array.

A JAX array on the host cannot be changed through JAX, but it can be a view of memory that others
write, and does not say so: it is copied like any other. Of several devices, or of an accelerator,
JAX makes a copy here. Weakly typed scalars, typed PRNG keys and arrays spread over several hosts
are left to their own reduction.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import PrecisionWarning
from .._public import level_of_caller
from . import numpy
from .buffers import Call, DataRegion

# What a pickle names: the place where users find it, as JAX says itself from 0.5.1 on. The private
# module that it names before is not there in later versions, nor on the list of the safe loader.
jnp.asarray.__module__ = "jax.numpy"


def reducer_for(cls: type, region: DataRegion) -> Any:
    return partial(reduce_array, region) if issubclass(cls, jax.Array) else None


def reduce_array(region: DataRegion, array: Any) -> Any:
    """Bring the array to the host; rebuild it on the default device. No copy is made on a CPU, and
    nothing that somebody refers to is donated."""
    typed_key = jnp.issubdtype(array.dtype, jax.dtypes.extended)
    if typed_key or array.weak_type or not array.is_fully_addressable:
        return array.__reduce_ex__(5)
    # Of what each device has whole, JAX gives the memory of one of them; shards it puts together.
    on_host = next(iter(array.devices())).platform == "cpu"
    copied = not (on_host and array.is_fully_replicated)
    return jnp.asarray, (Call(numpy.reduce_array(region, np.asarray(array), frozen=copied)),)


def constructor(module: str, name: str) -> Callable[..., Any] | None:
    """A constructor of ours for one that a skeleton names, ``None`` for all others."""
    if (module, name) == ("jax.numpy", "asarray"):
        return asarray
    if (module, name) == (_reconstruct.__module__, _reconstruct.__name__):
        return _reconstruct_array
    return None


_stays: ContextVar[bool] = ContextVar("stays", default=False)


@contextmanager
def on_the_host() -> Iterator[None]:
    """In this block, and on this thread, a load gives NumPy's arrays in the place of JAX's."""
    token = _stays.set(True)
    try:
        yield
    finally:
        _stays.reset(token)


def asarray(array: np.ndarray[Any, Any]) -> Any:
    """``jax.numpy.asarray``, which halves numbers of 64 bits where JAX has none, with a warning."""
    if _stays.get():
        return array
    _warn_if_halved(array.dtype)
    return jnp.asarray(array)


_reconstruct: Any = jnp.zeros(()).__reduce__()[0]


def _reconstruct_array(make: Any, args: Any, state: Any, of_jax: Any) -> Any:
    """What JAX's own reduction names, for weakly typed scalars."""
    _warn_if_halved(next(part for part in state if isinstance(part, np.dtype)))
    return _reconstruct(make, args, state, of_jax)


def _warn_if_halved(dtype: np.dtype[Any]) -> None:
    here = jax.dtypes.canonicalize_dtype(dtype)
    if here != dtype:
        warnings.warn(
            f"the file holds JAX arrays of {dtype}, which come as {here}: 64-bit types are off in "
            "this process; jax.config.update('jax_enable_x64', True) turns them on",
            PrecisionWarning,
            stacklevel=level_of_caller(),
        )
