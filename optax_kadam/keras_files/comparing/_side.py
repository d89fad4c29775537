"""A side of a comparison: arrays by name and path, numbers, and a configuration, whatever they are read from."""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from optax_kadam.config._parse import OptimizerConfig, parse
from optax_kadam.keras_files._restore import COUNTS, SLOTS
from optax_kadam.keras_files._training import KerasTraining, load_keras
from optax_kadam.keras_files.comparing._orbax import is_orbax, read_orbax
from optax_kadam.keras_files.matching._leaves import is_flat, leaf_path, leaves_of
from optax_kadam.keras_files.matching._words import LeafShape

Trained: TypeAlias = Any  # A path, a `KerasTraining`, `(params, opt_state)`, or parameters alone.
WEIGHTS, OTHERS = "weights", "state"
KEPT_NUMBERS = ("iterations", "learning_rate", "step_counter", "dynamic_scale")
_PARAMS, _STATISTICS = ("params", "model"), ("non_trainable", "batch_stats")


@dataclasses.dataclass(frozen=True)
class Side:
    """What is compared with another side.

    Args:
      what: what it is, in words.
      leaves: what is known of its weights, by path, in order.
      arrays: for `weights`, each slot and `state`, which is all else that the optimizer keeps, the arrays by path.
      numbers: the counts, rates and scales.
      config: the configuration of the optimizer, or None if it is not known.
      computes_rate: whether its learning rate follows from the step.
      is_keras: whether it has Keras's names.
      is_flat: whether it has no names, but Keras's order.
    """

    what: str
    leaves: dict[str, LeafShape]
    arrays: dict[str, dict[str, Any]]
    numbers: dict[str, int | float]
    config: OptimizerConfig | None = None
    computes_rate: bool = False
    is_keras: bool = False
    is_flat: bool = False


