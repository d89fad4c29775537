"""Keras's arrays are put into a tree of parameters, and into the state of a transformation for it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_kadam.conversions import unchanged
from optax_kadam.keras_files.matching._leaves import Leaf, leaf_path
from optax_kadam.keras_files.matching._match import match_leaves
from optax_kadam.keras_files.matching._origin import Origin
from optax_kadam.keras_files.matching._rename import Rename

Arrays = Mapping[str, np.ndarray]
Tree = TypeVar("Tree")
SLOTS = ("mu", "nu", "nu_max", "average", "accumulator")
COUNTS = ("count", "gradient_step")  # What optax calls the number of steps.
_LARGEST_COUNT = 2**31 - 1  # The step count of `kadam` goes no further.


def restore(
    variables: Arrays,
    slots: Mapping[str, Arrays],
    scalars: Mapping[str, float],
    params: Tree,
    tx: optax.GradientTransformation,
    rename: Rename | None,
    skip: Sequence[str],
) -> tuple[Tree, optax.OptState]:
    """Return `params` filled with Keras's weights, and the state of `tx` filled with Keras's slots and scalars.

    Args:
      variables: Keras's weights by their paths.
      slots: by the names in `SLOTS`, what Keras's optimizer keeps for each trainable variable.
      scalars: the numbers of the optimizer: `iterations`, and any of `learning_rate`, `step_counter`, `dynamic_scale`.
      params: the tree to fill: see `KerasTraining.restore`.
      tx: the transformation whose state is filled.
      rename: what Keras's paths are called in `params`: see `KerasTraining.restore`.
      skip: what is not carried over: see `KerasTraining.restore`.
    """
    origins = match_leaves(params, _shapes(variables), rename, list(slots["mu"]), skip)
    like = _by_path(params, origins)
    kept = jax.eval_shape(tx.init, params)
    names = {_slot(path)[0] for path, _ in jax.tree.leaves_with_path(kept)}
    _check_kept(names, slots)
    # A variable that Keras did not train has no slots: they begin as in a new optimizer, its average at the variable.
    zeros = {path: np.zeros_like(array) for path, array in variables.items() if path not in slots["mu"]}
    fillings = {name: {**(variables if name == "average" else zeros), **slot} for name, slot in slots.items()}
    if "acc_grads" in names:  # Those of `optax.MultiSteps`: Keras saves between two windows.
        fillings["acc_grads"] = {}
    numbers = iter(jax.jit(lambda: _numbers(tx.init(jax.tree.map(_zeros, params))))())
    leaves, found = [], set()
    for path, leaf in jax.tree.leaves_with_path(kept):
        name, inner = _slot(path)
        if name == "acc_grads":  # Those of `optax.MultiSteps`: Keras saves between two windows.
            leaves.append(jnp.zeros(leaf.shape, leaf.dtype, device=_placement(like[leaf_path(inner)][1])))
        elif name == "gradient_norm":  # Keras does not keep the norms that a clip computes.
            leaves.append(jnp.zeros(leaf.shape, leaf.dtype))
        elif name in fillings and (name, leaf_path(inner)) not in found:
            found.add((name, leaf_path(inner)))
            leaves.append(_placed(inner, leaf, like, fillings[name], begins_at_leaf=name == "average"))
        elif not name and _is_number(leaf):
            leaves.append(_number(path, next(numbers), scalars))
        else:
            raise ValueError(
                "`tx` must keep no more than Keras's Adam does. Received: "
                f"{jax.tree_util.keystr(path)} of shape {leaf.shape} in its state, which no file of Keras's holds. "
                "Restore the state of the part that is Adam, and begin the others with `init`."
            )
    return _filled(params, like, variables), jax.tree.unflatten(jax.tree.structure(kept), leaves)


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {path: array.shape for path, array in arrays.items()}


def _check_kept(names: Collection[str], slots: Mapping[str, Arrays]) -> None:
    """Raise if the state of `tx` has other slots than Keras saved; `names` are those that it has."""
    for name in SLOTS:
        if (name in names) != (name in slots):
            holder, other = ("the file", "`tx`") if name in slots else ("`tx`", "the file")
            raise ValueError(
                f"The state of `tx` must be what Keras saved. Received: {name!r} in {holder}, and not in {other}. "
                "Build `tx` with the arguments that Keras's optimizer had."
            )


def _slot(path: Sequence[object]) -> tuple[str, Sequence[object]]:
    """Return the name of the slot that a leaf of a state is in, which may be "", and the leaf's path in the slot."""
    for index, key in enumerate(path):
        name = getattr(key, "name", "")
        if name in (*SLOTS, "acc_grads", "gradient_norm"):
            return name, path[index + 1 :]
    return "", path


