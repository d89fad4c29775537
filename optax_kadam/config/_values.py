"""The values of a Keras config are read and written: numbers that numpy or JAX wraps, and nested schedules."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_kadam import schedules

KERAS_PACKAGES = ("keras", "tf_keras", "tensorflow")
_WRAPPED = ("__numpy__", "__tensor__")


def is_kerass_own(serialized: Mapping[str, Any]) -> bool:
    """Return whether a serialized object is of a class of Keras's, and not of one of the same name elsewhere.

    Keras writes None for the module of a class that it does not export. The older form has no module at all.
    """
    name, module = str(serialized.get("class_name")).lower(), serialized.get("module", "keras")
    registered = str(serialized.get("registered_name") or name).lower()
    is_kerass = isinstance(module, str) and module.split(".")[0] in KERAS_PACKAGES
    return is_kerass and registered in (name, f"custom>{name}")


def plain(value: Any) -> Any:
    """Return `value` in Python's own types, without what Keras, numpy or JAX wraps numbers and lists in.

    A number keeps the value that it has in its dtype: `np.float32(0.9)` becomes 0.8999999761581421, as in Keras.
    """
    if isinstance(value, Mapping):
        if value.get("class_name") in _WRAPPED:
            wrapped = value["config"]
            return np.asarray(wrapped["value"], jnp.dtype(wrapped["dtype"])).tolist()
        if value.get("class_name") == "__tuple__":
            return plain(value["items"])
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, jax.Array) and not isinstance(value, Tracer):
        return np.asarray(value).tolist()
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value


def read_learning_rate(value: Any) -> Any:
    """Return a learning rate of a config as `kadam` takes it, or as it is if only Keras can read it."""
    if isinstance(value, Mapping) and value.get("class_name") in schedules.__all__ and is_kerass_own(value):
        return _build_schedule(value["class_name"], plain(value.get("config", {})))
    kind: Any = type(value)
    if kind.__name__ in schedules.__all__ and kind.__module__.split(".")[0] in KERAS_PACKAGES:  # It is Keras's object.
        return _build_schedule(kind.__name__, plain(kind.get_config(value)))
    if isinstance(value, Mapping) and value.get("class_name") not in _WRAPPED:
        return value
    return plain(value)


def _build_schedule(class_name: str, config: dict[str, Any]) -> Any:
    kind = getattr(schedules, class_name)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in config:
        if key not in fields:
            raise ValueError(
                f"A {class_name} config must hold no key but {', '.join(fields)}. Received: {key}={config[key]!r}. "
                "Pass `learning_rate=` to take the place of the schedule."
            )
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in config:
            raise ValueError(
                f"A {class_name} config must hold `{name}`. Received: {config!r}. "
                "Pass `learning_rate=` to take the place of the schedule."
            )
    return kind.from_config(config)


def write_schedule(schedule: Any) -> dict[str, Any] | None:
    """Return a schedule of this package as Keras 3 serializes it, or None for anything else."""
    class_name = type(schedule).__name__
    if class_name not in schedules.__all__ or getattr(schedules, class_name) is not type(schedule):
        return None
    return {
        "module": "keras.optimizers.schedules",
        "class_name": class_name,
        "config": plain(schedule.get_config()),
        "registered_name": None,
    }
