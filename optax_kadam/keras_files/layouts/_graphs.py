"""TensorFlow checkpoints and SavedModels hold a graph of objects, one of which is the optimizer.

    keras3      its children are _iterations (at first `iterations`), _learning_rate, _variables, which is the list of
                the numbered format, _momentums, _velocities, ..., _trainable_variables
    tf_keras    its children are the same but the last; a slot is named after its variable: `Adam/m/dense/kernel`
    legacy      its children are iter, beta_1, ...; it lists its slots: variable, `m`, `v` or `vhat`, array

Source: `keras/src/backend/tensorflow/optimizer.py` (Keras 3.15); `tf_keras/src/optimizers/{optimizer,adam}.py`,
`legacy/optimizer_v2.py` (2.21); `tensorflow/core/protobuf/trackable_object_graph.proto`.
"""

import collections
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from optax_kadam.config._parse import parse
from optax_kadam.keras_files._contents import (
    KERAS3_SLOTS,
    Contents,
    Hints,
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
    rf"optimizer|{NOT_WEIGHTS.pattern}|keras_api|signatures|train_(tf_)?function|test_function|save_counter"
)
# What files hold beside a model and its Adam: by a name in the path of a tensor, and by the name at its end.
_BESIDE = re.compile(rf"save_counter|keras_api|_all_variables|{NOT_WEIGHTS.pattern}")
_HYPERPARAMETERS = {"iter", "beta_1", "beta_2", "decay", "learning_rate"}
_HYPERPARAMETERS |= {"_iterations", "iterations", "_learning_rate", "_current_learning_rate"}
_LOSS_SCALES = ({"step_counter", "dynamic_scale"}, {"current_loss_scale", "good_steps"})
_SCALE_NAMES = ("step_counter", "good_steps"), ("dynamic_scale", "current_loss_scale")
# Keras 3's `export` lists the states of random generators among the variables of the model, and names them so.
_SEED = re.compile(r"(.*/)?seed_generator_state")
_NUMBER = re.compile("0|[1-9][0-9]{0,8}")
_WITH_MODEL = "Save the model with it: `tf.train.Checkpoint(model=model, optimizer=optimizer)`."


def graph_contents(checkpoint: Checkpoint, hints: Hints) -> Contents:
    """Return the contents of a checkpoint; `hints` are what the caller knows, and the configuration of a SavedModel."""
    graph, config = _Graph(checkpoint), hints.config
    optimizers = [index for index, node in enumerate(checkpoint.nodes) if _is_optimizer(node)]
    model = list(graph.model_variables())
    generation = parse(config).generation if config else None
    if not optimizers:
        generation = generation or ("keras3" if "_all_variables" in checkpoint.nodes[0].children else "tf_keras")
        suffix = "" if generation == "keras3" else ":0"
        variables = [with_guessed_trainability(Variable(*graph.variable(i, suffix))) for i in model]
        _check_claimed(checkpoint, variables, None)
        return Contents(generation, config, variables, None, None)
    chosen = optimizers[0] if len(optimizers) == 1 else graph.child_called(hints.optimizer, optimizers)
    optimizer = checkpoint.nodes[chosen]
    if config is None:
        check_name(graph.optimizer_name(optimizer))
    if optimizer.slots:
        slots, order = graph.legacy_slots(optimizer, model)
        found = "legacy"
    else:
        slots, order = graph.listed_slots(optimizer, model)
        found = "keras3" if "_trainable_variables" in optimizer.children else "tf_keras"
    suffix = "" if found == "keras3" else ":0"
    trained = set(order)
    variables = [Variable(*graph.variable(i, suffix)) for i in order]
    others = [Variable(*graph.variable(i, suffix), is_trainable=False) for i in model if i not in trained]
    beside = graph.below([index for index in optimizers if index != chosen])
    _check_claimed(checkpoint, [*variables, *others], slots, beside)
    check_shapes(variables, slots.mu, "The checkpoint is damaged.")
    return Contents(generation or found, config, [*variables, *others], slots, "named")


