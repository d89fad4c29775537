"""The one grammar of this package's errors: what must hold, what was received, the remedy."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import SupportsFloat, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

_SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_REMEDIES = {  # By the package that a leaf comes from, which is no array.
    "torch": "Convert it: `jnp.asarray(tensor.detach().numpy())`.",
    "keras": "Hand over the array in it: `variable.value`.",
    "tensorflow": "Convert it: `jnp.asarray(variable.numpy())`.",
}


def number(name: str, value: object, *bounds: tuple[str, float], remedy: str = "") -> float | jax.Array:
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
    if isinstance(value, (bool, str, bytes)) or not isinstance(value, SupportsFloat) or getattr(value, "ndim", 0):
        raise TypeError(f"{must} {received}")
    as_float = float(value)
    if not math.isfinite(as_float) or not all(_SIGNS[sign](as_float, bound) for sign, bound in bounds):
        raise ValueError(f"{must} {received}")
    return as_float


def integer(name: str, value: object, at_least: int, remedy: str = "") -> int:
    """Return `value` as an int if it is an integer of at least `at_least`, and one that the count of steps reaches."""
    message = f"`{name}` must be an integer >= {at_least}. Received: {name}={value!r}.{' ' if remedy else ''}{remedy}"
    if isinstance(value, jax.Array):
        raise TypeError(f"{message} With `optax.inject_hyperparams`, name it in `static_args`.")
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(message)
    as_int = operator.index(value)
    if as_int < at_least:
        raise ValueError(message)
    if as_int >= 2**31:
        raise ValueError(f"`{name}` must be an integer < 2**31, where the steps end. Received: {name}={value!r}.")
    return as_int


def boolean(name: str, value: object) -> None:
    """Raise if `value` is not a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r}.")


def floating(name: str, dtype: object) -> np.dtype | None:
    """Return `dtype` as a numpy dtype if it is a floating-point one; None stays None."""
    if dtype is None:
        return None
    try:
        resolved = jnp.dtype(dtype)  # pyright: ignore[reportCallIssue, reportArgumentType]: whether it fails is asked.
    except TypeError:
        resolved = None
    if resolved is None or not jnp.issubdtype(resolved, jnp.floating):
        raise ValueError(
            f"`{name}` must be a floating-point dtype. Received: {name}={dtype!r}. Use None for the parameter's."
        )
    return resolved


