"""A live Keras model: a training is read out of its variables, and `update_model` writes one into them.

Neither Keras nor TensorFlow is imported: the model is used by its attributes. The order of the variables is certain, as
it is the optimizer's own, which each generation keeps in its own way:

    keras3      `optimizer._trainable_variables`, and a list for each slot, such as `optimizer._momentums`
    tf_keras    `optimizer._index_dict`, from the key of a variable to its index, and the lists of Keras 3
    legacy      `optimizer.weights` in the order in which they were made, and `optimizer.get_slot(variable, "m")`

Source: `keras/src/optimizers/{base_optimizer,adam,loss_scale_optimizer}.py` (Keras 3.15), and of tf_keras 2.21
`tf_keras/src/optimizers/{optimizer,adam}.py`, `optimizers/legacy/optimizer_v2.py` and
`mixed_precision/loss_scale_optimizer.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import optax

from optax_kadam._generations import Generation
from optax_kadam.config._parse import OptimizerConfig, parse
from optax_kadam.config._values import KERAS_PACKAGES, plain
from optax_kadam.keras_files._contents import Contents, Slots, Variable, counted
from optax_kadam.keras_files._lazy_array import LazyArray, aligned_empty
from optax_kadam.keras_files._replacements import replacements
from optax_kadam.keras_files.matching._rename import Rename

_CLASSES = ("Adam", "AdamW", "LossScaleOptimizer", "LossScaleOptimizerV3")
# Where Keras 3 and tf_keras keep the list of a slot, and what the legacy optimizers call the slot.
_SLOTS = {
    "mu": ("_momentums", "m"),
    "nu": ("_velocities", "v"),
    "nu_max": ("_velocity_hats", "vhat"),
    "average": ("_model_variables_moving_average", ""),
    "accumulator": ("_accumulated_gradients", ""),
}
# A legacy optimizer whose rate is a callable writes into its configuration what that returned just now. Written so, the
# rate is asked for when a transformation is built.
_CALLABLE = {"class_name": "__lambda__", "config": {}}


def update_model(
    model: Any,
    params: object,
    opt_state: optax.OptState,
    *,
    optimizer: Any = None,
    rename: Rename | None = None,
    non_trainable: object = None,
    tables: Mapping[str, Any] | None = None,
) -> None:
    """Write a training into a live Keras model, whose `fit` then goes on from it.

    The variables of the model and of its optimizer are assigned: weights, moments, step count, loss scale, and the
    learning rate if it is a number in Keras. Nothing is assigned unless everything fits. What is assigned is a copy.
    `KerasTraining.from_model` is the way here.

    Args:
      model: a built and compiled model of Keras 3, on any backend, or of tf_keras; in a callback too.
      params: the parameters: a tree as in `KerasTraining.restore`, whose leaves are matched in the same way.
      opt_state: the state of the optimizer for `params`: of `kadam`, alone or inside `optax.chain` and the like.
      optimizer: the optimizer of the model to write to, if it is not `model.optimizer`.
      rename: what Keras's paths are called in `params`: see `KerasTraining.restore`.
      non_trainable: a tree of variables that are not trained but change, such as moving statistics; None keeps those of
        the model.
      tables: what `flush` of `deferred_rows` gives, by Keras's path, for the variables that are not among `params`.

    Raises:
      TypeError: if `model` is no Keras model, or a leaf is not an array.
      ValueError: if a variable is missing, left over, or of another shape or dtype; if the optimizer of the model keeps
        other state, or none, or is another than Adam; if a table was not flushed, or took other steps than `params`.

    Example:
      >>> import os
      >>> os.environ["KERAS_BACKEND"] = "jax"
      >>> import jax, keras, optax_kadam as ok
      >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
      >>> model.compile("adam", "mse")
      >>> model.optimizer.build(model.trainable_variables)
      >>> training = ok.KerasTraining.from_model(model)
      >>> params, state = training.restore({path: training.variables[path] for path in training.mu})
      >>> gradients = jax.tree.map(lambda leaf: leaf * 0 + 1, params)
      >>> updates, state = training.transformation().update(gradients, state, params)
      >>> ok.update_model(model, optax.apply_updates(params, updates), state)
      >>> print(model.optimizer.iterations.numpy(), model.layers[0].bias.numpy())
      1 [-0.001 -0.001]
    """
    contents = live_contents(model, optimizer)
    if contents.slots is None:
        raise ValueError(
            "`model` must have an optimizer that was built. Received: an optimizer without slots. "
            "Train it for a step in Keras, or call `optimizer.build(model.trainable_variables)`."
        )
    replaced = list(replacements(contents, params, opt_state, rename, non_trainable, "model", tables))
    for old, values in replaced:
        cast(_LiveArray, old).variable.assign(np.array(values))  # Keras on JAX would share the memory, and donate it.


def live_contents(model: Any, optimizer: Any = None) -> Contents:
    """Return the contents of a live model: its arrays are read from its variables.

    Args:
      model: the model: see `update_model`.
      optimizer: an optimizer of the model; None for `model.optimizer`.

    Raises:
      TypeError: if `model` is no Keras model.
      ValueError: if it is not built or not compiled, or its optimizer is no Adam, or that of another model.
    """
    if not hasattr(model, "weights") or not hasattr(model, "trainable_variables"):
        raise TypeError(
            f"`model` must be a Keras model. Received: model={model!r}. Read a file with `load_keras(path)`."
        )
    optimizer = getattr(model, "optimizer", None) if optimizer is None else optimizer
    if optimizer is None:
        raise ValueError(
            "`model` must be compiled. Received: a model without an optimizer. "
            "Call `model.compile(optimizer, loss)`, or hand one over: `optimizer=`."
        )
    if hasattr(model, "jax_state_sync"):  # Within an epoch, `fit` on JAX holds the arrays; Keras's callbacks call this.
        model.jax_state_sync()
    saved = serialized(optimizer)
    config = parse(saved)
    weights = list(model.weights)
    if not weights:
        raise ValueError(
            "`model` must be built. Received: a model without variables. Call it once, or `model.build(input_shape)`."
        )
    trained = _trained(getattr(optimizer, "inner_optimizer", optimizer), config.generation, weights)
    slots = _slots(optimizer, config, trained) if trained else None
    ids = {id(variable) for variable in trained or model.trainable_variables}
    # The trained variables come in the optimizer's order, at the places in the model that belong to one of them.
    following = iter(trained or [weight for weight in weights if id(weight) in ids])
    variables = [
        _variable(next(following) if id(weight) in ids else weight, config.generation, id(weight) in ids)
        for weight in weights
    ]
    return Contents(config.generation, saved, variables, slots, "live")


@dataclasses.dataclass(frozen=True, slots=True)
class _LiveArray(LazyArray):
    """The array in a variable of Keras's. `read` copies it."""

    variable: Any = None


