"""TensorFlow checkpoints and SavedModels hold a graph of objects, one of which is the optimizer.

    keras3      its children are _iterations, _learning_rate, _momentums, _velocities, ..., _trainable_variables
    tf_keras    its children are the same but the last; a slot is named after its variable: `Adam/m/dense/kernel`
    legacy      its children are iter, beta_1, ...; it lists its slots: variable, `m`, `v` or `vhat`, array

Source: `keras/src/backend/tensorflow/optimizer.py` (Keras 3.15); `tf_keras/src/optimizers/{optimizer,adam}.py`,
`legacy/optimizer_v2.py` (2.21); `tensorflow/core/protobuf/trackable_object_graph.proto`.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from optax_kadam.config._parse import parse
from optax_kadam.keras_files._contents import (
    Contents,
    Slots,
    Variable,
    check_name,
    check_shapes,
    counted,
    missing_slot,
    with_guessed_trainability,
)
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
_NOT_MODEL = re.compile(
    rf"optimizer|vars|{NOT_WEIGHTS.pattern}|keras_api|signatures|train_(tf_)?function|test_function|save_counter"
)
_WITH_MODEL = "Save the model with it: `tf.train.Checkpoint(model=model, optimizer=optimizer)`."


def graph_contents(checkpoint: Checkpoint, config: Mapping[str, object] | None) -> Contents:
    """Return the contents of a checkpoint. `config` is the serialized optimizer, or None if it is not known."""
    graph = _Graph(checkpoint)
    optimizers = [node for node in checkpoint.nodes if _is_optimizer(node)]
    if len(optimizers) > 1:
        raise ValueError(
            f"A checkpoint must hold the state of one Adam. Received: {len(optimizers)} optimizers. "
            "Save the one that you want."
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
    check_shapes(variables, slots.mu, "The checkpoint is damaged.")
    return Contents(generation or found, config, [*variables, *others], slots)


def _is_optimizer(node: Node) -> bool:
    return {"_momentums", "_velocities"} <= set(node.children) or bool(node.slots)


class _Graph:
    """The graph of a checkpoint: it is asked for the model's variables and the optimizer's slots."""

    def __init__(self, checkpoint: Checkpoint):
        self._nodes, self._tensors = checkpoint.nodes, checkpoint.tensors

    def variable(self, index: int, suffix: str = ":0") -> tuple[str, LazyArray]:
        """Return the name and the array of the variable that is node `index`."""
        node = self._nodes[index]
        if node.key is None or node.key not in self._tensors:
            raise ValueError(f"A checkpoint must hold its variables. Received: no array for {node.full_name!r}.")
        return f"{node.full_name}{suffix}", self._tensors[node.key]

    def optimizer_name(self, optimizer: Node) -> str:
        """Return the name of the optimizer, with which the names of its slots begin."""
        slots = [slot for _, _, slot in optimizer.slots]
        slots = slots or [
            i for name in _SLOT_LISTS if name in optimizer.children for i in self._list(optimizer.children[name])
        ]
        return str(self._nodes[slots[0]].full_name).partition("/")[0] if slots else ""

    def model_variables(self) -> Iterator[int]:
        """Yield the nodes that are variables of the model, in Keras's order."""
        if self._nodes and "variables" in self._nodes[0].children:  # A SavedModel lists its variables.
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
        """Return whether a node is a model: the root, or what the user handed to `tf.train.Checkpoint` by name."""
        root = self._nodes[0].children
        is_root = any(name.startswith(("layer-", "layer_with", "train_", "root")) for name in root)
        return index == 0 or not is_root and index in root.values()

    def scalar(self, node: Node, *names: str) -> LazyArray | None:
        """Return the array of the first child of `node` that has one of `names`, or None."""
        index = next((node.children[name] for name in names if name in node.children), None)
        return None if index is None or self._nodes[index].key is None else self.variable(index)[1]

    def legacy_slots(self, optimizer: Node, model: Sequence[int]) -> tuple[Slots, list[int]]:
        """Return the slots of a legacy optimizer, and the nodes of their variables."""
        found: dict[str, dict[int, LazyArray]] = {}
        for variable, slot, array in optimizer.slots:
            if slot not in _SLOTS:
                raise ValueError(
                    f"A slot must be one of Adam's: m, v, vhat. Received: {slot!r}. Only Adam can be carried over."
                )
            found.setdefault(_SLOTS[slot], {})[variable] = self.variable(array)[1]
        if missing := missing_slot(found):
            slot, index = missing
            raise ValueError(
                f"Every variable must have the same slots. Received: no {slot} for {self._nodes[index].full_name!r}."
            )
        # The optimizer lists its slots as they were made; Keras's order is that of the variables in the model.
        order = sorted(found["mu"], key=model.index)
        lists = {slot: [arrays[index] for index in order] for slot, arrays in found.items()}
        return self._slots(optimizer, lists, "iter"), order

    def listed_slots(self, optimizer: Node, model: Sequence[int]) -> tuple[Slots, list[int]]:
        """Return the slots of an optimizer that keeps them in lists, and the nodes of their variables."""
        children = optimizer.children
        indices = {slot: self._list(children[name]) for name, slot in _SLOT_LISTS.items() if name in children}
        lists = {slot: [self.variable(index)[1] for index in nodes] for slot, nodes in indices.items() if nodes}
        if not lists or len({len(arrays) for arrays in lists.values()}) != 1:
            raise ValueError(f"Every variable must have the same slots. Received: {counted(lists)}.")
        if "_trainable_variables" in children:
            order = self._list(children["_trainable_variables"])
        else:
            order = self._named_after(indices["mu"], model)
        if len(order) != len(lists["mu"]):
            raise ValueError(
                f"Every trainable variable must have its slots. Received: {len(order)} variables, {counted(lists)}."
            )
        return self._slots(optimizer, lists, "_iterations"), order

    def _named_after(self, slots: Sequence[int], model: Sequence[int]) -> list[int]:
        """Return the nodes of the variables after which the slots are named; of one name, in the order of the model."""
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

    def _variable_name(self, slot: str, known: Collection[str | None]) -> str:
        """Return the name of the variable in that of a slot: `dense/kernel` in `Adam/m/dense/kernel`.

        What stands before `m` is the name of the optimizer, which the user may have chosen.
        """
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

    def _slots(self, optimizer: Node, lists: Mapping[str, Sequence[LazyArray]], count: str) -> Slots:
        iterations = self.scalar(optimizer, count)
        if iterations is None or "mu" not in lists or "nu" not in lists:
            step_count = "no step count" if iterations is None else "a step count"
            raise ValueError(
                f"An optimizer must hold its step count, mu and nu. Received: {step_count}, {counted(lists)}."
            )
        rate = self.scalar(optimizer, "_learning_rate", "_current_learning_rate", "learning_rate")
        counter = scale = None
        for node in self._nodes:
            if {"current_loss_scale", "good_steps"} <= set(node.children):
                counter, scale = self.scalar(node, "good_steps"), self.scalar(node, "current_loss_scale")
            elif {"step_counter", "dynamic_scale"} <= set(node.children):
                counter, scale = self.scalar(node, "step_counter"), self.scalar(node, "dynamic_scale")
        return Slots.from_lists(iterations, rate, lists, counter, scale)
