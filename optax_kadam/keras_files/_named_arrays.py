"""What containers hand to layouts: the named arrays of an HDF5 file, and those of a TensorFlow checkpoint."""

import dataclasses
from collections.abc import Mapping

from optax_kadam.keras_files._lazy_array import LazyArray

Attributes = Mapping[str, str | list[str]]


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of an HDF5 file: its attributes, and its arrays and groups by name."""

    attrs: Attributes
    arrays: Mapping[str, LazyArray]
    groups: Mapping[str, "Group"]

    def at(self, path: str) -> "Group | None":
        """Return the group at `path`, relative to this one, or None."""
        group = self
        for name in filter(None, path.split("/")):
            if name not in group.groups:
                return None
            group = group.groups[name]
        return group


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """An object in the graph of a checkpoint. It gives other objects by their indices in `Checkpoint.nodes`."""

    children: dict[str, int]
    full_name: str | None  # The name of the variable, if the object is one.
    key: str | None  # The key of the variable in `Checkpoint.tensors`.
    slots: list[tuple[int, str, int]]  # Each is a variable, the name of a slot, and the array of the slot.


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A TensorFlow checkpoint: its arrays by their keys, and the graph of the objects that were saved."""

    tensors: dict[str, LazyArray]
    nodes: list[Node]  # The first is the root.
