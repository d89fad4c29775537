"""Decoupled weight decay, as Keras rounds it.

Keras decays the variable, `p = p - p * weight_decay * lr`, and then subtracts Adam's step. Adam never looks at the
variable, so a stage after it can do both: with `q` the variable after decay and step, it returns `q - p`. That is exact
while `q` is within a factor of two of `p` (Sterbenz), and then `p + (q - p)` is `q` to the bit.

Source: `BaseOptimizer._apply_weight_decay` in `keras/src/optimizers/base_optimizer.py` (Keras 3.15).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_kadam import _check
from optax_kadam._precision import arithmetic_dtype


def decay_weights(weight_decay: float | jax.Array, mask: Any = None) -> optax.GradientTransformationExtraArgs:
    """Decay the parameters that have a gradient by `weight_decay * learning_rate`, then add the updates.

    `update` needs the parameters, and the `learning_rate` of this step as an extra argument.

    Args:
      weight_decay: share of a parameter that it loses per unit of learning rate, >= 0.
      mask: a tree of bools, or a function from the parameters to one, as in optax: False is not decayed.

    Raises:
      ValueError: if `weight_decay` is negative, or `params` are not handed to `update`.
      TypeError: if it is not a number.
    """
    weight_decay = _check.number("weight_decay", weight_decay, (">=", 0.0))

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        learning_rate: jax.Array,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        _check.params_given(params, "weight decay", "decays the parameters themselves")

        def decay(p: jax.Array, u: jax.Array | None) -> jax.Array | None:
            if u is None:
                return None
            dtype = arithmetic_dtype(p, u)
            wide = p.astype(dtype)
            decayed = wide - wide * jnp.asarray(weight_decay).astype(dtype) * learning_rate.astype(dtype)
            return ((decayed + u.astype(dtype)) - wide).astype(u.dtype)

        return jax.tree.map(decay, params, updates), state

    decay_all = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)
    return decay_all if mask is None else optax.masked(decay_all, mask)