def floating_leaves(name: str, tree: object, is_leaf: Callable[[object], bool] | None = None) -> None:
    """Raise, naming the path, if a leaf is not an array of floating-point numbers, or the shape and dtype of one."""
    for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=is_leaf):
        if is_leaf is not None and is_leaf(leaf):
            continue
        place = f"at {jax.tree_util.keystr(path)!r}"
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
            kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}".removeprefix("builtins.")
            raise TypeError(f"`{name}` must hold arrays. Received: {kind} {place}. {_remedy(leaf)}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            remedy = "Leave it out with `optax.masked`, `optax.partition` or `eqx.filter(model, eqx.is_inexact_array)`."
            if name != "params":
                remedy = "Convert them with `astype` to the dtype of the parameter."
            raise TypeError(f"`{name}` must hold floating-point arrays. Received: {leaf.dtype.name} {place}. {remedy}")


def _remedy(leaf: object) -> str:
    if isinstance(leaf, (bool, int, float)):
        return "Convert it: `jnp.asarray(value)`."
    package = type(leaf).__module__.partition(".")[0].removeprefix("tf_")
    if package in _REMEDIES:
        return _REMEDIES[package]
    return "Hand over the arrays alone: `eqx.filter(model, eqx.is_inexact_array)`, or `nnx.state(model, nnx.Param)`."


def axis_names(value: object) -> tuple[str, ...] | None:
    """Return the names of mesh axes in `value`, one or a tuple of them; None stays None."""
    names = value if value is None or isinstance(value, tuple) else (value,)
    if names is not None and not all(isinstance(name, str) for name in names):
        raise TypeError(f"`axis_name` must be a string, a tuple of strings, or None. Received: axis_name={value!r}.")
    return names  # pyright: ignore[reportReturnType]: they are strings, as was seen.


def axis_index(name: str) -> jax.Array:
    """Return `jax.lax.axis_index(name)`, or say which axes there are where `name` is none of them."""
    try:
        return jax.lax.axis_index(name)
    except NameError as error:
        axes = ", ".join(map(repr, jax.sharding.get_abstract_mesh().manual_axes)) or "no axis"
        raise ValueError(
            f"`axis_name` must name axes of the mesh of the `jax.shard_map` around, which has {axes}. "
            f"Received: axis_name={name!r}. Leave it out under `jax.jit` alone."
        ) from error


def params_given(params: object, stage: str, why: str) -> None:
    """Raise if a stage that reads the parameters was not handed them."""
    if params is None:
        raise ValueError(
            f"`params` must be given: {stage} {why}. Received: params=None. Call `update(gradients, state, params)`."
        )


def mask_fits(name: str, mask: object, params: object) -> None:
    """Raise if `mask` is not a tree of bools that is a prefix of `params`."""
    must = f"`{name}` must be a tree of bools that fits the parameters, or a prefix of one."
    for path, leaf in jax.tree.leaves_with_path(mask):
        if isinstance(leaf, (jax.Array, np.ndarray)):
            raise TypeError(
                f"{must} Received: an array of {leaf.dtype.name} at {jax.tree_util.keystr(path)!r}. With "
                f"`optax.inject_hyperparams`, which takes a function for a schedule, name it: static_args={name!r}."
            )
        if not isinstance(leaf, (bool, np.bool_)):
            raise TypeError(f"{must} Received: {leaf!r} at {jax.tree_util.keystr(path)!r}.")
    if not jax.tree.leaves(params):
        return  # `optax.tree.map_params` asks with an empty tree what a state looks like.
    try:
        jax.tree.map(lambda leaf, subtree: None, mask, params)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{must} Received: {name}={mask!r}. {error}") from error


def state(state: object, kind: type | tuple[type, ...], kept: Sequence[str]) -> None:
    """Raise if `state` is not a `kind` of tuple, or does not keep under the names of `kept` what is not None.

    A `gradient_norm` may be missing: no step reads it, and states of earlier versions have none.
    """
    found = list(_kept(state))
    of_steps = [[name for name in names if name != "gradient_norm"] for names in (found, kept)]
    if isinstance(state, kind) and of_steps[0] == of_steps[1]:
        return
    if state is None:
        received = "None"
    elif isinstance(state, tuple):
        received = f"{type(state).__name__}, which keeps {', '.join(found) or 'nothing'}"
    else:
        keys = f" of {', '.join(map(str, state))}" if isinstance(state, dict) else ""
        received = f"{type(state).__name__}{keys}"
    raise ValueError(
        f"`state` must be what the `init` of this transformation gives, which keeps {', '.join(kept)}. "
        f"Received: {received}. Call `init`, or build the transformation with the arguments that the state was made by."
    )


def _kept(state: object) -> Iterator[str]:
    """Yield the names of the fields that are not None, those of the states inside among them."""
    if not isinstance(state, tuple):
        return
    names: Sequence[str | None] = getattr(state, "_fields", (None,) * len(state))
    for name, value in zip(names, state, strict=True):
        if name is None or name == "inner_state":
            yield from _kept(value)
        elif value is not None:
            yield name


def stages(state: tuple[object, ...], count: int) -> None:
    """Raise if a chain of `count` stages is handed the states of another one."""
    if len(state) != count:
        raise ValueError(
            f"`state` must hold the states of {count} stages, as this chain has. Received: {len(state)}. "
            "Call `init`, or build the optimizer with the clips and the weight decay that the state was made with."
        )


def same_trees(trees: Mapping[str, object], kept: Mapping[str, object]) -> None:
    """Raise, naming the path, if a leaf of one of `trees` does not fit its leaf in each tree that a state keeps.

    `trees` are named by what a leaf of theirs is: "gradient" or "parameter". None fits everywhere, but not every
    gradient may be None; a tree that is None is left out. Each tree is flattened once.
    """
    references = {name: (tree, *jax.tree.flatten(tree)) for name, tree in kept.items() if tree is not None}
    for of, tree in trees.items():
        leaves, treedef = jax.tree.flatten(tree)
        for name, (reference, wanted, wanted_treedef) in references.items():
            shapes_fit = all(np.shape(a) == np.shape(b) for a, b in zip(leaves, wanted, strict=False))
            if tree is not None and not (treedef == wanted_treedef and shapes_fit):
                _check_leaves(tree, reference, name, of)


def norms_fit(norms: object, gradients: object, is_leaf: Callable[[object], bool]) -> None:
    """Raise, naming the paths, if a clip is handed gradients of other parameters than those whose norms it keeps."""
    kept, found = (jax.tree.leaves_with_path(tree, is_leaf=is_leaf) for tree in (norms, gradients))
    if [path for path, _ in kept] != [path for path, _ in found]:
        differ = {jax.tree_util.keystr(path) for path, _ in kept} ^ {jax.tree_util.keystr(path) for path, _ in found}
        raise ValueError(
            "The gradients must have the leaves of `gradient_norm`, which the state of a clip by norm keeps. Received: "
            f"{', '.join(map(repr, sorted(differ)))} in one of the two. "
            "Call `init` with the parameters that the gradients belong to."
        )


def _check_leaves(tree: object, reference: object, name: str, of: str) -> None:
    """Raise, naming the path, if a leaf of `tree` does not fit its leaf in `reference`, a tree under this name."""
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


def _is_one(node: object) -> bool:
    """Return whether a node of a tree of gradients is one: None, or the gradient of some rows, checked by itself."""
    return node is None or hasattr(node, "indices")
