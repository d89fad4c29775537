"""What Flax and Equinox call Keras's variables, and how their layers hold them."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from optax_kadam.conversions import Conversion, block, depthwise, out_first, transposed_conv, unchanged

Shape = tuple[int, ...]
# The leaves that hold a variable, each with its conversion, or None where shapes and names tell that.
Names = dict[str, Conversion | None]


class LeafShape(NamedTuple):
    """What is known of a leaf besides its path: its shape, and the name of the class in `equinox.nn` that holds it."""

    shape: Shape
    layer: str


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
_WEIGHTS = ("embedding", "embeddings", "gamma", "kernel", "scale")  # Equinox calls each of them `weight`.
_HINTS = {
    "transposed": re.compile(r"transpos|deconv|(?<![a-z])up", re.IGNORECASE),
    "depthwise": re.compile(r"depthwise|dw", re.IGNORECASE),
}
_PROJECTIONS = {"query": "query_proj", "key": "key_proj", "value": "value_proj", "attention_output": "output_proj"}


def flax_path(path: str, *, without_model: bool = False) -> str:
    """Return the path of Keras's variable `path` in Flax's words."""
    parts = path.removesuffix(":0").split("/")[1 if without_model else 0 :]
    return "/".join([*(_LAYERS.get(part, part) for part in parts[:-1]), _VARIABLES.get(parts[-1], parts[-1])])


def bare(path: str, model: str | None) -> str:
    """Return a path of Keras's without the name of the model, if all begin with that, and without `:0`."""
    path = path.removesuffix(":0")
    return path.removeprefix(f"{model}/") if model else path


def same_layer(ours: str, theirs: str) -> bool:
    """Return whether a part of Keras's path is called `theirs` without a `rename`."""
    return theirs in (ours, _LAYERS.get(ours), _PROJECTIONS.get(ours))


def library_names(path: str, written: str, shapes: Mapping[str, Shape]) -> Iterator[Names]:
    """Yield, for each way in which a layer of Flax or Equinox holds the variable `path`, the leaves and conversions.

    Args:
      path: a path of Keras's.
      written: what it is called after `rename`.
      shapes: the shapes of all variables by their paths.
    """
    above, _, name = path.removesuffix(":0").rpartition("/")
    folder, _, last = written.removesuffix(":0").rpartition("/")
    layer = above.rpartition("/")[2]
    if gates := _gates(path, shapes):
        if (gates, name, len(shapes[path])) == (3, "bias", 1):
            return  # A GRU with `reset_after=False` has one bias, and computes what no other library's does.
        outer, _, inner = folder.rpartition("/")
        home = outer if inner == layer and layer.rstrip("_0123456789").endswith("_cell") else folder
        for names in _CELLS[gates].get(name, ()):
            yield {_joined(home, leaf): conversion for leaf, conversion in names.items()}
    elif layer in _PROJECTIONS and last in ("kernel", "bias") and len(shapes[path]) == (3 if last == "kernel" else 2):
        outer, _, inner = folder.rpartition("/")
        projection = _joined(outer, _PROJECTIONS.get(inner, inner))
        yield {_joined(projection, "weight" if last == "kernel" else "bias"): _all_heads(layer)}
    elif layer == "attention_output" and last == "bias":
        yield {_joined(folder.rpartition("/")[0], _PROJECTIONS[layer], "bias"): None}
    elif last in _WEIGHTS:
        yield {_joined(folder, "weight"): None}


def _joined(*parts: str) -> str:
    return "/".join(filter(None, parts))


