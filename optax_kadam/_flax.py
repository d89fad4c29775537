"""Flax's wrappers of arrays, which are known by their classes: Flax is not imported."""


def is_wrapper(node: object) -> bool:
    """Return whether a node of a tree is an array in a wrapper of Flax's: a variable of NNX, or a box of Linen's.

    What is said of a wrapper, as how it is divided, is said of the array in it. `nnx.Optimizer` hands the `init` of a
    transformation wrappers, and its `update` the arrays in them; what stands in the place of a wrapper fits both.
    """
    classes = (made for made in type(node).__mro__ if made.__module__.startswith("flax."))
    return any(made.__name__ in ("Variable", "AxisMetadata") for made in classes)
