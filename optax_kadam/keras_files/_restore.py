"""Keras's arrays, put into a tree of parameters and into the state of a transformation for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_kadam.keras_files._match import Rename, leaf_path, match_leaves

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
    keras_paths = match_leaves(params, list(variables), rename, list(slots["mu"]))
    restored = _filled(params, params, keras_paths, variables)
    # What Keras did not train has no slots: they begin as those of a new optimizer, its average at where it stands.
    untrained = {path: array for path, array in variables.items() if path not in slots["mu"]}
    state = tx.init(jax.tree.map(_without_elements, params))
    for name in SLOTS:
        slot = get(state, name)
        if (slot is None) != (name not in slots):
            holder, other = ("the file", "`tx`") if slot is None else ("`tx`", "the file")
            raise ValueError(
                f"The state of `tx` must be what Keras saved. Received: {name!r} in {holder}, and not in {other}. "
                "Build `tx` with the arguments that Keras's optimizer had."
            )
        if slot is not None:
            zeros = {path: np.zeros_like(array) for path, array in untrained.items()}
            initial = untrained if name == "average" else zeros
            state = put(state, name, _filled(slot, params, keras_paths, {**initial, **slots[name]}))
    for name, value in scalars.items():
        if (old := get(state, name)) is not None:
            largest = _LARGEST_COUNT if name == "iterations" else value
            state = put(state, name, jnp.asarray(min(value, largest), old.dtype))
    return restored, state


def fill(variables: Arrays, tree: Any, rename: Rename) -> Any:
    """Return what `KerasTraining.fill` promises."""
    return _filled(tree, tree, match_leaves(tree, list(variables), rename, ()), variables)


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


def _filled(tree: Any, params: Any, keras_paths: Sequence[str], arrays: Arrays) -> Any:
    """Return `tree`, whose leaves are some of those of `params`, filled with the arrays of their variables."""
    like = {
        leaf_path(path): (variable, leaf)
        for (path, leaf), variable in zip(jax.tree.leaves_with_path(params), keras_paths, strict=True)
    }

    def place(path: Any, leaf: Any) -> jax.Array:
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

    return jax.tree.map_with_path(place, tree)


def _placement(leaf: Any) -> Any:
    """Return the sharding of a leaf, None where it has not been told."""
    return leaf.sharding if getattr(leaf, "committed", True) and getattr(leaf, "sharding", None) else None
