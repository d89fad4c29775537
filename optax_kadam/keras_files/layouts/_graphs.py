"""TensorFlow checkpoints and SavedModels: arrays in a graph of objects, in which the optimizer is looked for.

    keras3      children _iterations, _learning_rate, _momentums, _velocities, ..., _trainable_variables
    tf_keras    the same but the last; a slot is named after its variable: `Adam/m/dense/kernel`
    legacy      children iter, beta_1, ...; the node lists its slots: variable, `m`, `v` or `vhat`, array

Source: `keras/src/backend/tensorflow/optimizer.py` (Keras 3.15); `tf_keras/src/optimizers/{optimizer,adam}.py`,
`legacy/optimizer_v2.py` (2.21); `tensorflow/core/protobuf/trackable_object_graph.proto`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optax_kadam.config._parse import parse
from optax_kadam.keras_files._contents import Contents, Slots, Variable, check_name, with_guessed_trainability
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._named_arrays import Checkpoint, Node
from optax_kadam.keras_files.layouts._layers import NOT_WEIGHTS

_SLOT_LISTS = {
    "_momentums": "mu",
    "_velocities": "nu",
    "_velocity_hats": "nu_max",
    "_model_variables_moving_average": "average",
    "_accumulated_gradients": "accumulator",
}
_SLOTS = {"m": "mu", "v": "nu", "vhat": "nu_max"}
_NOT_MODEL = re.compile(rf"{NOT_WEIGHTS.pattern}|keras_api|signatures|train_(tf_)?function|test_function|save_counter")
_WITH_MODEL = "Save the model with it: `tf.train.Checkpoint(model=model, optimizer=optimizer)`."


def graph_contents(checkpoint: Checkpoint, config: Mapping[str, Any] | None) -> Contents:
    """Return what a checkpoint holds; `config` is the serialized optimizer, if it is known."""
    graph = _Graph(checkpoint)
    optimizers = [node for node in checkpoint.nodes if _is_optimizer(node)]
    if len(optimizers) > 1:
        raise ValueError(
            f"A checkpoint must hold the state of one Adam. Received: {len(optimizers)}. Save the one that you want."
        )
    model = list(graph.model_variables())
    generation = parse(config).generation if config else None
    if not optimizers:
        generation = generation or ("keras3" if "_all_variables" in checkpoint.nodes[0].children else "tf_keras")
        suffix = "" if generation == "keras3" else ":0"
        variables = [with_guessed_trainability(Variable(*graph.variable(i, suffix))) for i in model]
        return Contents(generation, config, variables, None)
    (optimizer,) = optimizers
    if config is None:
        check_name(graph.optimizer_name(optimizer))
    if optimizer.slots:
        slots, order = graph.legacy_slots(optimizer, model)
        found = "legacy"
    else:
        slots, order = graph.listed_slots(optimizer, model)
        found = "keras3" if "_trainable_variables" in optimizer.children else "tf_keras"
    suffix = "" if found == "keras3" else ":0"
    variables = [Variable(*graph.variable(i, suffix), is_trainable=i in set(order)) for i in order]
    others = [Variable(*graph.variable(i, suffix), is_trainable=False) for i in model if i not in set(order)]
    if [variable.array.shape for variable in variables] != [array.shape for array in slots.mu]:
        raise ValueError("A moment must have the shape of its variable. Received: others. The checkpoint is damaged.")
    return Contents(generation or found, config, [*variables, *others], slots)


def _is_optimizer(node: Node) -> bool:
    return {"_momentums", "_velocities"} <= set(node.children) or bool(node.slots)


class _Graph:
    """The graph of a checkpoint, with questions about its variables."""

    def __init__(self, checkpoint: Checkpoint):
        self._nodes, self._tensors = checkpoint.nodes, checkpoint.tensors

    def variable(self, index: int, suffix: str = ":0") -> tuple[str, LazyArray]:
        """Return the name and the array of the variable that is node `index`."""
        node = self._nodes[index]
        if node.key is None or node.key not in self._tensors:
            raise ValueError(f"A checkpoint must hold its variables. Received: none for {node.full_name!r}.")
        return f"{node.full_name}{suffix}", self._tensors[node.key]

    def optimizer_name(self, optimizer: Node) -> str:
        """Return what the optimizer is called, with which the names of its slots begin."""
        slots = [slot for _, _, slot in optimizer.slots]
        slots = slots or [
            i for name in _SLOT_LISTS if name in optimizer.children for i in self._list(optimizer.children[name])
        ]
        return str(self._nodes[slots[0]].full_name).partition("/")[0] if slots else ""

    def model_variables(self) -> Iterator[int]:
        """Yield the nodes that are variables of the model, in Keras's order."""
        if self._nodes and "variables" in self._nodes[0].children:  # A SavedModel lists them.
            yield from self._list(self._nodes[0].children["variables"])
            return
        seen, stack = set(), [0] if self._nodes else []
        while stack:
            index = stack.pop()
            node = self._nodes[index]
            if index in seen or _is_optimizer(node):
                continue
            seen.add(index)
            if node.key in self._tensors:
                yield index
            inside = [child for name, child in node.children.items() if not _NOT_MODEL.fullmatch(name)]
            # A layer's own variables come before those of its sublayers, a model's after those of its layers.
            inside.sort(key=lambda child: (self._nodes[child].key is None) != self._is_model(index))
            stack += reversed(inside)

    def _is_model(self, index: int) -> bool:
        """Tell whether a node is a model: the root of a checkpoint, or what its user handed over by name."""
        root = self._nodes[0].children
        is_root = any(name.startswith(("layer-", "layer_with", "train_", "root")) for name in root)
        return index == 0 or not is_root and index in root.values()

    def scalar(self, node: Node, *names: str) -> LazyArray | None:
        """Return the array of the first of the children `names` that there is."""
        index = next((node.children[name] for name in names if name in node.children), None)
        return None if index is None or self._nodes[index].key is None else self.variable(index)[1]

    def legacy_slots(self, optimizer: Node, model: Sequence[int]) -> tuple[Slots, list[int]]:
        """Return the slots of a legacy optimizer, and the variables that they belong to."""
        found: dict[str, dict[int, LazyArray]] = {}
        for variable, slot, array in optimizer.slots:
            if slot not in _SLOTS:
                raise ValueError(
                    f"A slot must be one of Adam's: m, v, vhat. Received: {slot!r}. Only Adam can be carried over."
                )
            found.setdefault(_SLOTS[slot], {})[variable] = self.variable(array)[1]
        # They are listed by when they were made: sorted here as the model has its variables.
        order = sorted(found.get("mu", {}), key=model.index)
        if not order or any(set(arrays) != set(order) for arrays in [*found.values(), found.get("nu", {})]):
            raise ValueError(f"Every variable must have the same slots. Received: {sorted(found)}, some for a part.")
        lists = {slot: [arrays[index] for index in order] for slot, arrays in found.items()}
        return self._slots(optimizer, lists, "iter"), order

    def listed_slots(self, optimizer: Node, model: Sequence[int]) -> tuple[Slots, list[int]]:
        """Return the slots of an optimizer that keeps them in lists, and the variables that they belong to."""
        children = optimizer.children
        indices = {slot: self._list(children[name]) for name, slot in _SLOT_LISTS.items() if name in children}
        lists: dict[str, Any] = {
            slot: [self.variable(index)[1] for index in nodes] for slot, nodes in indices.items() if nodes
        }
        if not lists or len({len(arrays) for arrays in lists.values()}) != 1:
            raise ValueError("Every variable must have the same slots. Received: lists of other lengths.")
        if "_trainable_variables" in children:
            order = self._list(children["_trainable_variables"])
        else:
            order = self._named_after(indices["mu"], model)
        if len(order) != len(lists["mu"]):
            raise ValueError("Every variable must have its slots. Received: lists of other lengths.")
        return self._slots(optimizer, lists, "_iterations"), order

    def _named_after(self, slots: Sequence[int], model: Sequence[int]) -> list[int]:
        """Return the variables after which the slots are named; those of one name in the order of the model."""
        by_name: dict[str | None, list[int]] = {}
        for index in model:
            by_name.setdefault(self._nodes[index].full_name, []).append(index)
        names = [self._variable_name(str(self._nodes[slot].full_name), by_name) for slot in slots]
        in_model = [self._nodes[index].full_name for index in model if self._nodes[index].full_name in names]
        if len(set(names)) < len(names) and in_model != names:
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"A slot must be named after one variable of the model. Received: {names.count(repeated)} variables "
                f"named {repeated!r}. Save the model as a SavedModel, which lists its variables."
            )
        return [by_name[name].pop(0) for name in names]

    def _variable_name(self, slot: str, known: Mapping[str | None, Any]) -> str:
        """Return the variable's name in a slot's, `Adam/m/dense/kernel`, whose first part the user may have chosen."""
        parts = slot.split("/")
        for index, part in enumerate(parts):
            if part == "m" and (name := "/".join(parts[index + 1 :])) in known:
                return name
        raise ValueError(f"A slot must be named after a variable of the model. Received: {slot!r}. {_WITH_MODEL}")

    def _list(self, index: int) -> list[int]:
        children = self._nodes[index].children
        if sorted(children) != sorted(str(i) for i in range(len(children))):
            raise ValueError(f"A list must be numbered from 0. Received: {sorted(children)}.")
        return [children[str(i)] for i in range(len(children))]

    def _slots(self, optimizer: Node, lists: dict[str, Any], count: str) -> Slots:
        iterations = self.scalar(optimizer, count)
        if iterations is None or "mu" not in lists or "nu" not in lists:
            raise ValueError("An optimizer must hold its step count and both moments. Received: less.")
        rate = self.scalar(optimizer, "_learning_rate", "_current_learning_rate", "learning_rate")
        counter = scale = None
        for node in self._nodes:
            if {"current_loss_scale", "good_steps"} <= set(node.children):
                counter, scale = self.scalar(node, "good_steps"), self.scalar(node, "current_loss_scale")
            elif {"step_counter", "dynamic_scale"} <= set(node.children):
                counter, scale = self.scalar(node, "step_counter"), self.scalar(node, "dynamic_scale")
        return Slots(iterations, rate, **lists, step_counter=counter, dynamic_scale=scale)
