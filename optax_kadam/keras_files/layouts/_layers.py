"""The layers of a model, and what is known of their order, are read from a file that numbers variables (`.weights.h5`).

Such a file names layers and not variables, and sorts the attributes of a layer by their names. The slots of the
optimizer, however, are in the order in which the layers were made. Of that order, this is certain:

- the configuration of a Sequential or Functional model of Keras's lists its layers in their order;
- in a model's list `layers`, the keys of one class count: `dense`, `dense_1`;
- Keras's own layers make their variables and their sublayers in an order that we know;
- the variables of one layer follow one another, and in Keras 3 they come before those of its sublayers.

Nothing else is: attributes, lists and automatic names say nothing of when a layer was made, and a layer that two others
share stands below the one of them that comes first in the alphabet.

Source: `keras/src/saving/saving_lib.py`, `keras/src/layers/layer.py` (Keras 3.15).
"""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from optax_kadam._generations import Generation
from optax_kadam.keras_files._contents import Variable
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._named_arrays import Group
from optax_kadam.keras_files.layouts._builtin_layers import ALIASES, ATTENTION, MODELS, SUBLAYERS, SWITCHES, VARIABLES

_LAYER_LISTS = ("layers", "_layer_checkpoint_dependencies")  # Keras 2.12 and 2.13 write the latter.
# What is saved of a model beside its weights, by some versions: metrics, and the states of random generators.
NOT_WEIGHTS = re.compile(r"(.*_)?(metrics?|seed_generators?(_\d+)?|random_generator(_.*)?)|_loss_tracker")
OPTIMIZER = re.compile(r"(.*_)?optimizer")
_NOT_LAYERS = re.compile(rf"{OPTIMIZER.pattern}|vars|{NOT_WEIGHTS.pattern}")

Unit = Sequence[Variable]  # The variables of one layer in their order; `is_trainable` says whether they may be trained.
Chain = Sequence[Unit]  # Layers that are known to come one after the other.
Stage = Sequence[Chain]  # Chains of which it is not known how their layers come in between one another.


class Model(NamedTuple):
    """The layers of a model: each stage is known to come after the one before it."""

    stages: Sequence[Stage]
    repeated: Sequence[LazyArray]  # Arrays that the file holds under another layer too.
    has_lora: bool  # Whether the model trains variables that the file does not hold,
    is_known: bool  # and whether the configuration of every layer is known, so that this is certain.

    def variables(self) -> list[Variable]:
        """Return all variables, in some order."""
        return [variable for unit in _units(self.stages) for variable in unit]

    def is_a_row(self) -> bool:
        """Return whether the order of all variables is known."""
        return all(len(stage) == 1 for stage in self.stages)

    def candidates(self) -> list[Variable]:
        """Return the variables that may be trained, in some order."""
        return [variable for variable in self.variables() if variable.is_trainable]


def read_layers(root: Group, config: Mapping[str, object] | None, generation: Generation) -> Model:
    """Return the model in the file with this root group.

    Args:
      root: the root group.
      config: the serialized model (`class_name`, `config`), or None if the file does not hold it.
      generation: the generation of Keras that wrote the file, and named the variables.
    """
    reader = _Reader(generation)
    stages = reader.layer(root, "", config, "", is_root=True)
    return Model(stages, reader.repeated, reader.has_lora, reader.is_known)


def numbered(group: Group | None) -> list[LazyArray]:
    """Return the arrays `0`, `1`, ... of a group in that order."""
    arrays = {} if group is None else group.arrays
    if set(arrays) != {str(index) for index in range(len(arrays))}:
        raise ValueError(f"Variables must be numbered from 0. Received: {sorted(arrays)}. The file is damaged.")
    return [arrays[str(index)] for index in range(len(arrays))]


