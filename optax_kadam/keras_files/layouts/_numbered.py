"""The format of Keras 3, which tf_keras writes too: the variables of layers and of the optimizer are only numbered.

The arrays of the optimizer are told apart by their order alone. For the trainable variables i = 0, ..., n - 1:

    keras3      iteration, [learning_rate], [average_i ...], [accumulator_i ...], m_0, v_0, m_1, v_1, ..., [v_max_i ...]
    tf_keras    iteration, [average_i ...], m_0, v_0, m_1, v_1, ..., [v_max_i ...]

The learning rate is there if it was a number. Keras 3 before 3.10 wrote averages and accumulators by turns.
Legacy optimizers save no state in this format.

Source: `BaseOptimizer.build` in `keras/src/optimizers/base_optimizer.py` and `Adam.build` in `adam.py` (Keras 3.15);
`tf_keras/src/optimizers/optimizer.py` (2.21).
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from optax_kadam._generations import Generation
from optax_kadam.config._parse import OptimizerConfig, parse
from optax_kadam.keras_files._contents import NEEDS_CONFIG, Contents, Hints, Slots, Variable, check_name
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._named_arrays import Group
from optax_kadam.keras_files._told import Told
from optax_kadam.keras_files.layouts._claims import check_claimed
from optax_kadam.keras_files.layouts._layers import OPTIMIZER, Model, numbered, read_layers
from optax_kadam.keras_files.layouts._order import in_given_order, is_certain, listed, order_of

# With the policy `mixed_float16`, Keras puts this around the optimizer, and saves the config of the optimizer alone.
_SCALE = {"name": "loss_scale_optimizer", "initial_scale": 2.0**15, "dynamic_growth_steps": 2000}


def numbered_contents(
    root: Group, model: Mapping[str, object] | None, keras_version: str | None, hints: Hints
) -> Contents:
    """Return the contents of a file of this format.

    Args:
      root: the root group of the HDF5 file.
      model: the serialized model, or None if it was not saved.
      keras_version: the version of the Keras that wrote the file, or None if it is not known.
      hints: what the caller knows, and the serialized optimizer of the file.
    """
    config = hints.config
    parsed = None if config is None else parse(config)
    generation = parsed.generation if parsed else _generation(root, keras_version)
    optimizer = _optimizer(root, hints.optimizer)
    inner = optimizer and (_inside_a_scale(optimizer) or optimizer)
    arrays = numbered(inner.at("vars")) if inner else []
    name = str((inner.at("vars") or inner).attrs.get("name", "")) if inner else ""
    if parsed is None:
        check_name(name)
    if not optimizer:
        _check_no_other_optimizer(root, generation)
    layers = read_layers(root, model, generation)
    outer = numbered(optimizer.at("vars")) if optimizer else []  # Of a loss scale around, those of `arrays` otherwise.
    variables = layers.variables()
    claimed = [*(variable.array for variable in variables), *layers.repeated, *arrays, *outer]
    check_claimed(root, claimed, ("name",), lambda path: _is_other_optimizer(path, hints.optimizer))
    splits = list(_splits(arrays, generation, parsed, keras_version))
    if not splits and not any(array.shape for array in arrays):  # The optimizer is missing or was not built.
        trained = layers.candidates()
        order = "listed" if is_certain(layers, trained) else None
        return Contents(generation, config, [*trained, *_others(variables, trained)], None, order)
    if not splits:
        shapes = ", ".join(str(array.shape) for array in arrays[:8])
        raise ValueError(
            f"An optimizer's list must be that of an Adam. Received: {len(arrays)} arrays of shapes {shapes}, ..., "
            f"for {generation}{_switched_on(parsed)}. Only Adam and AdamW can be carried over."
        )
    if layers.has_lora:
        raise ValueError(
            "A file must hold the variables that the optimizer trains. Received: a layer with `lora_rank`, which "
            "trains others than this format holds. Save a checkpoint or a whole-model `.h5`."
        )
    slots, trained = _fitting(splits, layers, parsed, hints.trainable)
    slots = _with_scale(slots, optimizer, generation)
    if optimizer and _inside_a_scale(optimizer) and parsed and not parsed.loss_scale:
        inside = {**_SCALE, "inner_optimizer": config}
        config = {"module": "keras.optimizers", "class_name": "LossScaleOptimizer", "config": inside}
    order = "given" if hints.trainable is not None else "listed" if is_certain(layers, trained) else "shapes"
    return Contents(generation, config, [*trained, *_others(variables, trained)], slots, order)


def _inside_a_scale(optimizer: Group) -> Group | None:
    """Return the optimizer inside a LossScaleOptimizer; TensorFlow 2.12 and 2.13 call it `_optimizer`."""
    return optimizer.at("inner_optimizer") or optimizer.at("_optimizer")


def _others(variables: Sequence[Variable], trained: Sequence[Variable]) -> list[Variable]:
    arrays = {id(variable.array) for variable in trained}
    left = [variable for variable in variables if id(variable.array) not in arrays]
    return [dataclasses.replace(variable, is_trainable=False) for variable in left]


def _is_other_optimizer(path: str, chosen: str) -> bool:
    """Return whether a group is another optimizer than the chosen one: of a GAN, or of a model inside this one."""
    return bool(OPTIMIZER.fullmatch(path.rpartition("/")[2])) and path.split("/")[1] != chosen


def _optimizer(root: Group, name: str) -> Group | None:
    """Return the group of the optimizer of this name, or None if the file holds none."""
    names = [key for key in root.groups if OPTIMIZER.fullmatch(key)]
    if names and name not in names:
        raise ValueError(
            f"The file must hold the optimizer that is asked for. Received: optimizer={name!r}, where the file has "
            f"{' and '.join(map(repr, names))}. Say which: `load_keras(path, optimizer={names[0]!r})`."
        )
    return root.at(name)


def _check_no_other_optimizer(root: Group, generation: Generation) -> None:
    """Raise if a group has the arrays of an optimizer under another name, as after a flipped bit in `optimizer`."""
    for name, group in root.groups.items():
        lists = [numbered(part.at("vars")) for part in (group, _inside_a_scale(group)) if part]
        if any(slots for arrays in lists for slots in _splits(arrays, generation, None, None)):
            raise ValueError(
                f"The arrays of an optimizer must stand in a group `optimizer`. Received: them in {name!r}. "
                "The file is damaged, or no Keras wrote it."
            )


def _fitting(
    splits: Sequence[Slots], layers: Model, config: OptimizerConfig | None, trainable: Sequence[Told] | None
) -> tuple[Slots, list[Variable]]:
    """Return the slots that the optimizer's arrays are, and their variables in the same order."""
    fitting: list[tuple[Slots, list[Variable] | ValueError]] = []
    for slots in splits:
        try:
            shapes = [array.shape for array in slots.mu]
            trained = order_of(layers, shapes) if trainable is None else in_given_order(layers, slots, trainable)
        except ValueError as error:
            trained = error
        if trained is not None:
            fitting.append((slots, trained))
    if trainable is not None:
        fitting = [pair for pair in fitting if isinstance(pair[1], list)] or fitting[:1]
    # Without a configuration, it is taken for granted that all variables are trained, if they can be.
    whole = [pair for pair in fitting if len(pair[0].mu) == len(layers.candidates())]
    fitting = whole or fitting
    if not fitting:
        saved = [variable.array.shape for variable in layers.candidates()]
        raise ValueError(
            "The optimizer's moments must have the shapes of the model's trainable variables, in some order. Received: "
            f"{listed([array.shape for array in splits[0].mu])} in the optimizer, {listed(saved)} in the model. "
            "The file may hold another model's optimizer, or layers that train what it does not hold (LoRA, int8): "
            "save a checkpoint or a whole-model `.h5`."
        )
    slots, trained = fitting[0]
    if config is not None and len(fitting) > 1:
        raise ValueError(
            "It must be known whether averages and accumulators stand by turns, as Keras wrote them before 3.10. "
            "Received: a file that does not say which Keras wrote it. Save the model as `.keras`."
        )
    if config is None and (slots.average is not None or len(fitting) > 1):
        raise ValueError(
            "The kinds of an optimizer's arrays must follow from its configuration or from their number. Received: "
            f"slots for {len(slots.mu)} variables, of several possible kinds, and no configuration. {NEEDS_CONFIG}"
        )
    if isinstance(trained, ValueError):
        raise trained
    return slots, trained


