"""The leaves of a tree: their paths, as Flax writes them, and what is known of each besides its values."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from optax_kadam.keras_files.matching._words import LeafShape

Leaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct

_COLLECTIONS = ("params", "batch_stats")  # Flax Linen's paths begin so, and Keras's do not.


def leaf_path(path: Sequence[object]) -> str:
    """Return the path of a leaf as Flax writes it: `d1/kernel`."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and names[-1] == "value":
        names.pop()  # A variable of Flax NNX holds its array so.
    if len(names) > 1 and names[0] in _COLLECTIONS:
        names = names[1:]
    return "/".join(names).removesuffix(":0")


def is_flat(tree: object) -> bool:
    """Return whether a tree is a list or a tuple of arrays, which have no names."""
    is_list = isinstance(tree, list | tuple)
    return is_list and jax.tree.structure(tree) == jax.tree.structure([0] * len(jax.tree.leaves(tree)))


def leaves_of(tree: object) -> dict[str, LeafShape]:
    """Return the shape of each leaf by its path, and the class of Equinox that holds it."""
    leaves: dict[str, LeafShape] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = leaf_path(path)
        if name in leaves:
            raise ValueError(
                f"Each leaf must have a path of its own. Received: {name!r} twice. Take one of the two out of the tree."
            )
        leaves[name] = LeafShape(tuple(getattr(leaf, "shape", ())), _layer_of_equinox(tree, path))
    return leaves


def _layer_of_equinox(tree: Any, path: Sequence[object]) -> str:
    """Return the name of the class in `equinox.nn` whose attribute a leaf is, or "" if it is of another."""
    for key in path[:-1]:
        match key:
            case jax.tree_util.GetAttrKey(name=name):
                tree = getattr(tree, name)
            case jax.tree_util.DictKey(key=index) | jax.tree_util.SequenceKey(idx=index):
                tree = tree[index]
            case _:
                return ""
    classes = (made for made in type(tree).__mro__ if made.__module__.startswith("equinox.nn."))
    return next((made.__name__ for made in classes), "")
