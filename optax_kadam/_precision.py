"""In which precision arithmetic is done, whatever the arrays are kept in."""

import jax
import jax.numpy as jnp


def arithmetic_dtype(*arrays: jax.Array | None) -> type[jnp.floating]:
    """Return float64 if one of the arrays holds it, and float32 otherwise: also for bfloat16 and float16 arrays.

    Keras computes in the dtype of the variable, where a bfloat16 `beta_2` of 0.999 is 1 and nothing ever moves.
    """
    return jnp.float64 if any(array is not None and array.dtype == jnp.float64 for array in arrays) else jnp.float32