def _live(variable: Any) -> _LiveArray:
    """Return the array in a variable of Keras 3 or of TensorFlow."""
    shape = tuple(variable.shape)
    dtype = np.dtype(jnp.dtype(getattr(variable.dtype, "name", variable.dtype)))  # TensorFlow's has a name.

    def read() -> np.ndarray:
        array = aligned_empty(shape, dtype)
        array[...] = variable.numpy()
        return array

    return _LiveArray(shape, dtype, read, variable=variable)


def _variable(variable: Any, generation: Generation, is_trainable: bool) -> Variable:
    """Return a variable of the model under the path that it has in a file."""
    return Variable(variable.path if generation == "keras3" else variable.name, _live(variable), is_trainable)


def serialized(optimizer: Any) -> dict[str, Any]:
    """Return the optimizer as Keras serializes it into a file, or raise if it is no Adam of Keras's own."""
    kind = type(optimizer)
    if kind.__module__.split(".")[0] not in KERAS_PACKAGES or kind.__name__ not in _CLASSES:
        raise ValueError(
            "`optimizer` must be Keras's own Adam or AdamW, or a LossScaleOptimizer around one. "
            f"Received: an optimizer of {kind.__module__}.{kind.__qualname__}. "
            "If the model has another one, hand that over: `optimizer=model.d_optimizer`."
        )
    config = plain(optimizer.get_config())
    is_legacy = hasattr(optimizer, "get_slot")
    if hasattr(optimizer, "inner_optimizer"):
        config["inner_optimizer"] = serialized(optimizer.inner_optimizer)
    elif is_legacy and isinstance(config["learning_rate"], float) and not hasattr(optimizer.learning_rate, "assign"):
        config["learning_rate"] = _CALLABLE
    module = "keras.optimizers.legacy" if is_legacy else "keras.optimizers"
    return {"module": module, "class_name": kind.__name__, "config": config, "registered_name": None}


