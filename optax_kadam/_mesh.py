"""How the state lies on a mesh: sharded like the parameters, or, as in ZeRO-1, divided over the data axis as well."""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optax_kadam import _check


def zeros_like(x: jax.Array, dtype: Any = None) -> jax.Array:
    """`jnp.zeros_like`, sharded like `x` also under `jit`: its constant would be kept whole on every device there."""
    if not isinstance(x, jax.core.Tracer):
        return jnp.zeros_like(x, dtype)
    # False everywhere, but the compiler does not know: sharding reaches an array from those that it is made of.
    return (jnp.isnan(x) & jnp.isfinite(x)).astype(x.dtype if dtype is None else dtype)


def in_auto_axes(function: Callable[..., Any], specs: Any, *arguments: Any) -> Any:
    """Call a function that looks up rows, which the compiler is left to shard; its result is to lie as in `specs`.

    Where no axis of the mesh is explicit, nothing is to be said, and `specs` mean nothing.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arguments)]
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return function(*arguments)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.sharding.auto_axes(function, out_sharding=shardings)(*arguments)


def spec_of(x: jax.Array) -> PartitionSpec:
    """How an array is divided, as far as its type tells: along explicit axes."""
    return jax.typeof(x).sharding.spec


def spec_of_rows(table: jax.Array, indices: jax.Array) -> PartitionSpec:
    """How `table[indices]` is divided: by its indices, and each row as the rows of the table."""
    of_indices = spec_of(indices)
    taken = jax.tree.leaves(tuple(of_indices))
    of_row = (None if set(jax.tree.leaves(names)) & set(taken) else names for names in spec_of(table)[1:])
    return PartitionSpec(*of_indices, *of_row)


def zero1_shardings(
    tx: optax.GradientTransformation,
    params: optax.Params,
    mesh: Mesh,
    axis_name: str = "data",
    *,
    indivisible: str = "error",
) -> Any:
    """Return shardings for the state of `tx` that divide its moments over the data axis: ZeRO-1.

    What has the shape of a parameter (moments, average, accumulator) is divided over `axis_name` along its first
    dimension that is not divided yet and that the size of the axis divides; all else is whole on every device. So the
    memory of the moments falls by the size of the axis, while the parameters stay as they are:

        shardings = zero1_shardings(tx, params, mesh)
        state = jax.jit(tx.init, out_shardings=shardings)(params)
        step = jax.jit(step, donate_argnums=(0, 1), out_shardings=(replicated, shardings))  # -> params, state

    Each device then updates its part of each parameter, and the parts are gathered. On top of the all-reduce of the
    gradients, which the compiler may turn into a reduce-scatter, a step costs one all-gather for each parameter that is
    divided, of the bytes of the parameter. Adam's bits do not change.

    Args:
      tx: any optax transformation.
      params: the parameters, or `jax.ShapeDtypeStruct`s of them. A `NamedSharding` of theirs on `mesh` is kept.
      mesh: the mesh of the training.
      axis_name: the axis of the mesh along which parameters are copies of each other.
      indivisible: what becomes of a leaf that has no such dimension, as a scalar: `"error"`, or `"replicate"` to leave
        it whole.

    Returns:
      A tree like `tx.init(params)`, with a `NamedSharding` for each array.

    Raises:
      ValueError: if the mesh has no such axis, a leaf cannot be divided, or `indivisible` is neither of the two.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_kadam import kadam
      >>> mesh = jax.sharding.AbstractMesh((4,), ("data",))
      >>> params = {"kernel": jnp.ones((3, 8)), "bias": jnp.ones(8)}
      >>> shardings = zero1_shardings(kadam(), params, mesh)
      >>> print({name: sharding.spec for name, sharding in optax.tree.get(shardings, "mu").items()})
      {'bias': P('data',), 'kernel': P(None, 'data')}
      >>> print(optax.tree.get(shardings, "iterations").spec)
      P()

    References:
      Rajbhandari et al. 2020, ZeRO, https://arxiv.org/abs/1910.02054, section 5.1.
    """
    if axis_name not in mesh.axis_names:
        axes = ", ".join(map(repr, mesh.axis_names))
        raise ValueError(
            f"`axis_name` must be an axis of the mesh, which has {axes}. Received: axis_name={axis_name!r}."
        )
    if indivisible not in ("error", "replicate"):
        raise ValueError(f"`indivisible` must be 'error' or 'replicate'. Received: indivisible={indivisible!r}.")
    size = mesh.shape[axis_name]

    def divided(path: Any, leaf: Any) -> NamedSharding:
        shape, spec = np.shape(leaf), _spec_on(mesh, leaf)
        free = [i for i, names in enumerate(spec) if names is None and shape[i] % size == 0]
        if free and axis_name not in jax.tree.leaves(tuple(spec)):
            spec[free[0]] = axis_name  # The outermost: parts of an inner one do not lie together, and would be copied.
        elif not free and indivisible == "error":
            raise ValueError(
                f"A leaf of `params` must have a dimension that is not divided yet and that the size of axis "
                f"{axis_name!r}, {size}, divides. Received: shape={shape} at {jax.tree_util.keystr(path)!r}. Pass "
                "indivisible='replicate' to leave such leaves whole."
            )
        return NamedSharding(mesh, PartitionSpec(*spec))

    of_params = jax.tree.map_with_path(divided, params)
    whole = NamedSharding(mesh, PartitionSpec())
    return optax.tree.map_params(
        tx,
        lambda leaf, sharding: leaf if _is_masked(leaf) else sharding,
        jax.eval_shape(tx.init, params),
        of_params,
        transform_non_params=lambda _: whole,
        is_leaf=_is_masked,
    )


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _spec_on(mesh: Mesh, leaf: Any) -> list[Any]:
    """How the leaf is divided over the mesh, by its dimensions; one of elsewhere is not."""
    sharding = getattr(leaf, "sharding", None)
    spec = ()
    if isinstance(sharding, NamedSharding) and sharding.mesh.shape == mesh.shape:
        spec = tuple(sharding.spec)
    return [*spec, *(None for _ in range(np.ndim(leaf) - len(spec)))]


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
