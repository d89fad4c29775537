"""How the state lies on a mesh: sharded like the parameters; and sums over the shards."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from optax_kadam import _check


def zeros_like(x: jax.Array, dtype: Any = None) -> jax.Array:
    """`jnp.zeros_like`, sharded like `x` also under `jit`: its constant would be kept whole on every device there."""
    if not isinstance(x, jax.core.Tracer):
        return jnp.zeros_like(x, dtype)
    # False everywhere, but the compiler does not know: sharding reaches an array from those that it is made of.
    return (jnp.isnan(x) & jnp.isfinite(x)).astype(x.dtype if dtype is None else dtype)


def sum_over_shards(sums: list[jax.Array], axis_names: tuple[str, ...]) -> list[jax.Array]:
    """Add to sums over one shard those over the others, all that are divided alike in one all-reduce."""
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(sums):
        groups.setdefault((_varying(x), x.dtype), []).append(i)
    for (varying, _), members in groups.items():
        # Without `check_vma` nothing varies as far as JAX knows, not even what is different on every device.
        over = tuple(name for name in axis_names if name in varying or not _varying(_check.axis_index(name)))
        if over:
            whole = jax.lax.psum(jnp.stack([jnp.sum(sums[i]) for i in members]), over)
            for i, x in zip(members, whole, strict=True):
                sums[i] = x.reshape(sums[i].shape)
    return sums


def _varying(x: jax.Array) -> frozenset[str]:
    """The mesh axes along which `jax.shard_map` knows the array to vary."""
    return jax.typeof(x).mat.varying
