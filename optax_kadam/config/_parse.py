"""A Keras config is read: its generation, `kadam`'s arguments, and the loss scale around them.

Reading and building are two steps. A file whose learning rate was a lambda can be read; only building the
transformation then asks for another learning rate. Code that a config holds is never run.

Source: `get_config`, `from_config` and `serialize` of `keras/src/optimizers/{base_optimizer,loss_scale_optimizer}.py`
(Keras 3.15), `tf_keras/src/optimizers/{__init__,optimizer}.py`, `tf_keras/src/optimizers/legacy/optimizer_v2.py` and
`tf_keras/src/mixed_precision/loss_scale_optimizer.py` (2.21).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from optax_kadam import _check
from optax_kadam._generations import Generation
from optax_kadam._hyperparameter import Hyperparameter
from optax_kadam._kadam import kadam
from optax_kadam._precision import arithmetic_dtype
from optax_kadam.config import _values
from optax_kadam.stages._loss_scale import dynamic_loss_scale
from optax_kadam.stages._weight_decay import Mask

# In the order of Keras 3's `get_config`.
_BASE_KEYS = ("name", "learning_rate", "weight_decay", "clipnorm", "global_clipnorm", "clipvalue")
_EMA_KEYS = ("use_ema", "ema_momentum", "ema_overwrite_frequency")
_ADAM_KEYS = ("beta_1", "beta_2", "epsilon", "amsgrad")
_KERAS3_ONLY = ("loss_scale_factor", "gradient_accumulation_steps")
_NO_ARGUMENTS = ("lr", "jit_compile", "is_legacy_optimizer")  # They are never handed to `kadam`.
KEYS: dict[Generation, tuple[str, ...]] = {
    "keras3": (*_BASE_KEYS, *_EMA_KEYS, *_KERAS3_ONLY, *_ADAM_KEYS),
    "tf_keras": (*_BASE_KEYS, *_EMA_KEYS, *_ADAM_KEYS, "adaptive_epsilon", *_NO_ARGUMENTS),
    "legacy": (*(key for key in _BASE_KEYS if key != "weight_decay"), *_ADAM_KEYS, "decay", "lr"),
}
# The default names of those of Keras's other optimizers whose arguments, or whose arrays in a file, look like Adam's.
OTHERS = re.compile(r"(adadelta|adamax|ftrl|lamb|lion|nadam)(_\d+)?", re.IGNORECASE)
_WRAPPERS = ("lossscaleoptimizer", "lossscaleoptimizerv1", "lossscaleoptimizerv3")
# Keras 3 wrote these keys before 3.12 without any effect. Since then, it refuses other values than these.
_WRAPPER_DEFAULTS = {key: None for key in ("weight_decay", "clipnorm", "global_clipnorm", "clipvalue", *_KERAS3_ONLY)}
_WRAPPER_DEFAULTS |= {"use_ema": False, "ema_momentum": 0.99, "ema_overwrite_frequency": None}


@dataclasses.dataclass(frozen=True)
class LossScale:
    """The arguments of a `LossScaleOptimizer` beside its inner optimizer. Without growth steps, the scale is fixed."""

    initial_scale: float
    dynamic_growth_steps: int | None


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """A Keras config in terms of this package.

    Args:
      generation: `"keras3"`, `"tf_keras"` or `"legacy"`.
      arguments: the keyword arguments of `kadam` that the config sets, without `generation`. `learning_rate` is a
        number, a schedule of this package or a callable; or a mapping from the config, if only Keras can read it.
      loss_scale: the arguments of the `LossScaleOptimizer` around the optimizer; None without one.
    """

    generation: Generation
    arguments: dict[str, Any]
    loss_scale: LossScale | None = None

    def transformation(
        self, *, learning_rate: Hyperparameter | None = None, weight_decay_mask: Mask | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """Build the transformation; see `from_config`."""
        arguments = dict(self.arguments)
        if learning_rate is not None:
            arguments["learning_rate"] = learning_rate
        if isinstance(rate := arguments.get("learning_rate"), Mapping):
            raise ValueError(
                "`learning_rate` must be a number or one of Keras's schedules in a config: code that it holds is never "
                f"run. Received: learning_rate={{'class_name': {rate.get('class_name')!r}, ...}}. "
                "Pass `learning_rate=` to take its place."
            )
        inner = kadam(**arguments, generation=self.generation, weight_decay_mask=weight_decay_mask)
        if self.loss_scale is None:
            return inner
        scale, growth_steps = self.loss_scale.initial_scale, self.loss_scale.dynamic_growth_steps
        if growth_steps is None:
            return optax.with_extra_args_support(optax.chain(_fixed_scale(scale), inner))
        return dynamic_loss_scale(inner, scale, growth_steps, generation=self.generation)


def parse(config: Mapping[str, object]) -> OptimizerConfig:
    """Return what a Keras config says. `from_config` describes the forms that it may have, and the errors."""
    if not isinstance(config, Mapping):
        raise TypeError(
            "`config` must be a mapping, as `get_config()` or `keras.optimizers.serialize(optimizer)` returns it. "
            f"Received: config={config!r}."
        )
    if "class_name" not in config and "inner_optimizer" not in config:
        if OTHERS.fullmatch(str(config.get("name"))):
            raise ValueError(
                "`config` must be that of an Adam. Received: "
                f"name={config['name']!r}, the default name of another optimizer, and no class name. "
                "If it is an Adam, hand over `keras.optimizers.serialize(optimizer)`."
            )
        return _parse_adam(config, _generation("", config))
    if "class_name" not in config:
        return _parse_wrapper(config)
    prefix, class_name = _class(config)
    inside = config.get("config")
    if not isinstance(inside, Mapping):
        raise ValueError(
            f"`config` of a serialized optimizer must be a mapping. Received: config={inside!r}. "
            "Hand over what `keras.optimizers.serialize(optimizer)` returns."
        )
    if class_name in _WRAPPERS:
        return _parse_wrapper(inside)
    generation = _generation(str(config.get("module", "")), inside, "tf_keras" if prefix else "keras3")
    if (prefix and generation != "tf_keras") or (class_name == "adamw" and generation == "legacy"):
        raise _refused(config)  # Of Keras's own, only tf_keras has `Custom>`, and legacy no AdamW.
    if class_name == "adamw":
        inside = {"weight_decay": 0.004, **inside}
        if inside["weight_decay"] is None:
            raise ValueError(
                "`weight_decay` must be a number for AdamW. Received: weight_decay=None. Use Adam without it."
            )
    return _parse_adam(inside, generation)


def _class(config: Mapping[str, object]) -> tuple[str, str]:
    """Return the prefix and the name of a class of Keras's own, in lower case, as Keras compares them."""
    prefix, _, name = str(config["class_name"]).lower().rpartition(">")
    known = name in ("adam", "adamw", *_WRAPPERS) and prefix in ("", "custom") and not (prefix and "module" in config)
    if not (known and _values.is_kerass_own(config)):
        raise _refused(config)
    return prefix, name


