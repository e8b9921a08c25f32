"""JAX arrays as pickles of ``jax.numpy.asarray`` over a NumPy array.

A JAX array cannot change, so its bytes are referenced, not copied, until the pool gets to them.
Typed PRNG keys and arrays spread over several hosts are left to their own reduction.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._plan import DataRegion


def reducer_for(cls: type, region: DataRegion) -> Any:
    return reduce_array if issubclass(cls, jax.Array) else None


def reduce_array(array: Any) -> Any:
    """Bring the array to the host (no copy is made on a CPU); rebuild it on the default device."""
    if jnp.issubdtype(array.dtype, jax.dtypes.extended) or not array.is_fully_addressable:
        return array.__reduce_ex__(5)
    return jnp.asarray, (np.asarray(array),)