def _generation(root: Group, keras_version: str | None) -> Generation:
    """Return the generation of a file without a configuration.

    Keras 3 names its groups (3.3 did not yet), or counts in int32 (on JAX and torch), or lists a learning rate.
    """
    if keras_version is not None:
        return "keras3" if keras_version.split(".")[0] == "3" else "tf_keras"
    optimizer = root.at("optimizer/vars")
    if (root.at("vars") or root).attrs.get("name") or (optimizer or root).attrs.get("name"):
        return "keras3"
    first, second = (optimizer and optimizer.arrays.get(name) for name in ("0", "1"))
    has_rate = second and not second.shape and second.dtype.kind == "f"
    return "keras3" if has_rate or (first and first.dtype.itemsize == 4) else "tf_keras"


def _splits(
    arrays: Sequence[LazyArray], generation: Generation, config: OptimizerConfig | None, keras_version: str | None
) -> Iterator[Slots]:
    """Yield the ways to split the optimizer's arrays into slots that their shapes allow, the likeliest first."""
    either = (False, True)
    if config is None:
        rates, averages, accumulators, maxima = either, either, either, either
    else:
        arguments = config.arguments
        rate = arguments.get("learning_rate", 0.001)
        rates = (not callable(rate) and not isinstance(rate, Mapping),)
        averages = (bool(arguments.get("use_ema")),)
        accumulators = (bool(arguments.get("gradient_accumulation_steps")),)
        maxima = (bool(arguments.get("amsgrad")),)
    if generation != "keras3":
        rates, accumulators = (False,), (False,)
    for rate, average, accumulator, maximum in itertools.product(rates, averages, accumulators, maxima):
        by_turns = _by_turns(keras_version) if average and accumulator else (False,)
        found = [_split(arrays, rate, average, accumulator, maximum, alternates) for alternates in by_turns]
        possible = [slots for slots in found if slots is not None]
        yield from possible[:1] if possible and len(possible[0].mu) == 1 else possible


