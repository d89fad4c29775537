"""A hyperparameter that may move: a number, an array, a schedule, or a callable that is asked at every step."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from optax_kadam import _check

# From the step, counted from 0, or from nothing, to a number.
Schedule = Callable[[jax.Array], jax.typing.ArrayLike] | Callable[[], jax.typing.ArrayLike]
Hyperparameter = float | jax.Array | Schedule


def takes_no_argument(function: Callable[..., jax.typing.ArrayLike]) -> bool:
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


def at_step(
    name: str, value: float | jax.Array | Callable[..., jax.typing.ArrayLike], *bounds: tuple[str, float]
) -> Callable[[jax.Array], float | jax.Array]:
    """Return the function from a step to the value of the hyperparameter `name`; `bounds` are those of a number.

    A number stays a Python float, so that arithmetic on it is in double precision and rounds once where it meets an
    array, as in Keras. What a schedule or a callable gives is a float32; a callable is asked on the host, under `jit`
    at every run.
    """
    if not callable(value):
        constant = _check.number(name, value, *bounds, remedy="A schedule or a callable without arguments will do too.")
        return lambda step: constant
    if takes_no_argument(value):
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        return lambda step: io_callback(lambda: np.asarray(_number(name, value()), np.float32), scalar)
    return lambda step: jnp.asarray(_number(name, value(step))).astype(jnp.float32)


def _number(name: str, value: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """Return what a schedule or a callable gave, if it is one number."""
    dtype = value.dtype if isinstance(value, jax.Array) else np.asarray(value).dtype
    if np.shape(value) or not jnp.issubdtype(dtype, jnp.number):
        raise ValueError(
            f"`{name}` must be a scalar at every step, where it is a schedule or a callable. "
            f"Received: {dtype.name}{list(np.shape(value))}. Return one number."
        )
    return value
