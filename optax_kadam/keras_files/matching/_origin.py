"""Where the numbers of a leaf come from: `Origin.leaf` takes them there, `variable_of` takes them back."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optax_kadam.conversions import Conversion, unchanged
from optax_kadam.keras_files.matching._words import LeafShape, Shape, conversions, converted_shape, same_but_for_ones


class Origin(NamedTuple):
    """Where the numbers of a leaf come from: one of Keras's variables, and the conversion into the leaf."""

    variable: str
    conversion: Conversion = unchanged

    def leaf(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """Return the leaf made of the variable's array; axes of length one are as in `shape` if that is all."""
        made = self.conversion(array)
        return made.reshape(shape) if same_but_for_ones(made.shape, shape) else made


def variable_of(leaves: Sequence[tuple[Origin, np.ndarray]], shape: Shape) -> np.ndarray:
    """Return the array of one of Keras's variables, made of the leaves that hold it.

    The conversions are undone: each is done to the numbers of the places, which says where a number has come from.
    """
    if len(leaves) == 1 and leaves[0][0].conversion is unchanged:
        return leaves[0][1].reshape(shape)
    array = np.empty(shape, leaves[0][1].dtype)
    for origin, leaf in leaves:
        places = origin.conversion(_places(shape))
        array.reshape(array.size)[places] = leaf.reshape(places.shape)
    return array


def origin_of(path: str, leaf: LeafShape, variable: str, shape: Shape) -> Origin:
    """Return the origin of the leaf at `path`, of which the shapes must say by which conversion it comes about."""
    possible = conversions(variable, shape, path, leaf.layer)
    fitting = [made for made in possible if same_but_for_ones(converted_shape(made, shape), leaf.shape)]
    if len(fitting) > 1:
        places = [made(_places(shape)).reshape(-1) for made in fitting]
        if any(not np.array_equal(other, places[0]) for other in places[1:]):
            raise ValueError(
                "It must be known how a leaf holds the axes of a kernel. "
                f"Received: {path!r}, which may be {variable!r} of shape {list(shape)} as Keras has it or transposed. "
                f"Say which with `rename`: `{{{_last_two(variable)!r}: {{{_last_two(path)!r}: "
                "ok.conversions.unchanged}}`, or `out_first`, or `transposed_conv`."
            )
    return Origin(variable, next(iter(fitting or possible)))


def _last_two(path: str) -> str:
    return "/".join(path.removesuffix(":0").split("/")[-2:])


def check_moves_only(variable: str, parts: Sequence[Conversion], shape: Shape) -> None:
    """Raise if the conversions of a variable do not take each of its numbers to one place."""
    try:
        numbers = [np.asarray(part(_places(shape))).reshape(-1) for part in parts]
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"A conversion must take an array of the shape of Keras's. Received: {error!r} for {variable!r} of shape "
            f"{list(shape)}. Name in `rename` the variable that it is for, such as the kernel and not the whole layer."
        ) from error
    found = np.sort(np.concatenate(numbers))
    if not np.array_equal(found, _places(shape).reshape(-1)):
        raise ValueError(
            "Conversions must take each number of Keras's array to one place, and change none. Received: those of "
            f"{variable!r}, which leave out, repeat or change some. Transpose, reshape, flip, or take parts."
        )


def _places(shape: Shape) -> np.ndarray:
    return np.arange(int(np.prod(shape))).reshape(shape)
