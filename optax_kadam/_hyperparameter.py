"""A hyperparameter that may move: a number, an array, a schedule, or a callable that is asked at every step."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from optax_kadam import _check

Hyperparameter = float | jax.Array | Callable[..., jax.typing.ArrayLike]


def takes_no_argument(function: Callable[..., Any]) -> bool:
    """Tell a callable to be asked, as Keras has it, from a schedule, which takes the step.

    What can be called without an argument is asked, so that `lambda rate=rate: rate` is not mistaken for a schedule;
    what has no readable signature, or takes `*args`, is a schedule.
    """
    try:
        signature = inspect.signature(function)
        signature.bind()
    except (TypeError, ValueError):
        return False
    return all(p.kind is not inspect.Parameter.VAR_POSITIONAL for p in signature.parameters.values())


def ask(function: Callable[[], jax.typing.ArrayLike]) -> jax.Array:
    """Ask the host for the value of a callable without arguments, as a float32; under `jit` at every run."""
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    return io_callback(lambda: np.asarray(function(), np.float32).reshape(()), shape)


def at_step(name: str, value: Hyperparameter, *bounds: tuple[str, float]) -> Callable[[jax.Array], float | jax.Array]:
    """Return the function from a step to the value of the hyperparameter `name`; `bounds` are those of a number.

    A number stays a Python float, so that arithmetic on it is in double precision and rounds once where it meets an
    array, as in Keras. What a schedule or a callable gives is a float32.
    """
    if not callable(value):
        constant = _check.number(name, value, *bounds, remedy="A schedule or a callable without arguments will do too.")
        return lambda step: constant
    if takes_no_argument(value):
        return lambda step: ask(value)
    return lambda step: jnp.asarray(value(step)).astype(jnp.float32)
