"""Keras's configuration of an optimizer, read into a transformation and written from `kadam`'s arguments."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optax
from jax.core import Tracer

from optax_kadam._hyperparameter import Hyperparameter
from optax_kadam._kadam import kadam
from optax_kadam.config import _values
from optax_kadam.config._parse import KEYS
from optax_kadam.config._parse import OptimizerConfig as OptimizerConfig
from optax_kadam.config._parse import parse as parse


def from_config(
    config: Mapping[str, Any], *, learning_rate: Hyperparameter | None = None, weight_decay_mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Build the transformation that behaves like the optimizer that a Keras config describes.

    Taken are `get_config()` and `keras.optimizers.serialize()`, also in the older form of two keys, as they are or from
    JSON, of Adam, AdamW and a LossScaleOptimizer around one, of every generation, with Keras's schedules nested inside.
    The config itself tells the generation: legacy Keras writes `decay`, tf.keras since 2.11 `jit_compile`. A config
    written by hand that has neither, nor "legacy" in its module, is Keras 3's. Missing keys mean the defaults.

    As in Keras, `lr` overrides `learning_rate` in the legacy generation, is ignored in tf_keras's, and is an error in
    Keras 3's. `jit_compile` is left to you. Code that a config holds is never run: a lambda has to be passed again.

    Args:
      config: the config; it is not changed.
      learning_rate: takes the place of the one in `config`: any that `kadam` takes.
      weight_decay_mask: see `kadam`. Keras keeps `exclude_from_weight_decay` in no config.

    Returns:
      An `optax.GradientTransformationExtraArgs`: `kadam`, inside `dynamic_loss_scale` for a LossScaleOptimizer. A fixed
      scale (tf_keras and legacy, `dynamic=False`) divides the gradients, and skips no step.

    Raises:
      ValueError: naming the key, if the config asks for what cannot be honoured: another class, one registered by
        someone else, an unknown key, serialized code, or a value that `kadam` refuses.
      TypeError: if `config` is not a mapping, or a value is of the wrong kind.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_kadam.config._config import from_config
      >>> tx = from_config({"class_name": "Adam", "config": {"learning_rate": 0.1, "decay": 1.0}})
      >>> params = jnp.array(1.0)
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params, optax.tree.get(state, "learning_rate"))
      0.81714 0.033333

    References:
      `Optimizer.from_config` in `keras/src/optimizers/base_optimizer.py` (Keras 3.15).
    """
    return parse(config).transformation(learning_rate=learning_rate, weight_decay_mask=weight_decay_mask)


def to_config(**kadam_arguments: Any) -> dict[str, Any]:
    """Write `kadam`'s arguments as Keras 3's `keras.optimizers.serialize()` would: for JSON, files and `deserialize`.

    One of our schedules becomes Keras's. The learning rate is rounded to float32, as Keras keeps it. `generation` may
    be `"tf_keras"` where Keras 3 computes the same bits: without an average, and within Keras 3's single clip.

    Args:
      **kadam_arguments: keyword arguments of `kadam`; those left out have its defaults.

    Returns:
      `{"module": "keras.optimizers", "class_name": "Adam", "config": {...}, "registered_name": None}`, with all 15 keys
      of `Adam.get_config()`. With a `weight_decay` it is AdamW in all but the name.

    Raises:
      ValueError: if `kadam` refuses an argument, or Keras 3 has no word for it.
      TypeError: if `kadam` does not know an argument, or it is of the wrong kind.

    Example:
      >>> from optax_kadam import schedules
      >>> config = to_config(learning_rate=schedules.ExponentialDecay(0.1, 10, 0.5), clipnorm=1.0)["config"]
      >>> config["clipnorm"], config["learning_rate"]["class_name"], to_config(learning_rate=0.01)["config"]["beta_2"]
      (1.0, 'ExponentialDecay', 0.999)

    References:
      `Adam.get_config` in `keras/src/optimizers/adam.py` (Keras 3.15).
    """
    kadam(**kadam_arguments)  # Whatever is wrong with an argument is said here.
    defaults = {name: parameter.default for name, parameter in inspect.signature(kadam).parameters.items()}
    given = defaults | kadam_arguments
    for name, remedy in _beyond_keras3(given):
        raise ValueError(
            f"`{name}` must be what a Keras 3 config has a word for. Received: {name}={given[name]!r}. {remedy}"
        )
    kadam_arguments["generation"] = "keras3"
    kadam(**kadam_arguments)  # Keras 3 refuses the clips that tf_keras combines, and its adaptive epsilon.
    config = {key: _values.plain(given[key]) for key in KEYS["keras3"]}
    config |= {key: float(config[key]) for key in ("beta_1", "beta_2", "epsilon")}
    config["name"] = given["name"] or "adam"
    schedule = _values.write_schedule(given["learning_rate"])
    config["learning_rate"] = float(np.float32(config["learning_rate"])) if schedule is None else schedule
    return {"module": "keras.optimizers", "class_name": "Adam", "config": config, "registered_name": None}


def _beyond_keras3(arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the arguments of `kadam` that Keras 3 has no word for, each with its remedy."""
    for name, value in arguments.items():
        if isinstance(value, Tracer):
            yield name, "Call `to_config` outside `jax.jit`."
        elif callable(value) and name in ("beta_1", "beta_2"):
            yield name, "Keras 3 knows numbers alone here."
    for name in ("mu_dtype", "nu_dtype"):
        if arguments[name] is not None:
            yield name, "Leave it out: Keras keeps the moments in the dtype of the variable."
    if arguments["axis_name"] is not None:
        yield "axis_name", "Leave it out: it says where the training runs, not how."
    if arguments["weight_decay_mask"] is not None:
        yield "weight_decay_mask", "Leave it out, and call `exclude_from_weight_decay` on the optimizer that you get."
    rate, clip = arguments["learning_rate"], arguments["global_clipnorm"]
    if callable(rate) and _values.write_schedule(rate) is None:
        yield "learning_rate", "Use one of `optax_kadam.schedules`, or leave it out and hand it to Keras yourself."
    if arguments["generation"] == "legacy":
        yield "generation", "Leave it out for Keras 3's rounding, and write `decay` as a `schedules.InverseTimeDecay`."
    if arguments["generation"] == "tf_keras" and arguments["use_ema"]:
        yield "use_ema", "tf_keras's average starts elsewhere than Keras 3's: leave `generation` out for the latter."
    if arguments["generation"] == "tf_keras" and clip and np.float32(1.0) / np.float32(clip) != np.float32(1.0 / clip):
        yield "global_clipnorm", "tf_keras rounds its reciprocal otherwise: leave `generation` out for Keras 3's."
