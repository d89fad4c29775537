"""Keras's Adam: the equation on one array, then lifted over a tree.

With the gradient `g`, the step `t` (from 1) and the learning rate `lr`:

    m     = m + (g - m) * (1 - beta_1)
    v     = v + (g * g - v) * (1 - beta_2)
    v_max = max(v_max, v)                                               (AMSGrad; otherwise v_max = v)
    alpha = lr * sqrt(1 - beta_2 ** t) / (1 - beta_1 ** t)
    step  = (m * alpha) / (sqrt(v_max) + epsilon)

This is the form without bias-corrected moments of Kingma & Ba 2015, the last paragraph of section 2, whose epsilon the
paper calls epsilon-hat: it stands beside the *raw* sqrt(v), so that Keras's 1e-7 is `1e-7 / sqrt(1 - beta_2 ** t)` in
the form of `optax.adam`, 3.2e-6 at the first step. AMSGrad (Reddi et al. 2018, algorithm 2) takes the maximum of the
raw v too; `optax.amsgrad` takes that of the bias-corrected one.

Source: `keras/src/optimizers/adam.py` (Keras 3.15); one deviation, the precision of `arithmetic_dtype`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_kadam import _check
from optax_kadam._gradients import RowUpdates, is_rows, summed_rows
from optax_kadam._hyperparameter import Hyperparameter, at_step
from optax_kadam._mesh import in_auto_axes, spec_of, zeros_like
from optax_kadam._precision import arithmetic_dtype


class ScaleByKadamState(NamedTuple):
    """The state of `scale_by_kadam`; `mu`, `nu` and `nu_max` have the structure and shapes of the parameters."""

    # shape=(), dtype=int32: t - 1, the updates so far; None where they are counted outside.
    count: jax.Array | None  # pyright: ignore[reportIncompatibleMethodOverride]: optax's name for it.
    mu: optax.Updates  # m, in `mu_dtype`.
    nu: optax.Updates  # v, in `nu_dtype`.
    nu_max: optax.Updates | None  # The running maximum of v, in `nu_dtype`; None without AMSGrad.


class _Scalars(NamedTuple):
    """What the equation needs beside the arrays, each a scalar in the dtype of the arithmetic."""

    alpha: jax.Array
    one_minus_beta_1: jax.Array
    one_minus_beta_2: jax.Array
    epsilon: jax.Array


class _Leaf(NamedTuple):
    """What one step makes of one leaf; the step is None where there was no gradient."""

    step: Any
    mu: jax.Array
    nu: jax.Array
    nu_max: Any


def adam_moments(g: jax.Array, m: jax.Array, v: jax.Array, scalars: _Scalars) -> tuple[jax.Array, jax.Array]:
    """The next moments of one array, in Keras's order of operations: reordered, they would round differently."""
    return m + (g - m) * scalars.one_minus_beta_1, v + (g * g - v) * scalars.one_minus_beta_2


def moments_of_rows(
    indices: jax.Array, rows: jax.Array, m: jax.Array, v: jax.Array, scalars: _Scalars
) -> tuple[jax.Array, jax.Array]:
    """Those of a table whose gradient is `rows` at `indices`, each once, and zero elsewhere."""
    touched = adam_moments(rows, m.at[indices].get(mode="clip"), v.at[indices].get(mode="clip"), scalars)
    # 0, as half of 0 or of 1 rounded down; but who computes it has read the rows, so the tables are written in place.
    lost = jnp.any(jnp.isnan(touched[0]) | jnp.isnan(touched[1]), axis=0, keepdims=True)
    idle = adam_moments(jnp.floor(lost.astype(m.dtype) / 2), m, v, scalars)
    return jax.tree.map(lambda all_rows, some: all_rows.at[indices].set(some, mode="drop"), idle, touched)


def adam_step(m: jax.Array, v: jax.Array, v_max: jax.Array | None, scalars: _Scalars) -> _Leaf:
    """The step of one array from its next moments, likewise."""
    # v is never negative; but of a maximum without a constant, XLA's CPU compiler makes a slower kernel.
    v_max = v if v_max is None else jnp.maximum(v_max, jnp.maximum(v, 0.0))
    return _Leaf((m * scalars.alpha) / (jnp.sqrt(v_max) + scalars.epsilon), m, v, v_max)


