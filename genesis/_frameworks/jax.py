"""JAX arrays as pickles of ``jax.numpy.asarray`` over a NumPy array.

A JAX array on the host cannot be changed through JAX, but it can be a view of memory that others
write, and does not say so: it is copied like any other. Of several devices, or of an accelerator,
JAX makes a copy here. Weakly typed scalars, typed PRNG keys and arrays spread over several hosts
are left to their own reduction.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._plan import Call, DataRegion
from . import numpy


def reducer_for(cls: type, region: DataRegion) -> Any:
    return partial(reduce_array, region) if issubclass(cls, jax.Array) else None


def reduce_array(region: DataRegion, array: Any) -> Any:
    """Bring the array to the host; rebuild it on the default device. No copy is made on a CPU, and
    nothing that somebody refers to is donated."""
    typed_key = jnp.issubdtype(array.dtype, jax.dtypes.extended)
    if typed_key or array.weak_type or not array.is_fully_addressable:
        return array.__reduce_ex__(5)
    devices = array.devices()
    copied = len(devices) > 1 or next(iter(devices)).platform != "cpu"
    return jnp.asarray, (Call(numpy.reduce_array(region, np.asarray(array), frozen=copied)),)