def _refused(config: Mapping[str, object]) -> ValueError:
    received = ", ".join(f"{k}={config[k]!r}" for k in ("class_name", "module", "registered_name") if k in config)
    return ValueError(
        "`class_name` must be Keras's own Adam or AdamW, or a LossScaleOptimizer around one. "
        f"Received: {received}. If a class of yours computes what Adam does, pass its `get_config()` alone."
    )


def _generation(module: str, config: Mapping[str, object], otherwise: Generation = "keras3") -> Generation:
    """Return the generation, by the module and by the keys that only one generation writes."""
    parts = module.split(".")
    if "legacy" in parts or config.get("is_legacy_optimizer"):
        return "legacy"
    if not {"is_legacy_optimizer", "jit_compile", "adaptive_epsilon"}.isdisjoint(config) or "experimental" in parts:
        return "tf_keras"
    if not set(_KERAS3_ONLY).isdisjoint(config):
        return "keras3"
    if not {"decay", "lr"}.isdisjoint(config):
        return "legacy"
    return "tf_keras" if parts[0] == "tf_keras" else otherwise


def _parse_adam(config: Mapping[str, object], generation: Generation) -> OptimizerConfig:
    for key, value in config.items():
        if key not in KEYS[generation] and not (key == "is_legacy_optimizer" and value):
            raise ValueError(
                f"`{key}` must be left out of a config with generation={generation!r}, whose Adam does not know it. "
                f"Received: {key}={value!r}. Its Adam knows {', '.join(KEYS[generation])}."
            )
    known = {key: value for key, value in config.items() if key not in _NO_ARGUMENTS}
    if "lr" in config and generation == "legacy":
        known["learning_rate"] = config["lr"]
    read = {"learning_rate": _values.read_learning_rate}
    return OptimizerConfig(generation, {key: read.get(key, _values.plain)(value) for key, value in known.items()})


