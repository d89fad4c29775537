"""`from_config` builds a transformation from a Keras config; `to_config` writes one from `kadam`'s arguments."""

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
from optax_kadam.stages._weight_decay import Mask


def from_config(
    config: Mapping[str, object], *, learning_rate: Hyperparameter | None = None, weight_decay_mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Build the transformation that behaves like the optimizer that a Keras config describes.

    The config is what `get_config()` or `keras.optimizers.serialize()` returns for Adam, AdamW or a LossScaleOptimizer
    around one, in any generation of Keras and with any of Keras's schedules inside. It may have gone through JSON, and
    may have the older form of two keys. Its keys tell the generation: legacy Keras writes `decay`, tf.keras since 2.11
    writes `jit_compile`. A config by hand that has neither, nor "legacy" in its module, is taken for one of Keras 3. A
    missing key means the default.

    As in Keras, `lr` overrides `learning_rate` in the legacy generation, is ignored in tf_keras's, and is an error in
    Keras 3's. `jit_compile` is ignored. Code that a config holds is never run: pass a learning rate that is a lambda
    as `learning_rate`.

    Args:
      config: the config; it is not changed.
      learning_rate: any learning rate that `kadam` takes; it takes the place of the one in `config`.
      weight_decay_mask: see `kadam`. Keras does not write `exclude_from_weight_decay` into a config.

    Returns:
      An `optax.GradientTransformationExtraArgs`: `kadam` or, for a LossScaleOptimizer, `dynamic_loss_scale` around it.
      If the scale is fixed (`dynamic=False` in tf_keras and legacy), the gradients are divided by it, and no
      step is skipped.

    Raises:
      ValueError: if the config cannot be honoured; the message names the key. The class may be another than Adam, or
        registered by someone else; a key may be unknown; a value may be code, or one that `kadam` refuses.
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
    """Write `kadam`'s arguments as Keras 3's `keras.optimizers.serialize()` does: for JSON, files and `deserialize`.

    A schedule of `optax_kadam.schedules` is written as Keras's. The learning rate is rounded to float32, as Keras keeps
    it. `generation` may be `"tf_keras"` if Keras 3 computes the same bits: without an average, and with at most one
    clip.

    Args:
      **kadam_arguments: the keyword arguments of `kadam`; one that is left out has its default.

    Returns:
      `{"module": "keras.optimizers", "class_name": "Adam", "config": {...}, "registered_name": None}`, with all 15 keys
      of `Adam.get_config()`. With a `weight_decay`, Keras's Adam does what its AdamW does.

    Raises:
      ValueError: if `kadam` refuses an argument, or a Keras 3 config has no word for it.
      TypeError: if `kadam` does not know an argument, or if it is of the wrong kind.

    Example:
      >>> from optax_kadam import schedules
      >>> config = to_config(learning_rate=schedules.ExponentialDecay(0.1, 10, 0.5), clipnorm=1.0)["config"]
      >>> config["clipnorm"], config["learning_rate"]["class_name"], to_config(learning_rate=0.01)["config"]["beta_2"]
      (1.0, 'ExponentialDecay', 0.999)

    References:
      `Adam.get_config` in `keras/src/optimizers/adam.py` (Keras 3.15).
    """
    kadam(**kadam_arguments)  # This raises if an argument is wrong.
    defaults = {name: parameter.default for name, parameter in inspect.signature(kadam).parameters.items()}
    given = defaults | kadam_arguments
    for name, remedy in _beyond_keras3(given):
        raise ValueError(
            f"`{name}` must be what a Keras 3 config has a word for. Received: {name}={given[name]!r}. {remedy}"
        )
    kadam_arguments["generation"] = "keras3"
    kadam(**kadam_arguments)  # This raises for what Keras 3 does not know: two clips, adaptive epsilon.
    config = {key: _values.plain(given[key]) for key in KEYS["keras3"]}
    config |= {key: float(config[key]) for key in ("beta_1", "beta_2", "epsilon")}
    config["name"] = given["name"] or "adam"
    schedule = _values.write_schedule(given["learning_rate"])
    config["learning_rate"] = float(np.float32(config["learning_rate"])) if schedule is None else schedule
    return {"module": "keras.optimizers", "class_name": "Adam", "config": config, "registered_name": None}


def _beyond_keras3(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names of the arguments that a Keras 3 config has no word for, each with a remedy."""
    for name, value in arguments.items():
        if isinstance(value, Tracer):
            yield name, "Call `to_config` outside `jax.jit`."
        elif callable(value) and name in ("beta_1", "beta_2"):
            yield name, "Keras 3 knows numbers alone here: pass one."
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
        yield "use_ema", "tf_keras's average starts elsewhere than Keras 3's: leave `generation` out for Keras 3's."
    if arguments["generation"] == "tf_keras" and clip and np.float32(1.0) / np.float32(clip) != np.float32(1.0 / clip):
        yield "global_clipnorm", "tf_keras rounds its reciprocal otherwise: leave `generation` out for Keras 3's."