def _switched_on(config: OptimizerConfig | None) -> str:
    """Return, for a message, the switched-on arguments that add arrays to an optimizer's list."""
    switches = ("amsgrad", "use_ema", "gradient_accumulation_steps")
    switched_on = [name for name in switches if config is not None and config.arguments.get(name)]
    return f" with {', '.join(switched_on)}" if switched_on else ""


def _by_turns(keras_version: str | None) -> Sequence[bool]:
    """Return whether averages and accumulators were written by turns, as by Keras 3 before 3.10: yes, no or either."""
    version = re.match(r"(\d+)\.(\d+)", keras_version or "")
    return (False, True) if version is None else ((int(version[1]), int(version[2])) < (3, 10),)


def _split(
    listed: Sequence[LazyArray], rate: bool, average: bool, accumulator: bool, maximum: bool, alternates: bool
) -> Slots | None:
    """Return the arrays as slots, or None if their number or their shapes do not allow it."""
    scalars, arrays = listed[: 1 + rate], listed[1 + rate :]
    kinds = 2 + average + accumulator + maximum
    count, rest = divmod(len(arrays), kinds)
    if rest or not count or any(array.shape for array in scalars) or scalars[0].dtype.kind not in "iu":
        return None
    if rate and scalars[1].dtype.kind != "f":
        return None
    before, after = arrays[: count * (average + accumulator)], arrays[count * (average + accumulator) :]
    lists: dict[str, Sequence[LazyArray]] = {"mu": after[: 2 * count : 2], "nu": after[1 : 2 * count : 2]}
    if maximum:
        lists["nu_max"] = after[2 * count :]
    names = [name for name, is_there in (("average", average), ("accumulator", accumulator)) if is_there]
    for index, name in enumerate(names):
        lists[name] = before[index::2] if alternates else before[index * count : (index + 1) * count]
    shapes = [array.shape for array in lists["mu"]]
    if any([array.shape for array in slots] != shapes for slots in lists.values()):
        return None
    return Slots.from_lists(scalars[0], scalars[1] if rate else None, lists)


def _with_scale(slots: Slots, optimizer: Group | None, generation: Generation) -> Slots:
    """Return the slots with the state of a LossScaleOptimizer around, which Keras 3 saves and tf_keras does not."""
    outer = numbered(optimizer.at("vars")) if optimizer and _inside_a_scale(optimizer) else []
    if generation != "keras3" or not outer:
        return slots
    # These are iteration, [learning_rate], step_counter, dynamic_scale; those of the inner optimizer may follow.
    counter = next((i for i, array in enumerate(outer) if i and array.dtype.kind in "iu" and not array.shape), None)
    if counter is None or counter + 1 == len(outer) or outer[counter + 1].dtype.kind != "f":
        raise ValueError(
            f"A LossScaleOptimizer must hold its step counter and its scale. Received: {len(outer)} other arrays. "
            "The file is damaged, or of another Keras than 3."
        )
    return dataclasses.replace(slots, step_counter=outer[counter], dynamic_scale=outer[counter + 1])