def side_of(given: Trained, name: str) -> Side:
    """Return what `given` holds, which is the argument `name`.

    Raises:
      TypeError: if a leaf is no array.
      ValueError, FileNotFoundError, ImportError: as `load_keras` does, and if an Orbax checkpoint is no training.
    """
    if isinstance(given, KerasTraining):
        return _of_keras(given, "a training of Keras's")
    if isinstance(given, str | os.PathLike):
        path = pathlib.Path(given)
        if is_orbax(path):
            return _of_checkpoint(path, name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* holds weights alone")  # The comparison says so.
            return _of_keras(load_keras(path), str(path))
    if type(given) is tuple and len(given) in (2, 3) and _is_state(given[1]):
        return _of_tree(name, "parameters and the state of their optimizer", *given)
    return _of_tree(name, "parameters", given)


def _of_keras(training: KerasTraining, what: str) -> Side:
    config = None if training.config is None else parse(training.config)
    slots = {slot: arrays for slot in SLOTS if (arrays := getattr(training, slot)) is not None}
    arrays = {WEIGHTS: training.variables, **slots}
    arrays = {slot: {path.removesuffix(":0"): a for path, a in named.items()} for slot, named in arrays.items()}
    numbers = {n: number for n in KEPT_NUMBERS if slots and (number := getattr(training, n)) is not None}
    leaves = {path: LeafShape(array.shape, "") for path, array in arrays[WEIGHTS].items()}
    return Side(f"{what} ({training.generation})", leaves, arrays, numbers, config, _computes(config), is_keras=True)


def _of_checkpoint(path: pathlib.Path, name: str) -> Side:
    tree, metadata = read_orbax(path)
    keys = list(tree) if isinstance(tree, Mapping) else []
    params = next((key for key in _PARAMS if key in keys), None)
    state = next((key for key in ("opt_state", "optimizer") if key in keys), None)
    if params is None and (state or _is_state(tree)):
        raise ValueError(
            f"`{name}` must be a checkpoint of {{'params': ..., 'opt_state': ...}}. Received: {str(path)!r}, with "
            f"{', '.join(map(str, keys)) or 'a list'}. Restore it, and hand over `(params, opt_state)`."
        )
    statistics = next((tree[key] for key in _STATISTICS if key in keys), None)
    trained = tree if params is None else tree[params]
    side = _of_tree(name, str(path), trained, () if state is None else tree[state], statistics)
    optimizer = metadata.get("optimizer")
    config = parse(optimizer) if isinstance(optimizer, Mapping) else None
    return dataclasses.replace(side, config=config, computes_rate=_computes(config))


def _computes(config: OptimizerConfig | None) -> bool:
    """Return whether the rate of a step is computed: what Keras saved is then that of another step than a state's."""
    arguments = {} if config is None else config.arguments
    return bool(arguments.get("decay")) or not isinstance(arguments.get("learning_rate", 0.0), int | float)


def _is_state(value: Any) -> bool:
    """Return whether a value is the state of an optimizer, or an object or a dict that holds one."""
    if hasattr(value, "opt_state"):
        return True
    if type(value) is tuple and not value:
        return True  # That of a transformation without one.
    nodes = jax.tree.leaves(value, is_leaf=lambda node: hasattr(node, "_fields"))
    named = {str(_name(key)) for path, _ in jax.tree.leaves_with_path(value) for key in path}
    return any(hasattr(node, "_fields") for node in nodes) or {"mu", "nu"} <= named


def _of_tree(name: str, what: str, params: Any, state: Any = (), statistics: Any = None) -> Side:
    state = getattr(state, "opt_state", state)  # `nnx.Optimizer` and a TrainState of Flax hold it so.
    if isinstance(state, Mapping):
        state = state.get("opt_state", state)
    leaves = leaves_of(params)
    weights = {leaf_path(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    for path, leaf in jax.tree.leaves_with_path(statistics):
        if weights.setdefault(leaf_path(path), leaf) is not leaf:
            raise ValueError(
                f"`{name}` must hold each variable once. Received: {leaf_path(path)!r} among the parameters and among "
                "the others. Take one of the two out."
            )
    leaves |= leaves_of(statistics)
    arrays: dict[str, dict[str, Any]] = {WEIGHTS: weights}
    numbers: dict[str, int | float] = {}
    found = jax.tree.leaves_with_path(state)
    has_fields = any(
        isinstance(key, jax.tree_util.GetAttrKey) and key.name in SLOTS for path, _ in found for key in path
    )
    for path, leaf in found:
        slot, inner = _slot(path, has_fields)
        _check_array(name, path, leaf)
        if slot:
            place, at = arrays.setdefault(slot, {}), leaf_path(inner)
        elif leaf.shape or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            place, at = arrays.setdefault(OTHERS, {}), leaf_path(path)
        else:
            place, at = numbers, _number_name(path)
            leaf = np.asarray(leaf).item()
        place[_free(at, place)] = leaf
    for path, leaf in jax.tree.leaves_with_path((params, statistics)):
        _check_array(name, path[1:], leaf)
    return Side(what, leaves, arrays, numbers, is_flat=is_flat(params))


def _slot(path: tuple[Any, ...], has_fields: bool) -> tuple[str, tuple[Any, ...]]:
    """Return the slot that a leaf of a state is in, or "", and its path there.

    A state that was restored without its types has keys of a dict in the place of the fields of a NamedTuple. The
    parameters are inside the slots, so that the first such name on the way is that of the slot.
    """
    for index, key in enumerate(path):
        is_field = isinstance(key, jax.tree_util.GetAttrKey) or not has_fields
        if is_field and _name(key) in (*SLOTS, "acc_grads"):
            return _name(key), path[index + 1 :]
    return "", path


def _name(key: Any) -> Any:
    return getattr(key, "name", getattr(key, "key", None))


def _number_name(path: tuple[Any, ...]) -> str:
    """Return the name of a number of a state. What optax calls the number of steps is `iterations` too."""
    name = leaf_path(path).rpartition("/")[2]
    return "iterations" if name in COUNTS else name


def _free(name: str, taken: Mapping[str, object]) -> str:
    """Return `name`, or with a number behind it if there is one of that name already."""
    names = [name, *(f"{name}#{count}" for count in range(2, len(taken) + 2))]
    return next(free for free in names if free not in taken)


def _check_array(name: str, path: tuple[Any, ...], leaf: Any) -> None:
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}".removeprefix("builtins.")
        raise TypeError(
            f"`{name}` must hold arrays. Received: {kind} at {jax.tree_util.keystr(path)!r}. "
            "Hand over the arrays alone: `eqx.filter(model, eqx.is_array)`, or `nnx.state(model, nnx.Param)`."
        )
