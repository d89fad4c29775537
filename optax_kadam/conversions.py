"""How a leaf holds what Keras keeps in another form: the same numbers in other places.

A conversion is a function of Keras's array that moves numbers and computes none: it transposes, flips, reshapes, or
takes a part. So one conversion serves a weight and each of its slots, and `save_keras` can undo it: it converts the
numbers of the places and sees where each has come from. `restore` finds most conversions from names and shapes; the
others stand in `rename`, as do those of your own:

    rename = {"up": {"ConvTranspose_0": ok.conversions.transposed_conv}}
    rename = {"up/kernel": {"up/kernel": lambda kernel: kernel[::-1, ::-1].swapaxes(2, 3)}}

The functions here leave an array of one axis, such as a bias, as it is. So they can be given for a whole layer.
"""

from collections.abc import Callable

import numpy as np

Conversion = Callable[[np.ndarray], np.ndarray]


def unchanged(array: np.ndarray) -> np.ndarray:
    """Return the array as it is: the kernel of Flax's `ConvTranspose(transpose_kernel=True)` is Keras's.

    Args:
      array: any array.

    Example:
      >>> unchanged(np.ones((3, 3, 4, 4))).shape
      (3, 3, 4, 4)
    """
    return array


def out_first(kernel: np.ndarray) -> np.ndarray:
    """Return Keras's kernel of a Dense or a convolution as Equinox and torch have it.

    Args:
      kernel: an array of shape (..., in, out); the result has (out, in, ...).

    Example:
      >>> out_first(np.ones((5, 5, 3, 8))).shape
      (8, 3, 5, 5)
    """
    return np.moveaxis(kernel, (-1, -2), (0, 1)) if kernel.ndim > 1 else kernel


def depthwise(kernel: np.ndarray) -> np.ndarray:
    """Return Keras's kernel of a depthwise convolution as Flax's `Conv(feature_group_count=in)` has it.

    For Equinox, it is `out_first(depthwise(kernel))`.

    Args:
      kernel: an array of shape (..., in, multiplier); the result has (..., 1, in * multiplier).

    Example:
      >>> depthwise(np.ones((3, 3, 8, 2))).shape
      (3, 3, 1, 16)
    """
    if kernel.ndim < 3:
        return kernel
    return kernel.reshape(*kernel.shape[:-2], 1, kernel.shape[-2] * kernel.shape[-1])


def transposed_conv(kernel: np.ndarray) -> np.ndarray:
    """Return Keras's kernel of a transposed convolution as Flax's `ConvTranspose` has it by default.

    For the `ConvTranspose` of Equinox, it is `out_first(transposed_conv(kernel))`; for that of torch,
    `out_first(kernel)`.

    Args:
      kernel: an array of shape (..., out, in); the result has (..., in, out), and is flipped in all other axes.

    Example:
      >>> transposed_conv(np.arange(6).reshape(3, 1, 2)).tolist()
      [[[4], [5]], [[2], [3]], [[0], [1]]]
    """
    return np.flip(kernel, tuple(range(kernel.ndim - 2))).swapaxes(-1, -2) if kernel.ndim > 2 else kernel


def block(index: int, of: int) -> Conversion:
    """Return the conversion that takes one of the equal blocks of the last axis, such as the kernel of one gate.

    Keras's LSTM has the gates i, f, c, o in one kernel; its GRU has z, r, h.

    Args:
      index: which of the blocks, from 0.
      of: how many blocks there are.

    Example:
      >>> forget = block(1, of=4)
      >>> forget(np.arange(8)).tolist()
      [2, 3]
    """

    def taken(array: np.ndarray) -> np.ndarray:
        size = array.shape[-1] // of
        return array[..., index * size : (index + 1) * size]

    return taken
