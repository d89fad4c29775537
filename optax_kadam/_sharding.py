"""How the state lies on a mesh: sharded like the parameters."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp


def zeros_like(x: jax.Array, dtype: Any = None) -> jax.Array:
    """`jnp.zeros_like`, sharded like `x` also under `jit`: its constant would be kept whole on every device there."""
    if not isinstance(x, jax.core.Tracer):
        return jnp.zeros_like(x, dtype)
    # False everywhere, but the compiler does not know: sharding reaches an array from those that it is made of.
    return (jnp.isnan(x) & jnp.isfinite(x)).astype(x.dtype if dtype is None else dtype)
