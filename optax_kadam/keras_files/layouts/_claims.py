"""What an HDF5 file holds must belong to a layer or to the optimizer.

One flipped bit in a name would otherwise drop the optimizer, its configuration or a batch normalisation without a word.
"""

from collections.abc import Callable, Collection, Iterable, Iterator

from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._named_arrays import Group
from optax_kadam.keras_files.layouts._layers import NOT_WEIGHTS


def check_claimed(
    root: Group, arrays: Iterable[LazyArray], attributes: Collection[str], skip: Callable[[str], bool] = lambda _: False
) -> None:
    """Raise if an array below `root` is none of `arrays`, or an attribute has none of the names `attributes`.

    A group of whose path `skip` is true, and all below it, may hold anything.
    """
    claimed = {id(array) for array in arrays}
    for path, group in _groups(root, "", skip):
        left = [f"the array {path}/{name}" for name, array in group.arrays.items() if id(array) not in claimed]
        left += [
            f"the attribute {name!r} of {path or '/'}"
            for name in group.attrs
            if name.rstrip("0123456789") not in attributes
        ]
        if left:
            raise ValueError(
                f"What a file holds must belong to a layer or to the optimizer. Received: {left[0]}, which belongs to "
                "neither. The file is damaged, or no Keras wrote it."
            )


def _groups(group: Group, path: str, skip: Callable[[str], bool]) -> Iterator[tuple[str, Group]]:
    """Yield the groups below `group` that Keras saves for a model's or an optimizer's sake, and their paths."""
    yield path, group
    for name, inner in group.groups.items():
        if not NOT_WEIGHTS.fullmatch(name) and not skip(f"{path}/{name}"):
            yield from _groups(inner, f"{path}/{name}", skip)
