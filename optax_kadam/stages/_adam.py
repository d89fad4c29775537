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

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from optax_kadam import _call, _check
from optax_kadam._gradients import Rows, Tree, accept
from optax_kadam._hyperparameter import Hyperparameter, at_step
from optax_kadam._mesh import in_auto_axes, spec_of
from optax_kadam._precision import arithmetic_dtype
from optax_kadam._xla import known_nonnegative, zero_after, zeros_like


class ScaleByKadamState(NamedTuple):
    """The state of `scale_by_kadam`; `mu`, `nu` and `nu_max` have the structure and shapes of the parameters."""

    # shape=(), dtype=int32: t - 1, the updates so far.
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]: optax's name for it.
    mu: optax.Updates  # m, in `mu_dtype`.
    nu: optax.Updates  # v, in `nu_dtype`.
    nu_max: optax.Updates | None  # The running maximum of v, in `nu_dtype`; None without AMSGrad.


class AdamState(NamedTuple):
    """The state of `adam`: that of `scale_by_kadam`, but for the count, which is handed to it."""

    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates | None


class Scalars(NamedTuple):
    """What the equation needs beside the arrays, each a scalar in the dtype of the arithmetic."""

    alpha: jax.Array
    one_minus_beta_1: jax.Array
    one_minus_beta_2: jax.Array
    epsilon: jax.Array


def adam_moments(g: jax.Array, m: jax.Array, v: jax.Array, scalars: Scalars) -> tuple[jax.Array, jax.Array]:
    """Return the next moments of one array, in Keras's order of operations: reordered, they would round differently."""
    return m + (g - m) * scalars.one_minus_beta_1, v + (g * g - v) * scalars.one_minus_beta_2


def adam_maximum(v_max: jax.Array, v: jax.Array) -> jax.Array:
    """Return the next maximum of one array, from its next second moment."""
    return jnp.maximum(v_max, known_nonnegative(v))


def adam_step(m: jax.Array, v_max: jax.Array, scalars: Scalars) -> jax.Array:
    """Return the step of one array, given its next moments, in Keras's order of operations."""
    return (m * scalars.alpha) / (jnp.sqrt(v_max) + scalars.epsilon)


def moments_of_rows(rows: Rows, m: jax.Array, v: jax.Array, scalars: Scalars) -> tuple[jax.Array, jax.Array]:
    """Return the next moments of a table whose gradient is zero except for `rows`, each index of which stands once."""
    if not m.size:  # JAX refuses to look up rows where there is none.
        return m, v
    m_rows, v_rows = (x.at[rows.indices].get(mode="clip") for x in (m, v))
    touched = adam_moments(rows.values, m_rows, v_rows, scalars)
    untouched = adam_moments(zero_after(*touched).astype(m.dtype), m, v, scalars)
    m, v = (old.at[rows.indices].set(new, mode="drop") for old, new in zip(untouched, touched, strict=True))
    return m, v


