"""What takes the place of what: the arrays of a tree and a state are paired with those that Keras kept."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from optax_kadam.keras_files import _restore
from optax_kadam.keras_files._contents import Contents
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files.matching._leaves import leaf_path
from optax_kadam.keras_files.matching._match import match_leaves
from optax_kadam.keras_files.matching._origin import Origin, variable_of
from optax_kadam.keras_files.matching._rename import Rename, unused_keys
from optax_kadam.keras_files.matching._words import converted_shape, same_but_for_ones

_BUILT = "Train it for a step in Keras, or call `optimizer.build(model.trainable_variables)`, and save it again."


def replacements(
    contents: Contents,
    params: object,
    opt_state: optax.OptState,
    rename: Rename | None,
    non_trainable: object,
    holder: str = "template",
    tables: Mapping[str, Any] | None = None,
) -> Iterator[tuple[LazyArray, np.ndarray]]:
    """Yield pairs of an array in `contents` and the one that takes its place.

    Args:
      contents: what is in the template, or in whatever else is the `holder` of the old arrays.
      params: the parameters: see `save_keras`.
      opt_state: the state of the optimizer.
      rename: what Keras's paths are called in `params`.
      non_trainable: a tree of variables that are not trained, or None.
      holder: what an error calls the holder of the old arrays.
      tables: the deferred tables by Keras's path.
    """
    tables = tables or {}
    slots = contents.slots
    if slots is None:
        raise ValueError(f"`template` must hold the state of an optimizer. Received: a template without one. {_BUILT}")
    trainable = {variable.path: variable.array for variable in contents.variables if variable.is_trainable}
    others = {variable.path: variable.array for variable in contents.variables if not variable.is_trainable}
    state = getattr(opt_state, "opt_state", opt_state)  # `nnx.Optimizer` and a TrainState of Flax hold it so.
    kept = {name: trees for name in _restore.SLOTS if (trees := _restore.get_all(state, name))}
    if set(kept) != set(slots.arrays()):
        raise ValueError(
            f"`opt_state` must be what the {holder}'s optimizer keeps: {', '.join(slots.arrays())}. "
            f"Received: {', '.join(sorted(kept)) or 'none of it'}. "
            f"Take a {holder} whose optimizer has the arguments of yours."
        )
    steps = _steps(state)
    _check_tables(tables, list(trainable), steps)
    yield slots.iterations, np.asarray(steps, slots.iterations.dtype)
    for name in ("learning_rate", "step_counter", "dynamic_scale"):
        old, value = getattr(slots, name), number_in(state, name)
        if old is not None and value is not None:
            yield old, np.asarray(value, old.dtype)
    dense = [path for path in trainable if path not in tables]
    arrays = {path: trainable[path] for path in dense} | others
    origins = _origins(params, arrays, rename, dense)
    yield from _put_back([params], "params", origins, arrays, holder)
    trained = {path: origin for path, origin in origins.items() if origin.variable in trainable}
    by_slot = {name: dict(zip(trainable, listed, strict=True)) for name, listed in slots.arrays().items()}
    for name, listed in by_slot.items():
        yield from _put_back(kept[name], name, trained, listed, holder)
    for name, listed in {"values": trainable, **by_slot}.items():
        for path, table in tables.items():
            yield listed[path], _fitting(getattr(table, name), Origin(path), listed[path], f"tables.{name}", holder)
    if non_trainable is not None:
        if isinstance(rename, Mapping):
            unused = unused_keys(rename, others)
            rename = {key: value for key, value in rename.items() if key not in unused}
        origins = _origins(non_trainable, others, rename, ())
        yield from _put_back([non_trainable], "non_trainable", origins, others, holder)


def _check_tables(tables: Mapping[str, Any], paths: Sequence[str], iterations: np.ndarray) -> None:
    """Raise if a deferred table is none of Keras's variables, is out of date, or took other steps than the rest."""
    for path, table in tables.items():
        if path not in paths:
            raise ValueError(
                f"`tables` must be named by Keras's paths. Received: {path!r}. It has {', '.join(map(repr, paths))}."
            )
        if not hasattr(table, "last_visit") or isinstance(table.values, dict):
            raise TypeError(
                f"`tables` must hold tables of `deferred_rows`. Received: {type(table).__name__} for {path!r}. "
                "Take each of `Embeddings` by `table(tables, name)`."
            )
        if not np.array_equal(table.last_visit, np.broadcast_to(table.iterations, table.last_visit.shape)):
            raise ValueError(
                f"`tables` must be up to date. Received: {path!r}, with rows that have steps to make up for. "
                "Call `flush` before."
            )
        if iterations != table.iterations:
            raise ValueError(
                "`tables` must have taken the steps of `opt_state`, which counts "
                f"{iterations}. Received: {table.iterations} for {path!r}. Update both in every step."
            )


