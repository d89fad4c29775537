"""The graph of the objects in a TensorFlow checkpoint: it leads from the root by named edges to every variable.

The key of a variable is its path from the root, followed by the name of the attribute: in
`model/dense/kernel/.ATTRIBUTES/VARIABLE_VALUE`, the root has a child `model`, which has `dense`, which has `kernel`.
A slot that a legacy optimizer lists for a variable has the path of the variable, then that of the optimizer and the
name of the slot: `model/dense/kernel/.OPTIMIZER_SLOT/optimizer/m`. Each key is compared with the graph.

Source: `tensorflow/core/protobuf/trackable_object_graph.proto`, `tensorflow/python/trackable/trackable_utils.py`.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from optax_kadam.keras_files._named_arrays import Node
from optax_kadam.keras_files._protobuf import Message, read_fields
from optax_kadam.keras_files._source import UNTRUSTED, Source

_SLOT = "/.OPTIMIZER_SLOT/"
_ATTRIBUTE = "/.ATTRIBUTES/"
# TensorFlow's objects take 42 to 108 bytes each, and each leads to 1.9 others at most, on average. A checkpoint has up
# to 2 of them for each tensor; a SavedModel has 4, and 11 if it is small or has layers of text. A layer without weights
# adds 15 there: 30,000 leave room for 2,000 of those, and are read in half a second.
_LEAST_PER_NODE, _MOST_PER_TENSOR, _MOST_EDGES, _FEW = 24, 20, 4, 30_000
_EMPTY = Node({}, None, None, [])


class Attribute(NamedTuple):
    """Something that is saved of an object: its name and its key in the index."""

    name: str
    key: str


def read_graph(text: bytes, source: Source, tensors: int) -> tuple[list[Node], list[Attribute]]:
    """Return the objects in the graph `text`, the root first, and what is saved of them.

    Args:
      text: a protobuf message.
      source: the file in which it stands, for messages.
      tensors: the number of tensors in the checkpoint.
    """
    most = min(_FEW + _MOST_PER_TENSOR * tensors, _FEW + len(text) // _LEAST_PER_NODE)
    nodes: list[Node] = []
    attributes: list[Attribute] = []
    owners: list[int] = []
    edges = 0
    for field, message in read_fields(memoryview(text), source):
        if field != 1 or isinstance(message, int):
            raise source.refusal("A graph must list objects.", f"field {field} in it", UNTRUSTED)
        parsed = Message(bytes(message), source)
        edges += parsed.count(1) + parsed.count(3)
        if len(nodes) == most or edges > _MOST_EDGES * most:
            raise source.refusal(
                "A graph must have no more objects than its tensors need.",
                f"more than {len(nodes)} objects, {edges} edges for {tensors} tensors in {len(text)} bytes",
                UNTRUSTED,
            )
        node, found = _read_node(parsed, source)
        owners += [len(nodes)] * len(found)
        attributes += found
        nodes.append(node)
    if not nodes:
        raise source.refusal("A graph must list objects.", "none")
    _check_references(nodes, source)
    paths = _Paths(nodes)
    for attribute, owner in zip(attributes, owners, strict=True):
        path, found, name = attribute.key.rpartition(_ATTRIBUTE)
        if not found or name != attribute.name or paths.find(path) != owner:
            must = "The key of a tensor must be the path to its object."
            raise source.refusal(must, f"{attribute.key!r} for object {owner}")
    return nodes, attributes


def _read_node(message: Message, source: Source) -> tuple[Node, list[Attribute]]:
    children = {}
    for child in message.messages(1):
        name = child.text(2)
        if name in children:
            raise source.refusal("An object must have one child of a name.", f"two named {name!r}", UNTRUSTED)
        children[name] = child.number(1)
    slots = [(slot.number(1), slot.text(2), slot.number(3)) for slot in message.messages(3)]
    full_name = key = None
    attributes = []
    for attribute in message.messages(2):
        attributes.append(Attribute(attribute.text(1), attribute.text(3)))
        if attributes[-1].name == "VARIABLE_VALUE":
            full_name, key = attribute.text(2), attributes[-1].key
            if not full_name:
                raise source.refusal("A variable must have a name.", f"none for {key!r}")
    return Node(children, full_name, key, slots) if children or key or slots else _EMPTY, attributes


def _check_references(nodes: Sequence[Node], source: Source) -> None:
    """Raise if an object is outside the graph, or if no other leads to it."""
    is_found = bytearray(len(nodes))
    for node in nodes:
        slots = (index for variable, _, slot in node.slots for index in (variable, slot))
        for index in (*node.children.values(), *slots):
            if not 0 <= index < len(nodes):
                raise source.refusal("An object must be in the graph.", f"object {index} of {len(nodes)}")
            is_found[index] = True
    lost = is_found.find(0, 1)
    if lost >= 0:
        raise source.refusal("An object must be reached from another.", f"object {lost}, which is not", UNTRUSTED)


class _Paths:
    """Follows the paths in keys."""

    def __init__(self, nodes: Sequence[Node]):
        self._nodes = nodes
        self._slots: dict[int, dict[tuple[int, str], int]] = {}

    def find(self, path: str) -> int | None:
        """Return the object at `path`, or None if there is none."""
        variable, is_slot, rest = path.partition(_SLOT)
        index = self._walk(variable)
        if not is_slot or index is None:
            return index
        optimizer, _, name = rest.rpartition("/")
        owner = self._walk(optimizer)
        if owner is None:
            return None
        if owner not in self._slots:
            self._slots[owner] = {(variable, slot): array for variable, slot, array in self._nodes[owner].slots}
        return self._slots[owner].get((index, _plain(name)))

    def _walk(self, path: str) -> int | None:
        index: int | None = 0
        for name in path.split("/") if path else ():
            index = self._nodes[index].children.get(_plain(name))
            if index is None:
                return None
        return index


def _plain(name: str) -> str:
    """Return the name of an edge as the graph has it. In a key, a dot is `..` and a slash is `.S`."""
    return re.sub(r"\.([.S])", lambda match: "/" if match[1] == "S" else ".", name) if "." in name else name
