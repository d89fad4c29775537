"""The one grammar of this package's errors: what must hold, what was received, the remedy."""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GENERATIONS = ("keras3", "tf_keras", "legacy")
_SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def number(name: str, value: Any, *bounds: tuple[str, float], remedy: str = "") -> float | jax.Array:
    """Return `value` as a float if it is a finite number within `bounds`; a scalar array is returned as it is.

    Only the shape and the kind of an array are looked at: it may be traced, or living on another device.
    """
    within = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds)
    must = f"`{name}` must be a finite number{' ' if within else ''}{within}."
    received = f"Received: {name}={value!r}.{' ' if remedy else ''}{remedy}"
    if isinstance(value, jax.Array):
        if value.ndim or not jnp.issubdtype(value.dtype, jnp.number):
            raise ValueError(f"`{name}` must be a scalar number where it is an array. {received}")
        return value
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__") or getattr(value, "ndim", 0):
        raise TypeError(f"{must} {received}")
    value = float(value)
    if not math.isfinite(value) or not all(_SIGNS[sign](value, bound) for sign, bound in bounds):
        raise ValueError(f"{must} {received}")
    return value


def integer(name: str, value: Any, at_least: int, remedy: str = "") -> int:
    """Return `value` as an int if it is an integer of at least `at_least`."""
    message = f"`{name}` must be an integer >= {at_least}. Received: {name}={value!r}.{' ' if remedy else ''}{remedy}"
    if isinstance(value, jax.Array):
        raise TypeError(f"{message} With `optax.inject_hyperparams`, name it in `static_args`.")
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(message)
    if operator.index(value) < at_least:
        raise ValueError(message)
    return operator.index(value)


def boolean(name: str, value: Any) -> None:
    """Raise if `value` is not a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r}.")


def generation(value: Any) -> str:
    """Return `value` if it names a generation of Keras."""
    if value not in GENERATIONS:
        raise ValueError(
            f"`generation` must be one of {', '.join(map(repr, GENERATIONS))}. Received: generation={value!r}."
        )
    return value


def floating(name: str, dtype: Any) -> np.dtype | None:
    """Return `dtype` as a numpy dtype if it is a floating-point one; None stays None."""
    if dtype is None:
        return None
    try:
        resolved = jnp.dtype(dtype)
    except TypeError:
        resolved = None
    if resolved is None or not jnp.issubdtype(resolved, jnp.floating):
        raise ValueError(
            f"`{name}` must be a floating-point dtype. Received: {name}={dtype!r}. Use None for the parameter's."
        )
    return resolved


def floating_leaves(name: str, tree: Any) -> None:
    """Raise, naming the path, if a leaf does not hold floating-point numbers."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"`{name}` must hold floating-point arrays. Received: {dtype.name} at {jax.tree_util.keystr(path)!r}. "
                "Leave it out with `optax.masked` or `optax.partition`."
            )


def axis_names(value: Any) -> tuple[str, ...]:
    """Return the names of mesh axes in `value`: one, a tuple of them, or None for none."""
    names = () if value is None else value if isinstance(value, tuple) else (value,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"`axis_name` must be a string, a tuple of strings, or None. Received: axis_name={value!r}.")
    return names


def axis_index(name: str) -> jax.Array:
    """`jax.lax.axis_index`, saying which axes there are where `name` is none of them."""
    try:
        return jax.lax.axis_index(name)
    except NameError as error:
        axes = ", ".join(map(repr, jax.sharding.get_abstract_mesh().manual_axes)) or "no axis"
        raise ValueError(
            f"`axis_name` must name axes of the mesh of the `jax.shard_map` around, which has {axes}. "
            f"Received: axis_name={name!r}. Leave it out under `jax.jit` alone."
        ) from error


def params_given(params: Any, stage: str, why: str) -> None:
    """Raise if a stage that reads the parameters was not handed them."""
    if params is None:
        raise ValueError(
            f"`params` must be given: {stage} {why}. Received: params=None. Call `update(gradients, state, params)`."
        )


def mask_fits(name: str, mask: Any, params: Any) -> None:
    """Raise if `mask` is not a tree of bools that is a prefix of `params`."""
    must = f"`{name}` must be a tree of bools that fits the parameters, or a prefix of one."
    for path, leaf in jax.tree.leaves_with_path(mask):
        if not isinstance(leaf, (bool, np.bool_)):
            raise TypeError(f"{must} Received: {leaf!r} at {jax.tree_util.keystr(path)!r}.")
    if not jax.tree.leaves(params):
        return  # `optax.tree.map_params` asks with an empty tree what a state looks like.
    try:
        jax.tree.map(lambda leaf, subtree: None, mask, params)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{must} Received: {name}={mask!r}. {error}") from error


def same_tree(tree: Any, reference: Any, name: str, of: str = "gradient") -> None:
    """Raise, naming the path, if a leaf does not fit the `reference` tree of the state; None fits everywhere.

    `tree` holds gradients, or another kind of leaves, of which there may be none at all.
    """
    if of == "gradient" and jax.tree.leaves(reference) and not jax.tree.leaves(tree):
        raise ValueError("At least one gradient must be given. Received: None for every parameter.")
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=_is_one)}
    expected = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(reference)}
    remedy = "Call `init` with the parameters that the gradients belong to."
    for path, leaf in expected.items():
        if path not in found:
            raise ValueError(f"The {of}s must have the leaves of `{name}`. Received: none at {path!r}. {remedy}")
        if not _is_one(found[path]) and np.shape(found[path]) != np.shape(leaf):
            raise ValueError(
                f"A {of} must have the shape of its leaf in `{name}`, {np.shape(leaf)}. "
                f"Received: {np.shape(found[path])} at {path!r}. {remedy}"
            )
    for path, leaf in found.items():
        if leaf is not None and path not in expected:
            raise ValueError(f"The {of}s must have the leaves of `{name}`. Received: one more at {path!r}. {remedy}")


def _is_one(node: Any) -> bool:
    """Tell whether a node of a tree of gradients is one: None, or the gradient of some rows, checked by itself."""
    return node is None or hasattr(node, "indices")