def _check_claimed(
    checkpoint: Checkpoint, variables: Sequence[Variable], slots: Slots | None, beside: Collection[str] = ()
) -> None:
    """Raise if a tensor is neither of the model nor of its Adam, nor one of those that are known to stand beside them.

    Otherwise the optimizer, or a layer, would be left out without a word where a name is not the one that is expected.
    `beside` are the keys of the tensors of other optimizers.
    """
    arrays = [variable.array for variable in variables]
    if slots is not None:
        scalars = slots.iterations, slots.learning_rate, slots.step_counter, slots.dynamic_scale
        arrays += [array for array in scalars if array is not None]
        arrays += itertools.chain(*slots.arrays().values())
    claimed = {id(array) for array in arrays}
    beside = {*beside, *(str(node.key) for node in checkpoint.nodes if _is_seed(node))}
    if len(claimed) < len(arrays):
        raise ValueError(
            f"A tensor must be one variable or one slot. Received: {len(claimed)} tensors for {len(arrays)} of them. "
            "The checkpoint is damaged, or no Keras wrote it: do not trust it."
        )
    for key, tensor in checkpoint.tensors.items():
        path = key.partition("/.ATTRIBUTES/")[0].split("/")
        is_beside = key in beside or path[-1] in _HYPERPARAMETERS or any(_BESIDE.fullmatch(name) for name in path)
        if id(tensor) not in claimed and not is_beside:
            raise ValueError(
                f"A tensor must belong to the model or to its Adam. Received: {key!r}, which belongs to neither. "
                "The checkpoint is damaged, or of another optimizer: only Adam can be carried over."
            )


def _is_optimizer(node: Node) -> bool:
    return {"_momentums", "_velocities"} <= node.children.keys() or bool(node.slots)


def _is_seed(node: Node) -> bool:
    return bool(_SEED.fullmatch(node.full_name or ""))


