"""Two sides of a comparison are brought together: the arrays of one, under the paths and in the shapes of the other."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_kadam.keras_files.comparing._distance import plain_array
from optax_kadam.keras_files.comparing._side import OTHERS, Side
from optax_kadam.keras_files.matching._match import match_some, model_name
from optax_kadam.keras_files.matching._origin import Origin, variable_of
from optax_kadam.keras_files.matching._rename import Rename
from optax_kadam.keras_files.matching._words import Shape, bare, converted_shape, same_but_for_ones


class Together(NamedTuple):
    """A side in terms of another, `like`."""

    arrays: dict[str, dict[str, Any]]  # By slot and by the path in `like`.
    rest: dict[str, list[str]]  # By slot, the paths of what `like` does not have.
    names: dict[str, list[str]]  # By the path in `like`, what it is called in the side.


def together(side: Side, like: Side, rename: Rename | None) -> Together:
    """Return `side` in terms of `like`. If one of the two is a tree, `rename` says what Keras's paths are called there.

    Raises:
      ValueError, TypeError: as `compare` does.
    """
    is_split = side.is_keras and not like.is_keras  # A variable of `side` may be held in several leaves of `like`.
    keras, tree = (side, like) if is_split else (like, side)
    parts: dict[str, list[tuple[str, Origin]]] = {}  # By the path in `like`: what it is made of in `side`.
    for leaf, origin in _origins(keras, tree, rename).items():
        path, name = (leaf, origin.variable) if is_split else (origin.variable, leaf)
        parts.setdefault(path, []).append((name, origin))
    found: dict[str, dict[str, Any]] = {}
    rest: dict[str, list[str]] = {}
    for slot, arrays in side.arrays.items():
        used: set[str] = set()
        found[slot] = {}
        for path, made_of in parts.items() if slot != OTHERS else ((path, [(path, Origin(path))]) for path in arrays):
            if all(name in arrays for name, _ in made_of):
                held = [(origin, plain_array(arrays[name])) for name, origin in made_of]
                shape = like.leaves[path].shape if path in like.leaves else held[0][1].shape
                found[slot][path] = held[0][0].leaf(held[0][1], shape) if is_split else _variable(held, shape)
                used.update(name for name, _ in made_of)
        rest[slot] = [path for path in arrays if path not in used]
    return Together(found, rest, {path: [name for name, _ in made_of] for path, made_of in parts.items()})


def _variable(leaves: Sequence[tuple[Origin, np.ndarray]], shape: Shape) -> np.ndarray:
    """Return the variable that `leaves` hold, or one of them as it is if that has not the shape that it should have."""
    for origin, leaf in leaves:
        if not same_but_for_ones(converted_shape(origin.conversion, shape), leaf.shape):
            return leaf
    return variable_of(leaves, shape)


def _origins(keras: Side, tree: Side, rename: Rename | None) -> dict[str, Origin]:
    """Return the origins of the leaves of `tree`, by path. Either side may be one of Keras's or a tree."""
    shapes = {path: leaf.shape for path, leaf in keras.leaves.items()}
    if tree.is_flat and keras.is_keras and not tree.is_keras:
        return _by_position(keras, tree)
    ways = [{path: path for path in tree.leaves}]
    if tree.is_keras:
        model = model_name(tree.leaves)
        ways.append({bare(path, model): path for path in tree.leaves})
    if tree.is_keras == keras.is_keras and rename is None:
        model = model_name(shapes) if keras.is_keras else None
        for names, variables in zip(ways, ({p: p for p in shapes}, {bare(p, model): p for p in shapes}), strict=False):
            if common := [path for path in variables if path in names]:
                leaves = {name: tree.leaves[path] for name, path in names.items() if name not in common}
                rest = {path: shapes[path] for name, path in variables.items() if name not in common}
                others = match_some(leaves, rest, None, 0).items() if leaves and rest else ()
                same = {names[path]: Origin(variables[path]) for path in common}
                return same | {names[name]: origin for name, origin in others}
    leaves = {name: tree.leaves[path] for name, path in ways[-1].items()}
    return {ways[-1][name]: origin for name, origin in match_some(leaves, shapes, rename).items()}


def _by_position(keras: Side, tree: Side) -> dict[str, Origin]:
    trained = keras.arrays.get("mu", keras.leaves)
    if len(tree.leaves) not in (len(keras.leaves), len(trained)):
        raise ValueError(
            f"A list must hold an array for each of Keras's trainable variables. Received: {len(tree.leaves)} arrays "
            f"for {len(trained)} variables: {', '.join(trained)}."
        )
    return {leaf: Origin(path) for leaf, path in zip(tree.leaves, keras.leaves, strict=False)}
