"""ZeRO-1: the state divided over the data axis as well, while the parameters stay whole."""

from typing import Literal

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optax_kadam._gradients import Tree


def zero1_shardings(
    tx: optax.GradientTransformation,
    params: optax.Params,
    mesh: Mesh,
    axis_name: str = "data",
    *,
    indivisible: Literal["error", "replicate"] = "error",
    memory_kind: str | None = None,
) -> optax.OptState:
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

    With `memory_kind="pinned_host"` the moments are kept in the memory of the host. A step fetches them, and its
    `out_shardings` send them back. Streamed group by group, as docs/recipes/zero1.md shows, a step on a GPU needs half
    the memory; all at once it needs no less:

        state = jax.device_put(state, zero1_shardings(tx, params, mesh, memory_kind="device"))  # Inside of the step.

    Args:
      tx: any optax transformation.
      params: the parameters, or `jax.ShapeDtypeStruct`s of them. A `NamedSharding` of theirs on `mesh` is kept.
      mesh: the mesh of the training.
      axis_name: the axis of the mesh along which parameters are copies of each other.
      indivisible: what becomes of a leaf that has no such dimension, as a scalar: `"error"`, or `"replicate"` to leave
        it whole.
      memory_kind: the memory in which what has the shape of a parameter is kept; all else stays in the default one,
        which None means for everything.

    Returns:
      A tree like `tx.init(params)`, with a `NamedSharding` for each array.

    Raises:
      ValueError: if the mesh has no such axis, its devices no such memory, a leaf cannot be divided, or `indivisible`
        is neither of the two.

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
    _check_memory(mesh, memory_kind)
    size = mesh.shape[axis_name]

    def divided(path: tuple[object, ...], leaf: Tree) -> NamedSharding:
        shape, spec = np.shape(leaf), _spec_on(mesh, leaf)
        free = [i for i, names in enumerate(spec) if names is None and shape[i] % size == 0]
        if axis_name in jax.tree.leaves(tuple(spec)):
            pass  # The parameter is divided along the axis already, as for FSDP.
        elif free:
            spec[free[0]] = axis_name  # The outermost: parts of an inner one do not lie together, and would be copied.
        elif indivisible == "error":
            raise ValueError(
                f"A leaf of `params` must have a dimension that is not divided yet and that the size of axis "
                f"{axis_name!r}, {size}, divides. Received: shape={shape} at {jax.tree_util.keystr(path)!r}. Pass "
                "indivisible='replicate' to leave such leaves whole."
            )
        return NamedSharding(mesh, PartitionSpec(*spec), memory_kind=memory_kind)

    of_params = jax.tree.map_with_path(divided, params)
    whole = NamedSharding(mesh, PartitionSpec())
    return optax.tree.map_params(
        tx,
        lambda leaf, sharding: leaf if _is_masked(leaf) else sharding,
        jax.eval_shape(tx.init, params),
        of_params,
        transform_non_params=lambda tree: jax.tree.map(lambda _: whole, tree),
        is_leaf=_is_masked,
    )


def _check_memory(mesh: Mesh, memory_kind: str | None) -> None:
    """Raise if the devices have no such memory, or if JAX leaves it out of their shardings."""
    must = "`memory_kind` must be a memory that the devices of the mesh can address."
    received = f"Received: memory_kind={memory_kind!r}"
    try:
        kept = NamedSharding(mesh, PartitionSpec(), memory_kind=memory_kind).memory_kind
    except ValueError as error:
        raise ValueError(f"{must} {received}. {error}") from error
    if memory_kind is not None and kept != memory_kind:  # JAX drops it for GPUs that are described, and not here.
        raise ValueError(f"{must} {received}, of which these devices say nothing. Use a `jax.sharding.AbstractMesh`.")


def _is_masked(node: object) -> bool:
    return isinstance(node, optax.MaskedNode)


def _spec_on(mesh: Mesh, leaf: Tree) -> list[object]:
    """How the leaf is divided over the mesh, by its dimensions; one of elsewhere is not."""
    sharding = getattr(leaf, "sharding", None)
    spec = ()
    if isinstance(sharding, NamedSharding) and sharding.mesh.shape == mesh.shape:
        spec = tuple(sharding.spec)
    return [*spec, *(None for _ in range(np.ndim(leaf) - len(spec)))]