class _Reader:
    """Reads the layers out of the groups of a file."""

    def __init__(self, generation: Generation):
        self.repeated: list[LazyArray] = []
        self.has_lora, self.is_known = False, True
        self._is_keras3, self._suffix = generation == "keras3", "" if generation == "keras3" else ":0"

    def layer(
        self,
        group: Group,
        key: str,
        config: Mapping[str, object] | None,
        scope: str,
        *,
        is_root: bool = False,
        is_listed: bool = False,
    ) -> list[Stage]:
        """Return the stages of the layer in `group`.

        Args:
          group: the group.
          key: what the layer is called in the file.
          config: the serialized layer, or None if it is not known.
          scope: the path of what is around it.
          is_root: whether it is the whole model.
          is_listed: whether it stands in a list, where it is called by its class.
        """
        arguments = (config or {}).get("config")
        arguments = arguments if isinstance(arguments, Mapping) else {}
        self.has_lora |= bool(arguments.get("lora_rank"))
        kind = _kind(config, key if is_listed else "", _name(group))
        name = str(_name(group) or arguments.get("name") or key.lstrip("_"))
        listed = arguments.get("layers") if kind in MODELS or "input_layers" in arguments else None
        if isinstance(listed, list):
            scope = name + "/" if self._is_keras3 and "input_layers" not in arguments else ""
        elif not (config is None and (group.at("layers/input_layer") or is_root and not self._is_keras3)):
            scope = f"{scope}{name}/" if name else scope
        else:  # The layers of a Functional model were made before it, outside its scope.
            scope = ""
        own = self._own(group, kind, arguments, scope)
        self.is_known &= not own or _is_kerass(config)
        stages: list[Stage] = [[[own]]] if own else []
        if kind in SUBLAYERS:
            return stages + self._sublayers(group, kind, arguments, scope)
        if isinstance(listed, list) or is_root or kind in MODELS:
            is_keras = kind in MODELS
            children = self._model(group, listed if isinstance(listed, list) else None, is_keras, scope)
            # In tf_keras, a model's own variables come after its layers.
            return stages + children if self._is_keras3 else children + stages
        inside = [stages for _, stages in self._attributes(group, arguments, scope)]
        return stages + _mixed(inside) if self._is_keras3 else _mixed([*inside, stages])

    def _own(self, group: Group, kind: str, arguments: Mapping[str, object], scope: str) -> Unit:
        """Return the variables of the layer itself."""
        arrays = numbered(group.at("vars"))
        if kind == "spectral_normalization":  # The first is the kernel of the layer inside.
            self.repeated += arrays[:1]
            return [Variable(f"{scope}vector_u{self._suffix}", array, False) for array in arrays[1:]]
        trainable, others = VARIABLES.get(kind, ((), ()))
        if kind.startswith("depthwise") and not self._is_keras3:
            trainable = ("depthwise_kernel", *trainable[1:])
        count = len(arrays) - len(others)
        off = {name for switch, names in SWITCHES.items() if arguments.get(switch) is False for name in names}
        named = tuple(name for name in trainable if name not in off)
        if len(named) == count + 1 and named[-1] == "bias":
            named = named[:-1]
        if kind not in VARIABLES or not 0 <= count <= len(trainable):  # Not one of Keras's, or not as in the table.
            named, others = tuple(f"vars/{i}" for i in range(len(arrays))), ()
        elif len(named) != count:  # Without a configuration, gamma cannot be told from beta.
            named = tuple(f"vars/{i}" for i in range(count))
        return [
            Variable(f"{scope}{name}{self._suffix}", array, index < len(named) and array.dtype.kind not in "iub")
            for index, (name, array) in enumerate(zip((*named, *others), arrays, strict=True))
        ]

    def _sublayers(self, group: Group, kind: str, arguments: Mapping[str, object], scope: str) -> list[Stage]:
        """Return the layers inside one of Keras's own, in their order."""
        found = self._attributes(group, arguments, scope, kind)
        order = SUBLAYERS[kind]
        if not {attribute for attribute, stages in found if stages} <= set(order):
            return _mixed([stages for _, stages in found])
        return [stage for name in order for attribute, stages in found if attribute == name for stage in stages]

    def _model(self, group: Group, configs: Sequence[object] | None, is_keras: bool, scope: str) -> list[Stage]:
        """Return the layers of a model. `is_keras`: it is known to be Keras's own Sequential or Functional."""
        listed = next((group.groups[name] for name in _LAYER_LISTS if name in group.groups), None)
        more = [stages for _, stages in self._attributes(group, {}, scope, skip=_LAYER_LISTS) if stages]
        if listed is None:
            return _mixed(more)
        layers = None if configs is None else self._listed(listed, configs, scope)
        if layers is not None and is_keras and not more:
            return [stage for _, stages in layers for stage in stages]
        layers = layers or [
            (_without_number(key)[0], self.layer(inner, key, None, scope, is_listed=True))
            for key, inner in _in_number(listed)
            if not _NOT_LAYERS.fullmatch(key)
        ]
        # The layers of a subclass of Functional may have been attributes before they were its layers.
        is_functional = configs is not None or "input_layer" in listed.groups
        if is_functional and not is_keras and self._is_keras3:
            return _mixed([stages for _, stages in layers] + more)
        return _interleaved(layers, more)

    def _listed(self, listed: Group, configs: Sequence[Any], scope: str) -> list[tuple[str, list[Stage]]] | None:
        """Return the classes and stages of layers that a configuration lists, or None if the file has others."""
        # The operations of a Functional model have no variables.
        layered = [config for config in configs if not _class_name(config)[0].startswith("keras.src.ops")]
        kinds = [_snake(_class_name(config)[1]) for config in layered]
        counts, used = collections.Counter(kinds), collections.Counter[str]()
        by_kind: dict[str, list[str]] = {}
        for key, _ in _in_number(listed):
            by_kind.setdefault(_without_number(key)[0], []).append(key)
        found: dict[str, tuple[str, Mapping[str, object]]] = {}
        for kind, config in zip(kinds, layered, strict=True):
            number, present = used[kind], by_kind.get(kind, [])
            used[kind] += 1
            # TensorFlow 2.12 and 2.13 leave numbers out. Where some layers are missing, the number is the place.
            key = present[number] if len(present) == counts[kind] else f"{kind}_{number}" if number else kind
            if key in listed.groups:  # A layer that is used again was met before.
                found[key] = kind, config
        if found.keys() != {key for key in listed.groups if not _NOT_LAYERS.fullmatch(key)}:
            return None
        return [(kind, self.layer(listed.groups[key], key, config, scope)) for key, (kind, config) in found.items()]

    def _attributes(
        self, group: Group, arguments: Mapping[str, object], scope: str, kind: str = "", skip: Sequence[str] = ()
    ) -> list[tuple[str, list[Stage]]]:
        """Return the attributes of `group` that are layers or lists of them, each with its stages."""
        found = []
        for key, inner in group.groups.items():
            if key in skip or _NOT_LAYERS.fullmatch(key):
                continue
            attribute = key.lstrip("_")
            configs = arguments.get(attribute)
            if inner.at("vars"):
                config = _inner_config(arguments, kind, attribute, self._is_keras3)
                found.append((attribute, self.layer(inner, key, config, scope)))
            elif isinstance(configs, list) and (layers := self._listed(inner, configs, scope)) is not None:
                found.append((attribute, [stage for _, stages in layers for stage in stages]))
            else:
                found.append((attribute, self._list(inner, scope)))
        return found

    def _list(self, group: Group, scope: str) -> list[Stage]:
        """Return the layers of a list, and those of lists in it. Their order is not known: a list may have changed."""
        return _mixed(
            self.layer(inner, key, None, scope, is_listed=True) if inner.at("vars") else self._list(inner, scope)
            for key, inner in _in_number(group)
            if not _NOT_LAYERS.fullmatch(key)
        )


