"""The axes of a mesh: how arrays are divided along them, and sums over the parts."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from optax_kadam import _check

T = TypeVar("T")


def in_auto_axes(function: Callable[..., T], specs: object, *arguments: object) -> T:
    """Call a function that looks up rows, and let the compiler decide how they are divided.

    Without explicit mesh axes, the compiler decides anyway, and `specs` are ignored. With them, they say how the result
    is to lie.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arguments)]
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return function(*arguments)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.sharding.auto_axes(function, out_sharding=shardings)(*arguments)  # pyright: ignore[reportReturnType]: T.


def spec_of(x: jax.Array) -> PartitionSpec:
    """How an array is divided, as far as its type tells: along explicit axes."""
    return jax.typeof(x).sharding.spec


def spec_of_rows(table: jax.Array, indices: jax.Array) -> PartitionSpec:
    """How `table[indices]` is divided: by its indices, and each row as the rows of the table."""
    of_indices = spec_of(indices)
    taken = jax.tree.leaves(tuple(of_indices))
    of_row = (None if set(jax.tree.leaves(names)) & set(taken) else names for names in spec_of(table)[1:])
    return PartitionSpec(*of_indices, *of_row)


def sum_over_shards(sums: list[jax.Array], axis_names: tuple[str, ...] | None) -> list[jax.Array]:
    """Add to sums over one shard those over the others, all that are divided alike in one all-reduce.

    Args:
      sums: one for each array, of one element each.
      axis_names: the mesh axes to sum over; none of them for sums over one shard; None where nothing is divided, which
        is refused if JAX knows of an axis along which a sum varies.
    """
    groups: dict[tuple[frozenset[str], object], list[int]] = {}
    for i, x in enumerate(sums):
        groups.setdefault((_varying(x), x.dtype), []).append(i)
    for (varying, _), members in groups.items():
        _check_named(varying, axis_names)
        # Without `check_vma` nothing varies as far as JAX knows, not even what is different on every device.
        over = tuple(n for n in axis_names or () if n in varying or not _varying(_check.axis_index(n)))
        if over:
            whole = jax.lax.psum(jnp.stack([jnp.sum(sums[i]) for i in members]), over)
            for i, x in zip(members, whole, strict=True):
                sums[i] = x.reshape(sums[i].shape)
    return sums


def _check_named(varying: frozenset[str], axis_names: tuple[str, ...] | None) -> None:
    """Raise if something is summed up that varies along other axes than those that are named."""
    unnamed = sorted(varying.difference(axis_names or ()))
    if unnamed and axis_names != ():
        raise ValueError(
            f"`axis_name` must name every mesh axis that gradients vary over, {', '.join(map(repr, unnamed))} too. "
            f"Received: axis_name={axis_names!r}. Pass axis_name={tuple(sorted(varying))!r}, or axis_name=() if each "
            "shard is meant alone."
        )


def _varying(x: jax.Array) -> frozenset[str]:
    """Return the mesh axes along which `jax.shard_map` knows the array to vary."""
    return jax.typeof(x).mat.varying