def _all_heads(layer: str) -> Conversion:
    """Return the conversion of a projection of a MultiHeadAttention, where Keras has an axis for the heads."""

    def joined(array: np.ndarray) -> np.ndarray:
        if array.ndim == 2:
            return array.reshape(array.size)
        rows = array.shape[0] * array.shape[1] if layer == "attention_output" else array.shape[0]
        return array.reshape(rows, array.size // rows if rows else 0).T

    return joined


def _gates(path: str, shapes: Mapping[str, Shape]) -> int | None:
    """Return how many gates the recurrent layer of the variable has, or None if it is of no recurrent layer."""
    above = path.rpartition("/")[0]
    for suffix in ("", ":0"):
        shape = shapes.get(f"{above}/recurrent_kernel{suffix}", ())
        if len(shape) == 2 and shape[0] and shape[1] % shape[0] == 0 and shape[1] // shape[0] in _CELLS:
            return shape[1] // shape[0]
    return None


def _reset_first(array: np.ndarray) -> np.ndarray:
    """Return the gates z, r, h of Keras's GRU as r, z, h."""
    update, reset, new = np.split(array, 3, axis=-1)
    return np.concatenate([reset, update, new], axis=-1)


def _reset_first_out_first(array: np.ndarray) -> np.ndarray:
    return _reset_first(array).T


def _row(index: int) -> Conversion:
    return lambda array: _reset_first(array[index])


def _each(names: str, kind: str) -> Names:
    """Return the conversions of the gates, in Keras's order, into leaves of their own."""
    leaves = names.split()
    return {f"{leaf}/{kind}": block(index, len(leaves)) for index, leaf in enumerate(leaves)}


# By the number of gates, SimpleRNN's, GRU's and LSTM's: how Linen, NNX and Equinox hold the variables of a cell.
# Keras's GRU has two biases, as that of torch has, and unlike those of Flax and Equinox.
_CELLS: dict[int, dict[str, list[Names]]] = {
    1: {
        "kernel": [{"i/kernel": unchanged}, {"dense_i/kernel": unchanged}],
        "recurrent_kernel": [{"h/kernel": unchanged}, {"dense_h/kernel": unchanged}],
        "bias": [{"i/bias": unchanged}, {"dense_i/bias": unchanged}],
    },
    3: {
        "kernel": [
            _each("iz ir in", "kernel"),
            {"dense_i/kernel": _reset_first},
            {"weight_ih": _reset_first_out_first},
        ],
        "recurrent_kernel": [
            _each("hz hr hn", "kernel"),
            {"dense_h/kernel": _reset_first},
            {"weight_hh": _reset_first_out_first},
        ],
        "bias": [{"bias_ih": _row(0), "bias_hh": _row(1)}],
    },
    4: {
        "kernel": [
            _each("ii if ig io", "kernel"),
            _each("ii if_ ig io", "kernel"),
            {"dense_i/kernel": unchanged},
            {"weight_ih": out_first},
        ],
        "recurrent_kernel": [
            _each("hi hf hg ho", "kernel"),
            {"dense_h/kernel": unchanged},
            {"weight_hh": out_first},
        ],
        "bias": [_each("hi hf hg ho", "bias"), {"dense_h/bias": unchanged}, {"bias": unchanged}],
    },
}


def conversions(path: str, shape: Shape, leaf: str, layer: str) -> list[Conversion]:
    """Return the conversions that may lie between the variable `path`, of `shape`, and a leaf of the same name.

    Args:
      path: the path of Keras's variable.
      shape: its shape.
      leaf: the path of the leaf.
      layer: the class in Equinox that the leaf belongs to, or "".
    """
    folders = path.removesuffix(":0").split("/")
    if not folders[-1].endswith("kernel") or len(shape) < 2:
        return [unchanged]
    found: list[Conversion] = [unchanged]
    if len(shape) > 2 and not {*folders[-2:-1]} & _PROJECTIONS.keys():
        hints = kernel_hints(layer or f"{path}/{leaf}")
        if "transposed" in hints:
            found = [transposed_conv] if layer else [unchanged, transposed_conv]
        if shape[-1] > 1 or layer or "depthwise" in hints:
            found = [*found, depthwise]
    if not leaf.rpartition("/")[2].startswith("weight"):
        return found
    return [_then_out_first(first) for first in found] + ([] if layer else found)


def kernel_hints(path: str) -> tuple[str, ...]:
    """Return what a path says of a convolution's kernel: that it may be transposed, or is depthwise."""
    return tuple(kind for kind, words in _HINTS.items() if words.search(path))


def _then_out_first(first: Conversion) -> Conversion:
    return lambda kernel: out_first(first(kernel))


def converted_shape(conversion: Conversion, shape: Shape) -> Shape:
    """Return the shape of what `conversion` makes of an array of `shape`."""
    return conversion(np.broadcast_to(np.zeros((), np.int8), shape)).shape


def same_but_for_ones(shape: Shape, other: Shape) -> bool:
    """Return whether two shapes differ in axes of length one alone, as those of a bias do in Flax and in Equinox."""
    return [size for size in shape if size != 1] == [size for size in other if size != 1]