def _units(stages: Iterable[Stage]) -> list[Unit]:
    return [unit for stage in stages for chain in stage for unit in chain]


def _mixed(parts: Iterable[list[Stage]]) -> list[Stage]:
    """Return as one stage layers of which nothing is known but that the variables of each follow one another."""
    units = [unit for stages in parts for unit in _units(stages)]
    return [[[unit] for unit in units]] if units else []


def _interleaved(layers: Iterable[tuple[str, list[Stage]]], others: Iterable[list[Stage]]) -> list[Stage]:
    """Return as one stage layers of which those of one class are in order, and others of which nothing is known."""
    chains: dict[str, list[Unit]] = {}
    more: list[list[Stage]] = list(others)
    for kind, stages in layers:
        if all(len(stage) == 1 for stage in stages):
            chains.setdefault(kind, []).extend(_units(stages))
        else:
            more.append(stages)
    stage = [chain for chain in chains.values() if chain] + [chain for mixed in _mixed(more) for chain in mixed]
    return [stage] if stage else []


def _in_number(group: Group) -> list[tuple[str, Group]]:
    """Return the members of a list; `dense_10` comes after `dense_9`."""
    return sorted(group.groups.items(), key=lambda item: _without_number(item[0]))


def _inner_config(
    arguments: Mapping[str, Any], kind: str, attribute: str, is_keras3: bool
) -> Mapping[str, object] | None:
    """Return the serialized layer that is an attribute of a layer of class `kind` with these arguments, or None."""
    if attribute in ATTENTION and SUBLAYERS.get(kind) == tuple(ATTENTION):
        return {"module": "keras.layers", "class_name": "EinsumDense", "config": {"name": ATTENTION[attribute]}}
    cell = re.sub("([123]d)?$", "_cell", kind, count=1)
    if attribute == "cell" and cell in VARIABLES:
        return {"module": "keras.layers", "class_name": cell, "config": {**arguments, "name": cell}}
    directions = {"forward_layer": ("layer",), "backward_layer": ("backward_layer", "layer")}.get(
        attribute, (attribute,)
    )
    config = next((arguments[name] for name in directions if isinstance(arguments.get(name), Mapping)), None)
    if config is None or "class_name" not in config:
        return None
    inside, direction = config.get("config"), attribute.removesuffix("_layer")
    if direction == attribute or not isinstance(inside, Mapping) or is_keras3:
        return config
    # Keras 3 saves the layers inside a Bidirectional; tf_keras saves what it made them of, without their directions.
    return {**config, "config": {**inside, "name": f"{direction}_{inside.get('name')}"}}