def _is_loss_scale(node: Node) -> bool:
    return any(names <= node.children.keys() for names in _LOSS_SCALES)


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

    def child_called(self, name: str, indices: Collection[int]) -> int:
        """Return the one of the optimizers at `indices` that is an attribute `name`, maybe inside a loss scale."""
        edges = [(name, child) for node in self._nodes for name, child in node.children.items()]
        called = {child for key, child in edges if key == name}
        inside = called | {child for index in called for child in self._nodes[index].children.values()}
        found = [index for index in indices if index in inside]
        if len(found) != 1:
            names = sorted({key for key, child in edges if child in indices})
            raise ValueError(
                "It must be known which optimizer is meant. "
                f"Received: optimizer={name!r}, and {len(indices)} of the names {', '.join(names)}. "
                f"Say which: `load_keras(path, optimizer={names[0]!r})`."
            )
        return found[0]

    def below(self, indices: Iterable[int]) -> set[str]:
        """Return the keys of the tensors below nodes, and of the slots that these list."""
        seen, stack = set(), list(indices)
        while stack:
            if (index := stack.pop()) not in seen:
                seen.add(index)
                node = self._nodes[index]
                stack += [*node.children.values(), *(slot for _, _, slot in node.slots)]
        return {key for index in seen if (key := self._nodes[index].key) is not None}

    def model_variables(self) -> Iterator[int]:
        """Yield the nodes that are variables of the model, in Keras's order."""
        if "variables" in self._nodes[0].children:  # A SavedModel lists its variables.
            listed = self._nodes[self._nodes[0].children["variables"]].children
            self._check_numbers(listed)  # Tables count too, but are not saved.
            ordered = (listed[name] for name in sorted(listed, key=int))
            yield from (index for index in ordered if not _is_seed(self._nodes[index]))
            return
        root = self._nodes[0].children
        is_root = any(name.startswith(("layer-", "layer_with", "train_", "root")) for name in root)
        models = set() if is_root else set(root.values())  # What the user handed to `tf.train.Checkpoint` by name.
        seen, stack = set(), [0]
        while stack:
            index = stack.pop()
            node = self._nodes[index]
            if index in seen or _is_optimizer(node) or _is_loss_scale(node):
                continue
            seen.add(index)
            if node.key in self._tensors:
                yield index
            inside = [child for name, child in node.children.items() if not _NOT_MODEL.fullmatch(name)]
            # A layer's own variables come before those of its sublayers, a model's after those of its layers.
            is_model = index == 0 or index in models
            inside.sort(key=lambda child: (self._nodes[child].key is None) != is_model)
            stack += reversed(inside)

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
        place = {index: i for i, index in enumerate(model)}
        if alone := [self._nodes[index].full_name for index in found["mu"] if index not in place]:
            raise ValueError(f"A slot must be of a variable of the model. Received: one of {alone[0]!r}. {_WITH_MODEL}")
        order = sorted(found["mu"], key=place.__getitem__)
        lists = {slot: [arrays[index] for index in order] for slot, arrays in found.items()}
        return self._slots(optimizer, lists, "iter"), order

    def listed_slots(self, optimizer: Node, model: Sequence[int]) -> tuple[Slots, list[int]]:
        """Return the slots of an optimizer that keeps them in lists, and the nodes of their variables."""
        children = optimizer.children
        is_keras3 = "_trainable_variables" in children
        if is_keras3 and "_variables" in children:
            # Keras 3.3 to 3.9 filled their lists of slots after TensorFlow had looked at them, so that they are empty
            # in the graph, or some of them are. The list of all its variables was always filled in time.
            every = [(index, str(self._nodes[index].full_name)) for index in self._list(children["_variables"])]
            indices = {
                slot: [index for index, name in every if name.endswith(ending)] for ending, slot in KERAS3_SLOTS.items()
            }
        else:
            indices = {slot: self._list(children[name]) for name, slot in _SLOT_LISTS.items() if name in children}
        lists = {slot: [self.variable(index)[1] for index in nodes] for slot, nodes in indices.items() if nodes}
        if not lists or len({len(arrays) for arrays in lists.values()}) != 1:
            raise ValueError(f"Every variable must have the same slots. Received: {counted(lists)}.")
        if is_keras3:
            order = self._list(children["_trainable_variables"])
        else:
            order = self._named_after(indices["mu"], model)
        if len(order) != len(lists["mu"]):
            raise ValueError(
                f"Every trainable variable must have its slots. Received: {len(order)} variables, {counted(lists)}."
            )
        return self._slots(optimizer, lists, "_iterations", "iterations"), order

    def _named_after(self, slots: Sequence[int], model: Sequence[int]) -> list[int]:
        """Return the nodes of the variables after which the slots are named; of one name, in the order of the model."""
        by_name: dict[str | None, list[int]] = {}
        for index in model:
            by_name.setdefault(self._nodes[index].full_name, []).append(index)
        lengths = {len(name) for name in by_name if name}
        names = [self._variable_name(str(self._nodes[slot].full_name), by_name, lengths) for slot in slots]
        counts = collections.Counter(names)
        in_model = [self._nodes[index].full_name for index in model if self._nodes[index].full_name in counts]
        if len(counts) < len(names) and in_model != names:
            repeated, count = counts.most_common(1)[0]
            raise ValueError(
                f"A slot must be named after one variable of the model. Received: {count} variables "
                f"named {repeated!r}. Save the model as a SavedModel, which lists its variables."
            )
        return [by_name[name].pop(0) for name in names]

    def _variable_name(self, slot: str, known: Collection[str | None], lengths: Collection[int]) -> str:
        """Return the name of the variable in that of a slot: `dense/kernel` in `Adam/m/dense/kernel`.

        What stands before `m` is the name of the optimizer, which the user may have chosen. `lengths` are those of the
        `known` names: to look up every ending of a long name would take the square of its length.
        """
        for match in re.finditer("(?:^|(?<=/))m/", slot):
            if len(slot) - match.end() in lengths and slot[match.end() :] in known:
                return slot[match.end() :]
        raise ValueError(f"A slot must be named after a variable of the model. Received: {slot[:200]!r}. {_WITH_MODEL}")

    def _list(self, index: int) -> list[int]:
        children = self._nodes[index].children
        self._check_numbers(children)
        missing = [i for i in range(len(children)) if str(i) not in children]
        if missing:
            raise ValueError(f"A list must be numbered from 0. Received: {len(children)} numbers without {missing[0]}.")
        return [children[str(i)] for i in range(len(children))]

    def _check_numbers(self, names: Collection[str]) -> None:
        for name in names:
            if not _NUMBER.fullmatch(name):
                raise ValueError(f"A list must have numbers for names. Received: {name[:50]!r}.")

    def _slots(self, optimizer: Node, lists: Mapping[str, Sequence[LazyArray]], *counts: str) -> Slots:
        iterations = self.scalar(optimizer, *counts)
        if iterations is None or "mu" not in lists or "nu" not in lists:
            step_count = "no step count" if iterations is None else "a step count"
            raise ValueError(
                f"An optimizer must hold its step count, mu and nu. Received: {step_count}, {counted(lists)}."
            )
        rate = self.scalar(optimizer, "_learning_rate", "_current_learning_rate", "learning_rate")
        scales = [node for node in self._nodes if _is_loss_scale(node)]
        if len(scales) > 1:
            raise ValueError(
                f"A checkpoint must hold one loss scale. Received: {len(scales)} of them. "
                "Save the optimizer that you want alone."
            )
        counter, scale = (self.scalar(scales[0], *names) if scales else None for names in _SCALE_NAMES)
        return Slots.from_lists(iterations, rate, lists, counter, scale)
