"""A hyperparameter that may move: a number, an array, a schedule, or a callable that is asked at every step."""

import inspect
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from optax_kadam import _check

Array = TypeVar("Array", jax.Array, np.ndarray)
Schedule = Callable[..., jax.typing.ArrayLike]  # From the step, counted from 0, or from nothing, to a number.
Hyperparameter = float | jax.Array | Schedule


def takes_no_argument(function: Schedule) -> bool:
    """Return whether `function` can be called without arguments.

    Keras calls such a function at every step; any other one is a schedule of the step. So `lambda rate=rate: rate` is
    no schedule, and what has no readable signature, or takes `*args`, is one.
    """
    try:
        signature = inspect.signature(function)
        signature.bind()
    except (TypeError, ValueError):
        return False
    return all(p.kind is not inspect.Parameter.VAR_POSITIONAL for p in signature.parameters.values())


def at_step(name: str, value: Hyperparameter, *bounds: tuple[str, float]) -> Callable[[jax.Array], float | jax.Array]:
    """Return the function from a step to the value of the hyperparameter `name`; `bounds` are those of a number.

    A number stays a Python float, so that arithmetic on it is in double precision and rounds once where it meets an
    array, as in Keras. What a schedule or a callable gives is a float32; a callable is asked on the host, under `jit`
    at every run.
    """
    if not callable(value):
        constant = _check.number(name, value, *bounds, remedy="A schedule or a callable without arguments will do too.")
        return lambda step: constant
    if takes_no_argument(value):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return lambda step: io_callback(lambda: _scalar(name, np.asarray(value(), np.float32)), shape)
    return lambda step: _scalar(name, jnp.asarray(value(step))).astype(jnp.float32)


def _scalar(name: str, value: Array) -> Array:
    """Return what a schedule or a callable gave, if it is one number."""
    if value.shape or not jnp.issubdtype(value.dtype, jnp.number):
        raise ValueError(
            f"`{name}` must give one number at a step, as a schedule or a callable. "
            f"Received: {value.dtype.name}{list(value.shape)}. Return a scalar."
        )
    return value