def _class_name(config: object) -> tuple[str, str]:
    """Return the module and the name of the class of a serialized layer."""
    if not isinstance(config, Mapping) or not isinstance(name := config.get("class_name"), str):
        raise ValueError(
            f"A model's configuration must list its layers. Received: {config!r} in the list. "
            "The file is damaged, or no Keras wrote it."
        )
    return str(config.get("module")), name


def _name(group: Group) -> str:
    """Return the name of a layer, which is empty if an older version of Keras wrote the file."""
    return str((group.at("vars") or group).attrs.get("name", ""))


def _snake(name: str) -> str:
    """Return Keras's name for an instance of a class: `Conv2DTranspose` gives `conv2d_transpose`."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
    return ALIASES.get(name, name)


def _without_number(name: str) -> tuple[str, int]:
    """Return an automatic name without its number, and the number: `dense_7` gives `dense` and 7."""
    base, _, number = name.rpartition("_")
    return (base, int(number)) if base and number.isdecimal() else (name, 0)


def _kind(config: Mapping[str, object] | None, key: str, name: str) -> str:
    """Return the class of a layer in snake case if it is one of Keras's own, and "" otherwise.

    Without a configuration, it is what a list in the file calls it, or its automatic name. TensorFlow 2.12 does not say
    in the configuration whose a class is.
    """
    if config is None:
        return _without_number(key or name)[0]
    is_keras = _is_kerass(config) or ("module" not in config and ">" not in str(config.get("class_name")))
    return _snake(str(config.get("class_name"))) if is_keras else ""


def _is_kerass(config: Mapping[str, object] | None) -> bool:
    """Return whether a serialized layer is known to be one of Keras's own."""
    return config is not None and str(config.get("module")).split(".")[0] in ("keras", "tf_keras")