def scale_by_kadam(
    beta_1: Hyperparameter = 0.9,
    beta_2: Hyperparameter = 0.999,
    epsilon: float | jax.Array = 1e-7,
    amsgrad: bool = False,
    *,
    adaptive_epsilon: bool = False,
    float32_betas: bool = False,
    own_count: bool = True,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients as Keras's Adam does: epsilon-hat, and AMSGrad on the raw second moment.

    `(m * alpha) / (sqrt(v) + epsilon)`, with the symbols of this module's docstring. Alone, `lr` is 1 and the result
    points up the gradient, as that of `optax.scale_by_adam`: `optax.scale_by_learning_rate` follows. Handed a
    `learning_rate` as an extra argument of `update`, as `kadam` does, it folds it into `alpha`, where Keras does, and
    returns what is to be added to the parameters.

    Args:
      beta_1: decay of the first moment, in [0, 1): a number, a scalar array, a schedule (of the updates so far) or a
        callable without arguments. `1 - beta_1` of a number is computed in double precision and rounded once, as in
        Keras; of an array in float32.
      beta_2: decay of the second moment, likewise.
      epsilon: epsilon-hat, >= 0.
      amsgrad: whether to divide by the root of the running maximum of `v`.
      adaptive_epsilon: whether `epsilon * sqrt(1 - beta_2 ** t)` takes the place of `epsilon`, as an argument of
        tf_keras has it: then `epsilon` is that of `optax.adam`.
      float32_betas: whether betas are rounded to float32 before all arithmetic, as legacy Keras does: `1 - 0.999` is
        then 1.3e-5 smaller.
      own_count: whether the state counts the updates. False where each is handed `iterations`, the updates so far, as
        an extra argument, as inside `kadam`.
      mu_dtype: dtype in which `mu` is kept; by default that of the parameter.
      nu_dtype: dtype in which `nu` and `nu_max` are kept, likewise. float16 cannot hold the square of a gradient below
        2.4e-4: with float16 parameters, give float32.

    Returns:
      A transformation with the state `ScaleByKadamState`. Gradients that are None leave their moments as they are.

    Raises:
      ValueError: if a beta is not in [0, 1), `epsilon` is negative, or a moment's dtype is not a floating one.
      TypeError: if an argument is not a number, or a parameter does not hold floating-point numbers.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(scale_by_kadam(epsilon=1.0), optax.scale_by_learning_rate(0.1))
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, state = tx.update(jnp.array([0.5, 0.001]), tx.init(params))
      >>> print(updates)  # Far from -0.1: epsilon-hat is large beside the raw sqrt(v).
      [-1.556e-03 -3.162e-06]

    References:
      Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, section 2; Reddi et al. 2018, https://arxiv.org/abs/1904.09237.
    """
    below_one = ((">=", 0.0), ("<", 1.0))
    beta_1_at, beta_2_at = at_step("beta_1", beta_1, *below_one), at_step("beta_2", beta_2, *below_one)
    _check.boolean("amsgrad", amsgrad)
    _check.boolean("adaptive_epsilon", adaptive_epsilon)
    epsilon = _check.number("epsilon", epsilon, (">=", 0.0))
    mu_dtype, nu_dtype = _check.floating("mu_dtype", mu_dtype), _check.floating("nu_dtype", nu_dtype)

    def scalars_of(
        beta_1: float | jax.Array, beta_2: float | jax.Array, count: Any, learning_rate: jax.Array | None, dtype: Any
    ) -> _Scalars:
        if float32_betas:
            beta_1, beta_2 = (jnp.asarray(beta).astype(jnp.float32).astype(dtype) for beta in (beta_1, beta_2))
        one_minus_beta_1, one_minus_beta_2 = 1 - beta_1, 1 - beta_2
        t = jnp.asarray(optax.safe_increment(count)).astype(dtype)
        root = jnp.sqrt(1 - jnp.power(jnp.asarray(beta_2, dtype), t))
        # Left to right, as Keras: (lr * root) / (...).
        scaled_root = root if learning_rate is None else learning_rate.astype(dtype) * root
        alpha = scaled_root / (1 - jnp.power(jnp.asarray(beta_1, dtype), t))
        alone = (jnp.asarray(scalar, dtype) for scalar in (one_minus_beta_1, one_minus_beta_2, epsilon))
        scalars = _Scalars(alpha, *alone)
        return scalars._replace(epsilon=scalars.epsilon * root) if adaptive_epsilon else scalars

    def init_fn(params: optax.Params) -> Any:
        _check.floating_leaves("params", params)
        return ScaleByKadamState(
            count=jnp.zeros((), jnp.int32) if own_count else None,
            mu=jax.tree.map(lambda p: zeros_like(p, mu_dtype), params),
            nu=jax.tree.map(lambda p: zeros_like(p, nu_dtype), params),
            nu_max=jax.tree.map(lambda p: zeros_like(p, nu_dtype), params) if amsgrad else None,
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: Any = None,
        *,
        iterations: Any = None,
        learning_rate: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        for name, moment in (("mu", state.mu), ("nu", state.nu), ("nu_max", state.nu_max)):
            if moment is not None:
                _check.same_tree(updates, moment, name)
        if params is not None:
            _check.same_tree(params, state.mu, "mu", "parameter")
        count = state.count if own_count else iterations
        betas = beta_1_at(count), beta_2_at(count)
        scalars: dict[Any, _Scalars] = {}

        def update_leaf(m: jax.Array, v: jax.Array, g: Any, v_max: jax.Array | None = None) -> _Leaf:
            if g is None:
                return _Leaf(None, m, v, v_max)
            if is_rows(g):
                g = summed_rows(g, m.shape)
            values = g.values if isinstance(g, RowUpdates) else g
            dtype = arithmetic_dtype(values, m, v)
            if dtype not in scalars:
                scalars[dtype] = scalars_of(*betas, count, learning_rate, dtype)
            wide = values.astype(dtype), m.astype(dtype), v.astype(dtype)
            if values is g:
                mu, nu = adam_moments(*wide, scalars[dtype])
            else:
                mu, nu = in_auto_axes(moments_of_rows, (spec_of(m),) * 2, g.indices, *wide, scalars[dtype])
            leaf = adam_step(mu, nu, None if v_max is None else v_max.astype(dtype), scalars[dtype])
            g = values
            step = leaf.step if learning_rate is None else -leaf.step
            new_max = None if v_max is None else leaf.nu_max.astype(v_max.dtype)
            return _Leaf(step.astype(g.dtype), leaf.mu.astype(m.dtype), leaf.nu.astype(v.dtype), new_max)

        maximum = (state.nu_max,) if amsgrad else ()
        leaves = jax.tree.map(update_leaf, state.mu, state.nu, updates, *maximum)
        steps, mu, nu, nu_max = (
            jax.tree.map(lambda leaf, i=i: leaf[i], leaves, is_leaf=lambda node: isinstance(node, _Leaf))
            for i in range(4)
        )
        new_count = jnp.asarray(optax.safe_increment(count)) if own_count else None
        new_state = ScaleByKadamState(new_count, mu, nu, nu_max if amsgrad else None)
        return steps, new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
