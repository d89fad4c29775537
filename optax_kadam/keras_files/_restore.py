"""Keras's arrays, put into a tree of parameters and into the state of a transformation for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_kadam.keras_files._match import Rename, leaf_path, owners

Arrays = Mapping[str, np.ndarray]
SLOTS = ("mu", "nu", "nu_max", "average", "accumulator")
_LARGEST_COUNT = 2**31 - 1  # Where the step count of `kadam` saturates.


def restore(
    variables: Arrays,
    slots: Mapping[str, Arrays],
    scalars: Mapping[str, float],
    params: Any,
    tx: optax.GradientTransformation,
    rename: Rename,
) -> tuple[Any, Any]:
    """Return `params` and the state of `tx`, filled.

    Args:
      variables: Keras's weights.
      slots: what its optimizer keeps for each trainable one, by the names of `SLOTS`.
      scalars: the numbers that it keeps: `iterations`, and any of `learning_rate`, `step_counter`, `dynamic_scale`.
      params: see `KerasTraining.restore`, as for the next two.
      tx: the transformation.
      rename: what Keras's paths are called in `params`.
    """
    of_leaf = owners(params, list(variables), rename, list(slots["mu"]))
    restored = _filled(params, params, of_leaf, variables)
    # What Keras did not train has no slots: they begin as those of a new optimizer, its average at where it stands.
    idle = {path: array for path, array in variables.items() if path not in slots["mu"]}
    state = tx.init(jax.tree.map(_without_elements, params))
    for name in SLOTS:
        kept = get(state, name)
        if (kept is None) != (name not in slots):
            there, here = ("the file", "`tx`") if kept is None else ("`tx`", "the file")
            raise ValueError(
                f"The state of `tx` must be what Keras saved. Received: {name!r} in {there}, and not in {here}. "
                "Build `tx` with the arguments that Keras's optimizer had."
            )
        if kept is not None:
            begun = idle if name == "average" else {path: np.zeros_like(array) for path, array in idle.items()}
            state = put(state, name, _filled(kept, params, of_leaf, {**begun, **slots[name]}))
    for name, value in scalars.items():
        if (old := get(state, name)) is not None:
            largest = _LARGEST_COUNT if name == "iterations" else value
            state = put(state, name, jnp.asarray(min(value, largest), old.dtype))
    return restored, state


def fill(variables: Arrays, tree: Any, rename: Rename) -> Any:
    """Return what `KerasTraining.fill` promises."""
    return _filled(tree, tree, owners(tree, list(variables), rename, ()), variables)


def get(state: Any, name: str) -> Any:
    """`optax.tree.get` that is not misled by parameters of that name; None where there is none."""
    return optax.tree.get(state, name, None, filtering=_is_field)


def put(state: Any, name: str, value: Any) -> Any:
    """`optax.tree.set`, likewise."""
    return optax.tree.set(state, _is_field, **{name: value})


def _is_field(path: Any, value: Any) -> bool:
    del value
    return bool(path) and isinstance(path[-1], optax.tree_utils.NamedTupleKey)


def _without_elements(leaf: Any) -> jax.Array:
    """Stand in for a leaf in `init`, without its memory."""
    return jnp.zeros((0,) * np.ndim(leaf), leaf.dtype)


def _filled(tree: Any, params: Any, of_leaf: Sequence[str], arrays: Arrays) -> Any:
    """Return `tree`, whose leaves are some of those of `params`, filled with the arrays of their variables."""
    like = {
        leaf_path(path): (variable, leaf)
        for (path, leaf), variable in zip(jax.tree.leaves_with_path(params), of_leaf, strict=True)
    }

    def placed(path: Any, leaf: Any) -> jax.Array:
        variable, param = like[leaf_path(path)]
        array = arrays[variable]
        if np.shape(param) != array.shape or leaf.dtype != array.dtype:
            raise ValueError(
                f"A leaf must have the shape and dtype that Keras saved. Received: {leaf.dtype}{list(np.shape(param))} "
                f"at {leaf_path(path)!r}, where {variable!r} is {array.dtype}{list(array.shape)}."
            )
        on_device = jax.device_put(array, _placement(param))
        if on_device.dtype != array.dtype:
            raise ValueError(
                f"JAX must keep the dtype that Keras saved. Received: {array.dtype} at {variable!r}. "
                "Set `jax.config.update('jax_enable_x64', True)`."
            )
        return on_device

    return jax.tree.map_with_path(placed, tree)


def _placement(leaf: Any) -> Any:
    """Return the sharding of a leaf, None where it has not been told."""
    return leaf.sharding if getattr(leaf, "committed", True) and getattr(leaf, "sharding", None) else None
