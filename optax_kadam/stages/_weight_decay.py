"""Decoupled weight decay, as Keras rounds it.

Keras decays the variable, `p = p - p * weight_decay * lr`, and then subtracts Adam's step. Adam never looks at the
variable, so a stage after it can do both: with `q` the variable after decay and step, it returns `q - p`. That is exact
while `q` is within a factor of two of `p` (Sterbenz), and then `p + (q - p)` is `q` to the bit.

Source: `BaseOptimizer._apply_weight_decay` in `keras/src/optimizers/base_optimizer.py` (Keras 3.15).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_kadam import _check
from optax_kadam._gradients import Tree
from optax_kadam._precision import arithmetic_dtype

# A tree of bools that fits the parameters, or a prefix of one, or a function from the parameters to it.
Mask = Callable[[optax.Params], optax.Params] | object


def decay_weights(weight_decay: float | jax.Array, mask: Mask | None = None) -> optax.GradientTransformationExtraArgs:
    """Decay the parameters that have a gradient by `weight_decay * learning_rate`, then add the updates.

    `update` needs the parameters, and the `learning_rate` of this step as an extra argument.

    Args:
      weight_decay: share of a parameter that it loses per unit of learning rate, >= 0.
      mask: a tree of bools that fits the parameters, or a prefix of one, or a function from the parameters to it:
        what is False is not decayed. None decays all.

    Raises:
      ValueError: if `weight_decay` is negative, the mask does not fit, or `params` are not handed to `update`.
      TypeError: if `weight_decay` is not a number, or the mask holds something else than bools.
    """
    weight_decay = _check.number("weight_decay", weight_decay, (">=", 0.0))

    if isinstance(mask, (bool, np.bool_, np.ndarray, jax.Array)):
        raise TypeError(
            f"`weight_decay_mask` must be a tree of bools, or a function to one. Received: weight_decay_mask={mask!r}. "
            "With `optax.inject_hyperparams`, which takes a function for a schedule, pass "
            'static_args="weight_decay_mask"; to decay everything or nothing, leave out the mask or `weight_decay`.'
        )

    def mask_of(params: Tree) -> Tree:
        return mask(params) if callable(mask) and not _is_tree_of_bools(mask) else True if mask is None else mask

    def init_fn(params: optax.Params) -> optax.EmptyState:
        _check.mask_fits("weight_decay_mask", mask_of(params), params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: Tree, params: Tree = None, **extra_args: Tree
    ) -> tuple[optax.Updates, optax.EmptyState]:
        learning_rate: jax.Array = extra_args["learning_rate"]
        _check.params_given(params, "weight decay", "decays the parameters themselves")

        def decay(p: jax.Array, u: jax.Array | None) -> jax.Array | None:
            if u is None:
                return None
            dtype = arithmetic_dtype(p, u)
            wide, rate = p.astype(dtype), learning_rate.astype(dtype)
            decayed = wide - wide * jnp.asarray(weight_decay, dtype) * rate
            return ((decayed + u.astype(dtype)) - wide).astype(u.dtype)

        def decay_masked(is_decayed: bool, params: optax.Params, updates: optax.Updates) -> optax.Updates:
            return jax.tree.map(decay, params, updates) if is_decayed else updates

        return jax.tree.map(decay_masked, mask_of(params), params, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_tree_of_bools(mask: object) -> bool:
    """Return whether a mask is a tree, although it can be called: a module of equinox whose leaves are bools."""
    leaves = jax.tree.leaves(mask)
    return bool(leaves) and all(isinstance(leaf, (bool, np.bool_)) for leaf in leaves)