def _trained(optimizer: Any, generation: Generation, weights: Sequence[Any]) -> list[Any]:
    """Return the variables that the optimizer was built for, in its order; none if it was not built.

    Raises:
      ValueError: if one of them is not among `weights`, the variables of the model.
    """
    if generation == "keras3":
        owners = {id(weight): weight for weight in weights}
        names = {id(variable): variable.path for variable in optimizer._trainable_variables}
    elif generation == "tf_keras":
        owners = {optimizer._var_key(weight): weight for weight in weights}
        indices = getattr(optimizer, "_index_dict", {})
        names = {key: key for key in sorted(indices, key=indices.__getitem__)}
    else:  # The list has the step count, and `m`, `v` and `vhat` of each variable.
        owners = {id(_legacy_slot(optimizer, weight, "m")): weight for weight in weights}
        others = {id(_legacy_slot(optimizer, weight, slot)) for weight in weights for slot in ("v", "vhat")}
        others.add(id(optimizer.iterations))
        names = {id(slot): slot.name for slot in optimizer.weights if id(slot) not in others}
    foreign = [name for key, name in names.items() if key not in owners]
    if foreign:
        raise ValueError(
            "`optimizer` must train variables of `model` alone. "
            f"Received: an optimizer with {foreign[0]!r}, which is none of the model's. "
            "Hand over the model that holds all that the optimizer trains."
        )
    return [owners[key] for key in names]


def _legacy_slot(optimizer: Any, variable: Any, name: str) -> Any:
    """Return the slot of a variable in a legacy optimizer, or None if it has none."""
    try:
        return optimizer.get_slot(variable, name)
    except KeyError:
        return None


def _slots(optimizer: Any, config: OptimizerConfig, trained: Sequence[Any]) -> Slots:
    """Return the slots of an optimizer, which was built for the variables `trained`."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    lists = {}
    for slot, (attribute, legacy_name) in _SLOTS.items():
        if config.generation == "legacy":
            kept = [_legacy_slot(inner, variable, legacy_name) for variable in trained]
        else:
            kept = getattr(inner, attribute, ())
        if present := [_live(variable) for variable in kept if variable is not None]:
            lists[slot] = present
    if any(len(lists.get(slot, ())) != len(trained) for slot in ("mu", "nu", *lists)):
        raise ValueError(
            f"Every trained variable must have the same slots. Received: {len(trained)} variables, {counted(lists)}. "
            "Keras keeps none for the scales of float8 layers: they cannot be carried over."
        )
    rate = config.arguments["learning_rate"]
    is_number = isinstance(rate, float | int) and not config.arguments.get("decay")  # What decays follows from it.
    return Slots.from_lists(
        _live(inner._iterations),  # With accumulation, `iterations` counts windows.
        _live(inner.learning_rate) if is_number else None,
        lists,
        *_loss_scale(optimizer, config),
    )


def _loss_scale(optimizer: Any, config: OptimizerConfig) -> tuple[LazyArray | None, LazyArray | None]:
    """Return the step counter and the scale of a LossScaleOptimizer; None without one, or if the scale is fixed."""
    if config.loss_scale is None or config.loss_scale.dynamic_growth_steps is None:
        return None, None
    if config.generation == "keras3":
        return _live(optimizer.step_counter), _live(optimizer.dynamic_scale)
    return _live(optimizer.dynamic_counter), _live(optimizer._loss_scale.current_loss_scale)