def _origins(
    tree: object, arrays: Mapping[str, LazyArray], rename: Rename | None, required: Sequence[str]
) -> dict[str, Origin]:
    """Return the origin of each leaf by its path."""
    origins = match_leaves(tree, {path: array.shape for path, array in arrays.items()}, rename, required)
    leaves = [leaf_path(path) for path, _ in jax.tree.leaves_with_path(tree)]
    return {leaf: origin for leaf, origin in zip(leaves, origins, strict=True) if origin is not None}


def _put_back(
    trees: Sequence[object], name: str, origins: Mapping[str, Origin], arrays: Mapping[str, LazyArray], holder: str
) -> Iterator[tuple[LazyArray, np.ndarray]]:
    """Yield pairs of an old array and the one made of the leaves that hold it, in one of `trees` each."""
    leaves: dict[str, object] = {}
    for path, leaf in (pair for tree in trees for pair in jax.tree.leaves_with_path(tree)):
        if leaves.setdefault(leaf_path(path), leaf) is not leaf:
            raise ValueError(
                "`opt_state` must hold each slot of a parameter once. "
                f"Received: {name!r} of {leaf_path(path)!r} twice. Hand over the state of one optimizer."
            )
    made: dict[str, list[tuple[Origin, np.ndarray]]] = {}
    for path, origin in origins.items():
        variable = origin.variable
        if path not in leaves:
            raise ValueError(
                f"`{name}` must hold every variable, at the paths in `params`. Received: no leaf {path!r} for "
                f"{variable!r}. Hand over the state of the optimizer of these `params`."
            )
        fitting = _fitting(leaves[path], origin, arrays[variable], name, holder)
        made.setdefault(variable, []).append((origin, fitting))
    for variable, held in made.items():
        yield arrays[variable], variable_of(held, arrays[variable].shape)


def _fitting(leaf: object, origin: Origin, old: LazyArray, name: str, holder: str) -> np.ndarray:
    """Return the leaf as an array, or raise if it is none, or not of the old shape and dtype."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise TypeError(
            f"`{name}` must hold arrays. Received: {type(leaf).__name__} for {origin.variable!r}. "
            "Hand over the array itself."
        )
    shape = converted_shape(origin.conversion, old.shape)
    if not same_but_for_ones(shape, leaf.shape) or leaf.dtype != old.dtype:
        raise ValueError(
            f"`{name}` must have the shapes and dtypes of the {holder}. Received: {leaf.dtype}{list(leaf.shape)} "
            f"for {origin.variable!r}, which is {old.dtype}{list(shape)} there."
        )
    return np.asarray(leaf)


def _steps(state: optax.OptState) -> np.ndarray:
    """Return the number of steps: Keras's `iterations`, or else the `count` of optax, of which all must be the same."""
    counts = _restore.get_all(state, "iterations") or _restore.get_all(state, "count")
    numbers = {int(leaf): np.asarray(leaf) for leaf in jax.tree.leaves(counts)}
    if len(numbers) != 1:
        raise ValueError(
            "`opt_state` must count the steps, and say one number. "
            f"Received: {', '.join(map(str, sorted(numbers))) or 'neither `iterations` nor `count`'}. "
            "Hand over the whole state of the optimizer that trained `params`."
        )
    return next(iter(numbers.values()))


def number_in(opt_state: optax.OptState, name: str) -> np.ndarray | None:
    """Return the number `name` of the state, or None. `nnx.Optimizer` wraps its array, hence the leaves."""
    leaves = jax.tree.leaves(_restore.get_all(opt_state, name))
    return np.asarray(leaves[0]) if leaves else None