@_call.named
def scale_by_kadam(
    beta_1: Hyperparameter = 0.9,
    beta_2: Hyperparameter = 0.999,
    epsilon: float | jax.Array = 1e-7,
    amsgrad: bool = False,
    *,
    adaptive_epsilon: bool = False,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients as Keras's Adam does: epsilon-hat, and AMSGrad on the raw second moment.

    `(m * alpha) / (sqrt(v) + epsilon)`, with the symbols of this module's docstring and `lr = 1`. The result points up
    the gradient, as that of `optax.scale_by_adam`: `optax.scale_by_learning_rate` follows. Extra arguments of `update`
    are ignored. `kadam` folds the learning rate into `alpha`, as Keras does, and so rounds otherwise.

    Args:
      beta_1: decay of the first moment, in [0, 1): a number, a scalar array, a schedule (of the updates so far) or a
        callable without arguments. `1 - beta_1` of a number is computed in double precision and rounded once, as in
        Keras; of an array in float32.
      beta_2: decay of the second moment, likewise.
      epsilon: epsilon-hat, >= 0.
      amsgrad: whether to divide by the root of the running maximum of `v`.
      adaptive_epsilon: whether `epsilon * sqrt(1 - beta_2 ** t)` takes the place of `epsilon`, as an argument of
        tf_keras has it: then `epsilon` is that of `optax.adam`.
      mu_dtype: dtype in which `mu` is kept; by default that of the parameter.
      nu_dtype: dtype in which `nu` and `nu_max` are kept, likewise. float16 cannot hold the square of a gradient below
        2.4e-4, so that updates are up to 4 times the learning rate: with float16 parameters, give float32. bfloat16
        has float32's range and needs nothing.

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
    stage = adam(
        beta_1,
        beta_2,
        epsilon,
        amsgrad,
        adaptive_epsilon=adaptive_epsilon,
        float32_betas=False,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )
    kept = ("count", "mu", "nu", *(["nu_max"] if amsgrad else []))

    def init_fn(params: Tree) -> Tree:
        moments: Tree = stage.init(params)
        return ScaleByKadamState(jnp.zeros((), jnp.int32), *moments)

    def update_fn(updates: optax.Updates, state: Tree, params: Tree = None, **extra_args: Tree) -> tuple[Tree, Tree]:
        del extra_args
        _check.state(state, ScaleByKadamState, kept)
        moments: Tree = AdamState(*state[1:])
        updates, moments = stage.update(updates, moments, params, iterations=state.count, learning_rate=None)
        return updates, ScaleByKadamState(jnp.asarray(optax.safe_increment(state.count)), *moments)

    return accept(optax.GradientTransformationExtraArgs(init_fn, update_fn))


def adam(
    beta_1: Hyperparameter,
    beta_2: Hyperparameter,
    epsilon: float | jax.Array,
    amsgrad: bool,
    *,
    adaptive_epsilon: bool,
    float32_betas: bool,
    mu_dtype: DTypeLike | None,
    nu_dtype: DTypeLike | None,
) -> optax.GradientTransformationExtraArgs:
    """Turn gradients into Keras's steps; the stage behind `scale_by_kadam`, with its arguments.

    `update` needs the `iterations` so far and the `learning_rate` of this step as extra arguments. It returns what is
    to be added to the parameters, or, for a `learning_rate` of None, what is to be subtracted at a rate of 1.
    With `float32_betas`, betas are rounded to float32 before all arithmetic, as legacy Keras does: `1 - 0.999` is then
    1.3e-5 smaller.
    """
    below_one = ((">=", 0.0), ("<", 1.0))
    beta_1_at, beta_2_at = at_step("beta_1", beta_1, *below_one), at_step("beta_2", beta_2, *below_one)
    _check.boolean("amsgrad", amsgrad)
    _check.boolean("adaptive_epsilon", adaptive_epsilon)
    epsilon = _check.number("epsilon", epsilon, (">=", 0.0))
    mu_dtype, nu_dtype = _check.floating("mu_dtype", mu_dtype), _check.floating("nu_dtype", nu_dtype)

    def scalars_of(
        beta_1: float | jax.Array, beta_2: float | jax.Array, t: jax.Array, learning_rate: jax.Array | None, dtype: type
    ) -> Scalars:
        if float32_betas:
            beta_1, beta_2 = (jnp.asarray(beta).astype(jnp.float32).astype(dtype) for beta in (beta_1, beta_2))
        one_minus_beta_1, one_minus_beta_2 = 1 - beta_1, 1 - beta_2
        t = t.astype(dtype)
        root = jnp.sqrt(1 - jnp.power(jnp.asarray(beta_2, dtype), t))
        # Left to right, as Keras: (lr * root) / (...).
        scaled_root = root if learning_rate is None else learning_rate.astype(dtype) * root
        alpha = scaled_root / (1 - jnp.power(jnp.asarray(beta_1, dtype), t))
        alone = (jnp.asarray(scalar, dtype) for scalar in (one_minus_beta_1, one_minus_beta_2, epsilon))
        scalars = Scalars(alpha, *alone)
        return scalars._replace(epsilon=scalars.epsilon * root) if adaptive_epsilon else scalars

    def init_fn(params: Tree) -> Tree:
        if nu_dtype is None and any(leaf.dtype == jnp.float16 for leaf in jax.tree.leaves(params)):
            warnings.warn(
                "The second moments of float16 parameters are kept in float16, where squares of gradients below 2.4e-4 "
                'vanish and updates become 4 learning rates long. Pass nu_dtype="float32".',
                stacklevel=2,
            )
        return AdamState(
            mu=jax.tree.map(lambda p: zeros_like(p, mu_dtype), params),
            nu=jax.tree.map(lambda p: zeros_like(p, nu_dtype), params),
            nu_max=jax.tree.map(lambda p: zeros_like(p, nu_dtype), params) if amsgrad else None,
        )

    def update_fn(updates: optax.Updates, state: Tree, params: Tree = None, **extra_args: Tree) -> tuple[Tree, Tree]:
        iterations, learning_rate = extra_args["iterations"], extra_args["learning_rate"]
        _check.same_trees({"gradient": updates, "parameter": params}, state._asdict())
        betas = beta_1_at(iterations), beta_2_at(iterations)
        t = jnp.asarray(optax.safe_increment(iterations))
        scalars: dict[type, Scalars] = {}

        def step(
            g: jax.Array | Rows | None, m: jax.Array, v: jax.Array, v_max: jax.Array | None
        ) -> tuple[jax.Array | None, jax.Array, jax.Array, jax.Array | None]:
            if g is None:
                return None, m, v, v_max
            values = g.values if isinstance(g, Rows) else g
            dtype = arithmetic_dtype(values, m, v)
            if dtype not in scalars:
                scalars[dtype] = scalars_of(*betas, t, learning_rate, dtype)
            wide, moments = values.astype(dtype), (m.astype(dtype), v.astype(dtype))
            if isinstance(g, Rows):
                g = g._replace(values=wide)
                mu, nu = in_auto_axes(moments_of_rows, (spec_of(m), spec_of(v)), g, *moments, scalars[dtype])
            else:
                mu, nu = adam_moments(wide, *moments, scalars[dtype])
            largest = nu if v_max is None else adam_maximum(v_max.astype(dtype), nu)
            change = adam_step(mu, largest, scalars[dtype])
            change = (change if learning_rate is None else -change).astype(values.dtype)
            nu_max = None if v_max is None else largest.astype(v_max.dtype)
            return change, mu.astype(m.dtype), nu.astype(v.dtype), nu_max

        mu, treedef = jax.tree.flatten(state.mu)
        gradients, nu = treedef.flatten_up_to(updates), treedef.flatten_up_to(state.nu)
        nu_max = treedef.flatten_up_to(state.nu_max) if amsgrad else [None] * len(mu)
        steps, *moments = map(list, zip(*map(step, gradients, mu, nu, nu_max), strict=True)) if mu else [[]] * 4
        mu, nu, nu_max = map(treedef.unflatten, moments)
        return treedef.unflatten(steps), AdamState(mu, nu, nu_max if amsgrad else None)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
