"""JAX arrays as pickles of ``jax.numpy.asarray`` over a NumPy array.

A JAX array cannot change, so its bytes are referenced, not copied, until the pool gets to them;
JAX donates no buffer that somebody refers to. Weakly typed scalars, typed PRNG keys and arrays
spread over several hosts are left to their own reduction.
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
    """Bring the array to the host (no copy is made on a CPU); rebuild it on the default device."""
    typed_key = jnp.issubdtype(array.dtype, jax.dtypes.extended)
    if typed_key or array.weak_type or not array.is_fully_addressable:
        return array.__reduce_ex__(5)
    return jnp.asarray, (Call(numpy.reduce_array(region, np.asarray(array), frozen=True)),)
