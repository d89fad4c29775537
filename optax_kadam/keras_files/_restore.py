"""Keras's arrays are put into a tree of parameters, and into the state of a transformation for it."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_kadam.keras_files._match import Leaf, Rename, leaf_path, match_leaves

Arrays = Mapping[str, np.ndarray]
Tree = TypeVar("Tree")
SLOTS = ("mu", "nu", "nu_max", "average", "accumulator")
_LARGEST_COUNT = 2**31 - 1  # The step count of `kadam` goes no further.


def restore(
    variables: Arrays,
    slots: Mapping[str, Arrays],
    scalars: Mapping[str, float],
    params: Tree,
    tx: optax.GradientTransformation,
    rename: Rename,
) -> tuple[Tree, optax.OptState]:
    """Return `params` filled with Keras's weights, and the state of `tx` filled with Keras's slots and scalars.

    Args:
      variables: Keras's weights by their paths.
      slots: by the names in `SLOTS`, what Keras's optimizer keeps for each trainable variable.
      scalars: the numbers of the optimizer: `iterations`, and any of `learning_rate`, `step_counter`, `dynamic_scale`.
      params: the tree to fill: see `KerasTraining.restore`.
      tx: the transformation whose state is filled.
      rename: what Keras's paths are called in `params`: see `KerasTraining.restore`.
    """
    keras_paths = match_leaves(params, list(variables), rename, list(slots["mu"]))
    restored = _filled(params, params, keras_paths, variables)
    # A variable that Keras did not train has no slots: they begin as in a new optimizer, its average at the variable.
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
            state = _with_number(state, name, jnp.asarray(min(value, largest), old.dtype))
    return restored, state


def fill(variables: Arrays, tree: Tree, rename: Rename) -> Tree:
    """Return `tree` filled with Keras's weights: see `KerasTraining.fill`."""
    return _filled(tree, tree, match_leaves(tree, list(variables), rename, ()), variables)


def get(state: optax.OptState, name: str) -> Any:
    """Return the field `name` of a state, or None; unlike `optax.tree.get`, ignore a parameter of that name."""
    return optax.tree.get(state, name, None, filtering=_is_field)


def put(state: optax.OptState, name: str, value: object) -> optax.OptState:
    """Return the state with its field `name` set; unlike `optax.tree.set`, ignore a parameter of that name."""
    return optax.tree.set(state, _is_field, **{name: value})


def _with_number(state: Tree, name: str, number: jax.Array) -> Tree:
    """Return the state with a number of its own set, the learning rate of the last step too, which users cannot set."""

    def set_it(path: Sequence[object], leaf: Leaf) -> object:
        names = [getattr(key, "name", None) for key in path]
        return number if names[-1:] == [name] and not set(SLOTS) & set(names) else leaf

    return jax.tree.map_with_path(set_it, state)


def _is_field(path: Sequence[object], value: object) -> bool:
    del value
    return bool(path) and isinstance(path[-1], optax.tree_utils.NamedTupleKey)


def _without_elements(leaf: Leaf) -> jax.Array:
    """Return an array of the rank and dtype of `leaf` without elements: `init` then takes no memory for moments."""
    return jnp.zeros((0,) * len(leaf.shape), leaf.dtype)


def _filled(tree: Tree, params: object, keras_paths: Sequence[str], arrays: Arrays) -> Tree:
    """Return `tree` filled with the arrays of its variables.

    The leaves of `tree` are some of those of `params`; `keras_paths` has the variable of each leaf of `params`.
    """
    like = {
        leaf_path(path): (variable, leaf)
        for (path, leaf), variable in zip(jax.tree.leaves_with_path(params), keras_paths, strict=True)
    }

    def place(path: Sequence[object], leaf: Leaf) -> jax.Array:
        variable, param = like[leaf_path(path)]
        array = arrays[variable]
        if param.shape != array.shape or leaf.dtype != array.dtype:
            raise ValueError(
                f"A leaf must have the shape and dtype that Keras saved. Received: {leaf.dtype}{list(param.shape)} "
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


def _placement(leaf: Leaf) -> jax.sharding.Sharding | None:
    """Return the sharding that a leaf was given, or None if JAX chose it."""
    sharding = getattr(leaf, "sharding", None)
    return sharding if getattr(leaf, "committed", True) else None
