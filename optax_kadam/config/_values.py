"""The values of a Keras config are read and written: numbers that numpy or JAX wraps, and nested schedules."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_kadam import schedules

KERAS_PACKAGES = ("keras", "tf_keras", "tensorflow")
_WRAPPED = ("__numpy__", "__tensor__")


def is_kerass_own(serialized: Mapping[str, object]) -> bool:
    """Return whether a serialized object is of a class of Keras's, and not of one of the same name elsewhere.

    Keras writes None for the module of a class that it does not export. The older form has no module at all.
    """
    name, module = str(serialized.get("class_name")).lower(), serialized.get("module", "keras")
    registered = str(serialized.get("registered_name") or name).lower()
    is_kerass = isinstance(module, str) and module.split(".")[0] in KERAS_PACKAGES
    return is_kerass and registered in (name, f"custom>{name}")


def plain(value: object) -> Any:
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


class _Schedule(Protocol):
    """A schedule of Keras's or of this package."""

    def get_config(self) -> Mapping[str, object]: ...


def _is_keras_schedule(value: object) -> TypeGuard[_Schedule]:
    """Return whether `value` is an object of one of Keras's own schedules."""
    kind = type(value)
    return kind.__name__ in schedules.__all__ and kind.__module__.split(".")[0] in KERAS_PACKAGES


def _is_own_schedule(value: object) -> TypeGuard[_Schedule]:
    """Return whether `value` is a schedule of this package."""
    kind = type(value)
    return kind.__name__ in schedules.__all__ and getattr(schedules, kind.__name__) is kind


def read_learning_rate(value: object) -> object:
    """Return a learning rate of a config as `kadam` takes it, or as it is if only Keras can read it."""
    if isinstance(value, Mapping) and value.get("class_name") in schedules.__all__ and is_kerass_own(value):
        return _build_schedule(value["class_name"], plain(value.get("config", {})))
    if _is_keras_schedule(value):
        return _build_schedule(type(value).__name__, plain(value.get_config()))
    if isinstance(value, Mapping) and value.get("class_name") not in _WRAPPED:
        return value
    return plain(value)


def _build_schedule(class_name: str, config: dict[str, object]) -> object:
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


def write_schedule(schedule: object) -> dict[str, object] | None:
    """Return a schedule of this package as Keras 3 serializes it, or None for anything else."""
    if not _is_own_schedule(schedule):
        return None
    return {
        "module": "keras.optimizers.schedules",
        "class_name": type(schedule).__name__,
        "config": plain(schedule.get_config()),
        "registered_name": None,
    }