def _zeros(leaf: Leaf) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype)


def _is_number(leaf: Leaf) -> bool:
    """Return whether a leaf of a state is a count, a rate, a flag or a key, none of which Keras keeps by variable."""
    return not leaf.shape or not jnp.issubdtype(leaf.dtype, jnp.floating)


def _numbers(state: optax.OptState) -> list[jax.Array]:
    return [leaf for path, leaf in jax.tree.leaves_with_path(state) if not _slot(path)[0] and _is_number(leaf)]


def _number(path: Sequence[object], initial: jax.Array, scalars: Mapping[str, float]) -> jax.Array:
    """Return a number of the state: that of the file if it has it, the initial one otherwise.

    The counts of optax stand for the number of steps too.
    """
    name = str(getattr(path[-1], "name", "")) if path else ""
    name = "iterations" if name in COUNTS else name
    if name not in scalars:
        return initial
    value = min(scalars[name], _LARGEST_COUNT) if name == "iterations" else scalars[name]
    return jnp.asarray(value, initial.dtype)


def fill(variables: Arrays, tree: Tree, rename: Rename | None) -> Tree:
    """Return `tree` filled with Keras's weights: see `KerasTraining.fill`."""
    return _filled(tree, _by_path(tree, match_leaves(tree, _shapes(variables), rename, ())), variables)


def get_all(state: optax.OptState, name: str) -> list[Any]:
    """Return every field `name` of a state that is not None. A parameter of that name is none."""
    found = optax.tree.get_all_with_path(state, name, filtering=_is_field)
    return [value for _, value in found if value is not None]


def _is_field(path: Sequence[object], value: object) -> bool:
    del value
    return bool(path) and isinstance(path[-1], optax.tree_utils.NamedTupleKey)


def _filled(tree: Tree, like: Mapping[str, tuple[Origin | None, Leaf]], arrays: Arrays) -> Tree:
    """Return `tree` filled with the arrays of its variables."""
    return jax.tree.map_with_path(lambda path, leaf: _placed(path, leaf, like, arrays, begins_at_leaf=True), tree)


def _by_path(params: object, origins: Sequence[Origin | None]) -> dict[str, tuple[Origin | None, Leaf]]:
    """Return the origin and the leaf of `params` for each path in `params`."""
    leaves = zip(jax.tree.leaves_with_path(params), origins, strict=True)
    return {leaf_path(path): (origin, leaf) for (path, leaf), origin in leaves}


def _placed(
    path: Sequence[object],
    leaf: Leaf,
    like: Mapping[str, tuple[Origin | None, Leaf]],
    arrays: Arrays,
    *,
    begins_at_leaf: bool,
) -> Leaf:
    """Return what fills the leaf at `path`, which must have the shape and dtype of `leaf`, where it belongs.

    A leaf that is skipped stays as it is in `params`; in a slot it is zero, unless the slot begins at the parameter.
    """
    origin, param = like[leaf_path(path)]
    if origin is None:
        if isinstance(param, jax.ShapeDtypeStruct):
            raise ValueError(
                f"A leaf in `skip` must be an array, as it stays. Received: {type(param).__name__} at "
                f"{leaf_path(path)!r}. Hand over its value."
            )
        return param if begins_at_leaf else jnp.zeros(leaf.shape, leaf.dtype, device=_placement(param))
    array = origin.leaf(arrays[origin.variable], leaf.shape)
    if leaf.shape != array.shape or leaf.dtype != array.dtype:
        converted = "" if origin.conversion is unchanged else " after its conversion"
        raise ValueError(
            f"A leaf must have the shape and dtype that Keras saved. Received: {leaf.dtype}{list(leaf.shape)} "
            f"at {leaf_path(path)!r}, where {origin.variable!r} is {array.dtype}{list(array.shape)}{converted}. "
            "If the leaf holds the same numbers in another form, give `rename` a conversion: see `ok.conversions`."
        )
    on_device = jax.device_put(array, _placement(param))
    if on_device.dtype != array.dtype:
        raise ValueError(
            f"JAX must keep the dtype that Keras saved. Received: {array.dtype} at {origin.variable!r}. "
            "Set `jax.config.update('jax_enable_x64', True)`."
        )
    return on_device


def _placement(leaf: Leaf) -> jax.sharding.Sharding | None:
    """Return the sharding that a leaf was given, or None if JAX chose it."""
    sharding = getattr(leaf, "sharding", None)
    return sharding if getattr(leaf, "committed", True) else None
