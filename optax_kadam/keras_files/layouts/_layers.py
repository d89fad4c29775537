"""The layers of a model are read from a file that numbers their variables (`.weights.h5`).

Such a file names layers and not variables, and sorts the attributes of a layer by their names. The slots of the
optimizer, however, are in the order in which the layers were made. Of that order, this is known: the configuration of a
Sequential or Functional model lists its layers; a list of layers is in order in the file, and that of a subclassed
model holds the attributes that come after "layers" in the alphabet; Keras's own layers make their sublayers in a known
order; and automatic names count (`dense`, `dense_1`).

Source: `keras/src/saving/saving_lib.py`, `keras/src/layers/layer.py` (Keras 3.15).
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from optax_kadam._generations import Generation
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._named_arrays import Group
from optax_kadam.keras_files.layouts._builtin_layers import ALIASES, ATTENTION, SUBLAYERS, SWITCHES, VARIABLES

_LAYER_LISTS = ("layers", "_layer_checkpoint_dependencies")  # Keras 2.12 and 2.13 write the latter.
# What is saved of a model beside its weights, by some versions: metrics, and the states of random generators.
NOT_WEIGHTS = re.compile(r"(.*_)?(metrics?|seed_generators?(_\d+)?|random_generator(_.*)?)|_loss_tracker")
_NOT_LAYERS = re.compile(rf"optimizer|vars|{NOT_WEIGHTS.pattern}")


@dataclasses.dataclass
class Layer:
    """A layer: its own variables, its sublayers (children), and what is known of their order."""

    own: list[tuple[str, LazyArray]]
    trainable_counts: Sequence[int]  # The numbers of own variables, from the first, that may be trained, by likelihood.
    is_frozen: bool  # By the configuration; but the optimizer may have been built before.
    children: list["Layer"]
    before: list[set[int]]  # For each child, the children that are known to come before it.
    numbered_before: list[set[int]]  # For each child, those that come before it if automatic names count.
    repeated: Sequence[LazyArray] = ()  # Its arrays that the file holds under another layer too.

    @functools.cached_property
    def has_variables(self) -> bool:
        """Whether this layer or one below it has variables."""
        return bool(self.own) or any(child.has_variables for child in self.children)

    @functools.cached_property
    def is_in_a_row(self) -> bool:
        """Whether each child is known to come after the one before it."""
        return all(index - 1 in self.before[index] for index in range(1, len(self.children)))

    def all_layers(self) -> Iterator["Layer"]:
        """Yield this layer and all below it."""
        yield self
        for child in self.children:
            yield from child.all_layers()

    def all_own(self) -> list[tuple[str, LazyArray]]:
        """Return the variables of this layer and of all below it, in some order."""
        return [variable for layer in self.all_layers() for variable in layer.own]


_Children = tuple[list[Layer], list[set[int]], list[set[int]]]


def read_layers(root: Group, config: Mapping[str, object] | None, generation: Generation) -> Layer:
    """Return the model in the file with this root group, as a layer.

    Args:
      root: the root group.
      config: the serialized model (`class_name`, `config`), or None if the file does not hold it.
      generation: the generation of Keras that wrote the file, and named the variables.
    """
    model = _Reader(generation).layer(root, "", config, "", is_frozen=False)
    if generation == "keras3" or not model.own:
        return model
    last = dataclasses.replace(model, children=[], before=[], numbered_before=[], repeated=())
    count = len(model.children)  # In tf_keras, a model's own variables come after its layers.
    before, numbered_before = [*model.before, set(range(count))], [*model.numbered_before, set()]
    return Layer([], (0,), False, [*model.children, last], before, numbered_before, model.repeated)


def numbered(group: Group | None) -> list[LazyArray]:
    """Return the arrays `0`, `1`, ... of a group in that order."""
    arrays = {} if group is None else group.arrays
    if set(arrays) != {str(index) for index in range(len(arrays))}:
        raise ValueError(f"Variables must be numbered from 0. Received: {sorted(arrays)}. The file is damaged.")
    return [arrays[str(index)] for index in range(len(arrays))]


class _Reader:
    """Reads the layers out of the groups of a file."""

    def __init__(self, generation: Generation):
        self._is_keras3, self._suffix = generation == "keras3", "" if generation == "keras3" else ":0"

    def layer(self, group: Group, key: str, config: Mapping[str, object] | None, scope: str, is_frozen: bool) -> Layer:
        """Return the layer in `group`, which is called `key` in the file; `scope` is the path of what is around it."""
        arguments = (config or {}).get("config")
        arguments = arguments if isinstance(arguments, Mapping) else {}
        listed = arguments.get("layers")
        listed = listed if isinstance(listed, list) else None
        name = str(_name(group) or arguments.get("name") or key.lstrip("_"))
        is_frozen = is_frozen or arguments.get("trainable") is False
        kind = _kind(config, key, name)
        if listed is not None:
            scope = name + "/" if self._is_keras3 and "input_layers" not in arguments else ""
        elif not (config is None and (group.at("layers/input_layer") or not key and not self._is_keras3)):
            scope = f"{scope}{name}/" if name else scope
        else:  # The layers of a Functional model were made before it, outside its scope.
            scope = ""
        own, counts = self._own(group, kind, arguments, scope)
        if listed is not None:
            children = self._listed(group, listed, scope, is_frozen)
        else:
            children = self._found(group, arguments, scope, is_frozen)
        # The first variable of a SpectralNormalization is the kernel of the layer inside.
        repeated = numbered(group.at("vars"))[: kind == "spectral_normalization"]
        return Layer(own, counts, is_frozen, *children, repeated)

    def _own(
        self, group: Group, kind: str, arguments: Mapping[str, object], scope: str
    ) -> tuple[list[tuple[str, LazyArray]], Sequence[int]]:
        """Return the variables of the layer itself, and the numbers of them that may be trained."""
        arrays = numbered(group.at("vars"))
        if kind == "spectral_normalization":
            return [(f"{scope}vector_u{self._suffix}", array) for array in arrays[1:]], (0,)
        trainable, others = VARIABLES.get(kind, ((), ()))
        off = {name for switch, names in SWITCHES.items() if arguments.get(switch) is False for name in names}
        trainable = tuple(name for name in trainable if name not in off)
        if len(arrays) == len(trainable) - 1 and trainable[-1] == "bias":
            trainable = trainable[:-1]
        if kind.startswith("depthwise") and not self._is_keras3:
            trainable = ("depthwise_kernel", *trainable[1:])
        names, counts = (*trainable, *others), (len(trainable),)
        if len(names) != len(arrays):  # This is not one of Keras's layers, or not as in the table.
            names, counts = [f"vars/{i}" for i in range(len(arrays))], tuple(range(len(arrays), -1, -1))
        own = [(f"{scope}{name}{self._suffix}", array) for name, array in zip(names, arrays, strict=True)]
        return own, counts

    def _listed(self, group: Group, configs: Sequence[object], scope: str, is_frozen: bool) -> _Children:
        """Return the layers of a Sequential or Functional model, and their order, from its configuration."""
        listed = next((group.groups[name] for name in _LAYER_LISTS if name in group.groups), Group({}, {}, {}, 0))
        layers, used, met = [], {}, set()
        for config in configs:
            if not isinstance(config, Mapping) or not isinstance(config.get("class_name"), str):
                raise ValueError(f"A model's configuration must list its layers. Received: {config!r} in the list.")
            kind = _snake(config["class_name"])
            used[kind] = used.get(kind, -1) + 1
            key = f"{kind}_{used[kind]}" if used[kind] else kind
            if key in listed.groups:  # A layer that is used again was met before.
                met.add(key)
                layers.append(self.layer(listed.groups[key], key, config, scope, is_frozen))
        if met != {key for key in listed.groups if not _NOT_LAYERS.fullmatch(key)}:
            return self._found(group, {}, scope, is_frozen)  # The file calls some classes otherwise.
        more, before, numbered_before = self._found(group, {}, scope, is_frozen, skip=_LAYER_LISTS)
        if more and not self._is_keras3:  # tf_keras numbers attributes before the list.
            return self._found(group, {}, scope, is_frozen)
        shifted = [[{i + len(layers) for i in indices} for indices in known] for known in (before, numbered_before)]
        return layers + more, _in_a_row(len(layers)) + shifted[0], [set() for _ in layers] + shifted[1]

    def _found(
        self, group: Group, arguments: Mapping[str, object], scope: str, is_frozen: bool, skip: Sequence[str] = ()
    ) -> _Children:
        """Return the layers that are attributes of `group`, or in lists there, and what is known of their order."""
        layers: list[Layer] = []
        before: list[set[int]] = []
        names: list[str] = []
        attributes: list[str] = []
        lists: list[int] = []
        keys = [key for key in group.groups if key not in skip and not _NOT_LAYERS.fullmatch(key)]
        for number, key in enumerate(keys):
            inner = group.groups[key]
            is_list = key in _LAYER_LISTS or not inner.at("vars")
            found = list(_in_list(inner)) if is_list else [(key, inner)]
            before += [{i + len(layers) for i in indices} for indices in _in_a_row(len(found))]
            for inner_key, layer in found:
                config = None if is_list else _inner_config(arguments, key)
                layers.append(self.layer(layer, inner_key, config, scope, is_frozen))
                names.append(_name(layer))
                attributes.append("" if is_list else key.lstrip("_"))
                lists.append(number)
        for earlier, later in _in_known_order(attributes):
            before[later].add(earlier)
        numbered_before: list[set[int]] = [set() for _ in layers]
        for earlier, later in _in_numbered_order(names):
            if lists[earlier] != lists[later]:
                numbered_before[later].add(earlier)
        return layers, before, numbered_before


def _inner_config(arguments: Mapping[str, object], key: str) -> Mapping[str, object] | None:
    """Return the serialized layer that is the attribute `key` of a layer with these arguments, or None."""
    attribute = key.lstrip("_")
    if attribute in ATTENTION:
        return {"class_name": "EinsumDense", "config": {"name": ATTENTION[attribute]}}
    config = arguments.get("layer" if attribute in ("forward_layer", "backward_layer") else attribute)
    if not isinstance(config, Mapping) or "class_name" not in config:
        return None
    inside = config.get("config")
    if attribute == "layer" or not isinstance(inside, Mapping):
        return config
    direction = attribute.removesuffix("layer")  # A Bidirectional names its layers so; a cell has no direction.
    return (
        {**config, "config": {**inside, "name": f"{direction}{inside.get('name')}"}}
        if direction != attribute
        else config
    )


def _name(group: Group) -> str:
    """Return the name of a layer, which is empty if an older version of Keras wrote the file."""
    return str((group.at("vars") or group).attrs.get("name", ""))


def _in_list(group: Group) -> Iterator[tuple[str, Group]]:
    """Yield the layers of a list, and those of lists in it, in the order in which they were written."""
    for key in sorted(group.groups, key=lambda key: group.groups[key].created):
        if _NOT_LAYERS.fullmatch(key):
            continue
        if group.groups[key].at("vars"):
            yield key, group.groups[key]
        else:
            yield from _in_list(group.groups[key])


def _in_a_row(count: int) -> list[set[int]]:
    return [{index - 1} if index else set() for index in range(count)]


def _in_numbered_order(names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of layers whose automatic names follow one another: `dense`, `dense_1`, `dense_10`."""
    series: dict[str, list[tuple[int, int]]] = {}
    for index, name in enumerate(names):
        if match := re.fullmatch(r"(.+?)(?:_(\d+))?", name):
            series.setdefault(match[1], []).append((int(match[2] or 0), index))
    for members in series.values():
        for (_, earlier), (_, later) in itertools.pairwise(sorted(members)):
            yield earlier, later


def _in_known_order(attributes: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of sublayers that one of Keras's own layers makes one after the other."""
    for order in SUBLAYERS:
        if set(order) <= set(attributes):
            yield from itertools.pairwise([attributes.index(name) for name in order])


def _snake(name: str) -> str:
    """Return Keras's name for an instance of a class: `Conv2DTranspose` gives `conv2d_transpose`."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
    return ALIASES.get(name, name)


def _kind(config: Mapping[str, object] | None, key: str, name: str) -> str:
    """Return the class of a layer in snake case; without a configuration, it is guessed from the names."""
    if config is not None:
        return _snake(str(config.get("class_name")))
    bases = [re.sub(r"_\d+$", "", text) for text in (key, name)]
    return next((base for base in bases if base in VARIABLES), bases[0])
