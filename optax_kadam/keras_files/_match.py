"""Each leaf of a tree is matched with one of Keras's variables: by its path or, in a flat list, by its position."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np

Rename = Mapping[str, str] | Callable[[str], str | None] | None
Leaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct

# Keras's names of variables and of a layer inside attention, where Flax has another.
_VARIABLES = {
    "alpha": "negative_slope",
    "beta": "bias",
    "embeddings": "embedding",
    "gamma": "scale",
    "moving_mean": "mean",
    "moving_variance": "var",
}
_LAYERS = {"attention_output": "out"}
_COLLECTIONS = ("params", "batch_stats")  # Flax Linen's paths begin so, and Keras's do not.


def flax_path(path: str, *, without_model: bool = False) -> str:
    """Return the path of Keras's variable `path` in Flax's words."""
    parts = path.removesuffix(":0").split("/")[1 if without_model else 0 :]
    return "/".join([*(_LAYERS.get(part, part) for part in parts[:-1]), _VARIABLES.get(parts[-1], parts[-1])])


def model_name(paths: Iterable[str]) -> str | None:
    """Return the name of the model: the first part of the paths, if it is the same in all and more follows in each."""
    firsts = {path.partition("/")[0] if "/" in path else None for path in paths}
    return firsts.pop() if len(firsts) == 1 else None


def match_leaves(tree: object, variables: Sequence[str], rename: Rename, required: Sequence[str]) -> list[str]:
    """Return, for each leaf of `tree`, the path of the one of Keras's variables that it is.

    Args:
      tree: a tree of arrays; the leaves of a flat list are matched by position.
      variables: the paths of Keras's variables in Keras's order, first those in `required`.
      rename: what Keras's paths are called in `tree`: see `KerasTraining.restore`.
      required: the paths of the variables that must be leaves of `tree`.

    Raises:
      ValueError: if a leaf or a variable has no counterpart, or more than one.
    """
    leaves = [leaf_path(path) for path, _ in jax.tree.leaves_with_path(tree)]
    if isinstance(tree, list | tuple) and jax.tree.structure(tree) == jax.tree.structure([0] * len(leaves)):
        if len(leaves) not in (len(variables), len(required)):
            wanted = required or variables
            raise ValueError(
                f"A list must hold an array for each of Keras's trainable variables. Received: {len(leaves)} arrays "
                f"for {len(wanted)} variables: {', '.join(wanted)}."
            )
        return list(variables)[: len(leaves)]
    known = _known_as(variables, rename)
    found = [known.get(path, []) for path in leaves]
    ambiguous = next((i for i, paths in enumerate(found) if len(paths) > 1), None)
    if ambiguous is not None:
        raise ValueError(
            f"A leaf must be one of Keras's variables. Received: {leaves[ambiguous]!r}, which could be "
            f"{' or '.join(found[ambiguous])}. Say which with `rename`."
        )
    matched = [path for paths in found for path in paths]
    missing = [leaf for leaf, paths in zip(leaves, found, strict=True) if not paths]
    left_over = [path for path in required if path not in set(matched)]
    if missing or left_over or len(set(matched)) < len(matched):
        raise ValueError(_message(missing, left_over, leaves, list(variables), matched))
    return matched


def leaf_path(path: Sequence[object]) -> str:
    """Return the path of a leaf as Flax writes it: `d1/kernel`."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and names[-1] == "value":
        names.pop()  # A variable of Flax NNX holds its array so.
    if len(names) > 1 and names[0] in _COLLECTIONS:
        names = names[1:]
    return "/".join(names).removesuffix(":0")


def _known_as(variables: Sequence[str], rename: Rename) -> dict[str, list[str]]:
    """Return Keras's variables by every path that may mean them; a path of Keras's goes before a translated one."""
    model = model_name(variables)
    known: dict[str, list[str]] = {}
    for literal in (True, False):
        more: dict[str, list[str]] = {}
        for path in variables:
            written = renamed(path, rename)
            bare = written.removeprefix(f"{model}/") if model else written
            for name in {written.removesuffix(":0"), bare.removesuffix(":0")}:
                more.setdefault(name if literal else flax_path(name), []).append(path)
        known = {**more, **known}
    return known


def renamed(path: str, rename: Rename) -> str:
    """Return `path` with the replacements of `rename` made, and unchanged if none applies."""
    if rename is None:
        return path
    if callable(rename):
        return rename(path) or path
    parts = path.removesuffix(":0").split("/")
    for length in range(len(parts), 0, -1):
        for start in range(len(parts) - length + 1):
            for written in ("/".join(parts[start : start + length]), path):
                if written in rename and (written != path or length == len(parts)):
                    return "/".join([*parts[:start], *rename[written].split("/"), *parts[start + length :]])
    return path


def _message(
    missing: Sequence[str],
    left_over: Sequence[str],
    leaves: Sequence[str],
    variables: Sequence[str],
    matched: list[str],
) -> str:
    received = []
    if missing:
        near = difflib.get_close_matches(missing[0], variables, 1, 0.3)
        received.append(f"no variable for {', '.join(map(repr, missing[:5]))}{f' (near: {near[0]!r})' if near else ''}")
    if left_over:
        near = difflib.get_close_matches(left_over[0], leaves, 1, 0.3)
        received.append(f"no leaf for {', '.join(map(repr, left_over[:5]))}{f' (near: {near[0]!r})' if near else ''}")
    received += [f"several leaves for {path!r}" for path in sorted({p for p in matched if matched.count(p) > 1})]
    return (
        "The leaves must be Keras's variables, and among them all trainable ones, one for one. "
        f"Received: {'; '.join(received)}; {len(leaves)} leaves for {len(variables)} variables. "
        "Say what Keras's paths are called here with `rename`."
    )