def _parse_wrapper(config: Mapping[str, object]) -> OptimizerConfig:
    if "loss_scale" in config:  # TensorFlow 2.1 to 2.3 wrote it.
        config = {key: value for key, value in config.items() if key not in ("optimizer", "loss_scale")} | {
            "inner_optimizer": config.get("optimizer"),
            **_first_loss_scale(config["loss_scale"]),
        }
    inner = config.get("inner_optimizer")
    if not isinstance(inner, Mapping):
        raise ValueError(
            f"`inner_optimizer` must be a serialized optimizer. Received: inner_optimizer={inner!r}. "
            "Hand over what `keras.optimizers.serialize(optimizer)` returns."
        )
    parsed = parse(inner)
    if parsed.loss_scale is not None:
        raise ValueError("`inner_optimizer` must be Adam or AdamW. Received: another LossScaleOptimizer. Unwrap that.")
    is_keras3 = parsed.generation == "keras3"
    for key, value in config.items():
        if key in ("name", "inner_optimizer", "dynamic", "initial_scale", "dynamic_growth_steps"):
            continue
        if not is_keras3 or key not in _WRAPPER_DEFAULTS or value != _WRAPPER_DEFAULTS[key]:
            raise ValueError(
                f"`{key}` must be left out of a LossScaleOptimizer's config. Received: {key}={value!r}. "
                "Set it in `inner_optimizer`."
            )
    # Keras 3 switches the inner optimizer's own factor off, so as not to unscale twice.
    arguments = {key: value for key, value in parsed.arguments.items() if key != "loss_scale_factor"}
    return OptimizerConfig(parsed.generation, arguments, _loss_scale(config, is_keras3))


def _loss_scale(config: Mapping[str, object], is_keras3: bool) -> LossScale:
    scale, growth_steps = (_values.plain(config.get(key)) for key in ("initial_scale", "dynamic_growth_steps"))
    if config.get("dynamic", True):
        return LossScale(2.0**15 if scale is None else scale, 2000 if growth_steps is None else growth_steps)
    if is_keras3:
        raise ValueError(
            "`dynamic` must be True in Keras 3. Received: dynamic=False. Set `loss_scale_factor` in `inner_optimizer`."
        )
    if growth_steps is not None:
        raise ValueError(
            "`dynamic_growth_steps` must be None where `dynamic` is False. "
            f"Received: dynamic_growth_steps={growth_steps!r}. Leave it out."
        )
    return LossScale(scale, None)


def _first_loss_scale(loss_scale: object) -> dict[str, object]:
    """Return the `loss_scale` of TensorFlow 2.1 to 2.3 under today's names."""
    class_name, config = None, {}
    if isinstance(loss_scale, Mapping) and isinstance(loss_scale.get("config"), Mapping):
        class_name, config = loss_scale.get("class_name"), loss_scale["config"]
    if class_name == "FixedLossScale":
        return {"dynamic": False, "initial_scale": config.get("loss_scale_value")}
    if class_name != "DynamicLossScale" or config.get("multiplier", 2) != 2:
        raise ValueError(
            "`loss_scale` must be a FixedLossScale, or a DynamicLossScale with a multiplier of 2. "
            f"Received: loss_scale={loss_scale!r}. Pass the config of the inner optimizer alone."
        )
    return {
        "dynamic": True,
        "initial_scale": config.get("initial_loss_scale"),
        "dynamic_growth_steps": config.get("increment_period"),
    }


def _fixed_scale(scale: float) -> optax.GradientTransformation:
    """Multiply the gradients by the reciprocal of `scale`, which is how tf_keras divides by it."""
    reciprocal = float(np.float32(1.0) / np.float32(_check.number("initial_scale", scale, (">", 0.0))))
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda g: g.astype(arithmetic_dtype(g)) * reciprocal, updates)
    )
