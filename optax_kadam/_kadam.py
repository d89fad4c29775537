"""`kadam` and `kadamw`: Keras's Adam and AdamW, assembled from the parts in Keras's order."""

import jax
import optax
from jax.typing import DTypeLike

from optax_kadam import _call, _check, _generations
from optax_kadam._generations import Generation
from optax_kadam._gradients import Tree, accept, sum_duplicates
from optax_kadam._hyperparameter import Hyperparameter
from optax_kadam.stages._accumulate import accumulate_gradients
from optax_kadam.stages._adam import adam
from optax_kadam.stages._clip import limit_global_norm, limit_norms, limit_values
from optax_kadam.stages._ema import average_params
from optax_kadam.stages._learning_rate import with_learning_rate
from optax_kadam.stages._loss_scale import unscale
from optax_kadam.stages._weight_decay import Mask, decay_weights

Number = float | jax.Array


@_call.named
def kadam(
    learning_rate: Hyperparameter = 0.001,
    beta_1: Hyperparameter = 0.9,
    beta_2: Hyperparameter = 0.999,
    epsilon: Number = 1e-7,
    amsgrad: bool = False,
    weight_decay: Number | None = None,
    clipnorm: Number | None = None,
    clipvalue: Number | None = None,
    global_clipnorm: Number | None = None,
    use_ema: bool = False,
    ema_momentum: Number = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: Number | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = "adam",
    *,
    generation: Generation = "keras3",
    weight_decay_mask: Mask | None = None,
    decay: float | None = None,
    adaptive_epsilon: bool = False,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keras's Adam, to the bit, as an optax transformation.

    With `t` from 1 and the raw moments `m` and `v` (see `scale_by_kadam`):

        p = p - (m * alpha) / (sqrt(v) + epsilon),   alpha = learning_rate * sqrt(1 - beta_2**t) / (1 - beta_1**t)

    Around it, in this order: divide by the loss scale, accumulate, clip, decay the weights, step, average, overwrite,
    count. The names, the positional order and the defaults are Keras 3's. Numbers may be scalar arrays too, traced ones
    included, as `optax.inject_hyperparams` hands them over; an array is not checked against a range.

    Read the state with `optax.tree.get(state, name)`: `iterations`, `learning_rate` (what the last step used), `mu`,
    `nu`, `nu_max`, `average`, `accumulator`, and `gradient_norm`, which a clip by norm found at the last step: of what
    it clips, so after the loss scale, the accumulation and, in the legacy generation, `clipvalue`.
    `optax.tree.set(state, learning_rate=3e-4)` changes the learning rate of an optimizer that was given a number, from
    the next step on and without a recompile. The count of the steps never overflows: after 2**31 - 1 it stays there or,
    with accumulation or overwriting, goes on through its last window.

    Args:
      learning_rate: a number; a schedule from the step, counted from 0 in calls of `update`, to a number; or a callable
        without arguments, asked at every step, through a host callback under `jit`. A negative one ascends.
      beta_1: decay of the first moment, in [0, 1): a number, schedule or callable likewise.
      beta_2: decay of the second moment, likewise.
      epsilon: what is added to the raw `sqrt(v)`, >= 0: the paper's epsilon-hat, not the epsilon of `optax.adam`.
      amsgrad: whether to divide by the root of the running maximum of `v`.
      weight_decay: decoupled weight decay per unit of learning rate, >= 0; None for none.
      clipnorm: the largest norm of each gradient, on its own. For this and the two other clips: None is off, and 0 is
        off too, except for the legacy generation, where it clips to zero.
      clipvalue: the largest absolute value of an element.
      global_clipnorm: the largest norm of all gradients together.
      use_ema: whether to keep an average of the parameters; `averaged_params` reads it.
      ema_momentum: share of the average kept at a step, in [0, 1].
      ema_overwrite_frequency: steps after which the parameters are set to their average, >= 1; None for never.
      loss_scale_factor: what the loss was multiplied by, > 0; the gradients are divided by it.
      gradient_accumulation_steps: calls of `update` to a step, >= 2; None or 0 for no accumulation.
      name: the `jax.named_scope` of the update, as profiles show it.
      generation: `"keras3"`, `"tf_keras"` (TF 2.11 to 2.15 and the tf_keras package) or `"legacy"` (`OptimizerV2`, TF
        2.0 to 2.10). They differ in the rounding of `1 - beta` (legacy), in which clips go together (keras3: one;
        tf_keras: `clipnorm`, else `global_clipnorm`, else `clipvalue`; legacy: `clipvalue`, then a norm), in where the
        average starts (tf_keras: at the initial parameters), in epsilon (legacy: 0 means 1e-7), and in the arguments
        that they know at all.
      weight_decay_mask: a tree of bools, or a function from the parameters to one: False is not decayed. Keras's
        `exclude_from_weight_decay(var_names=[...])` is `except_names(...)`.
      decay: legacy only: the learning rate is divided by `1 + decay * iterations`, >= 0.
      adaptive_epsilon: tf_keras only: `epsilon * sqrt(1 - beta_2**t)` in the place of `epsilon`.
      mu_dtype: dtype in which the first moment is kept; None for the parameter's.
      nu_dtype: dtype in which the second moment and its maximum are kept, likewise.
      axis_name: inside `jax.shard_map`, the mesh axes over which a clip by norm sums: see `clip_by_norm`.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose updates are to be added to the parameters.

    Raises:
      ValueError: if a number is out of its range, clips are set that the generation does not combine, or an argument
        that it does not know.
      TypeError: if an argument is of the wrong kind.

    Example:
      The one of tf.keras's own documentation:

      >>> import jax, jax.numpy as jnp, optax
      >>> var = jnp.array(10.0)
      >>> loss = lambda var: (var ** 2) / 2.0
      >>> opt = kadam(learning_rate=0.1)
      >>> updates, state = opt.update(jax.grad(loss)(var), opt.init(var), var)
      >>> print(optax.apply_updates(var, updates))
      9.9

    References:
      Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, end of section 2; `keras/src/optimizers/adam.py` (Keras 3.15).
    """
    rules = _generations.rules_of(generation)
    _check.boolean("use_ema", use_ema)
    if not (name is None or isinstance(name, str)):
        raise TypeError(f"`name` must be a string or None. Received: name={name!r}.")
    accumulates = _is_on(gradient_accumulation_steps)
    _generations.check_known(
        generation,
        weight_decay=weight_decay,
        use_ema=use_ema or None,
        loss_scale_factor=loss_scale_factor,
        gradient_accumulation_steps=gradient_accumulation_steps if accumulates else None,
        decay=decay,
        adaptive_epsilon=adaptive_epsilon or None,
    )
    if accumulates:
        remedy = "Use None for no accumulation."
        micro_steps = _check.integer("gradient_accumulation_steps", gradient_accumulation_steps, 2, remedy)
    else:
        micro_steps = 1
    if rules.zero_epsilon_is_default and not _is_on(epsilon):
        epsilon = 1e-7
    # Keras 3 sees the rows of a table summed up; the two older clip them as they come.
    summed = None if rules.rows_are_summed_first else optax.stateless(sum_duplicates)

    step = _chain(
        *_clips(generation, clipnorm, clipvalue, global_clipnorm, axis_name),
        summed,
        adam(
            beta_1,
            beta_2,
            epsilon,
            amsgrad,
            adaptive_epsilon=adaptive_epsilon,
            float32_betas=rules.float32_betas,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        # Keras decays before the step. Adam does not look at the variable, so the stage after it does both.
        None if weight_decay is None else decay_weights(weight_decay, weight_decay_mask),
    )
    update = _chain(
        None if loss_scale_factor is None else unscale(loss_scale_factor),
        accumulate_gradients(micro_steps, step) if accumulates else step,
        average_params(
            ema_momentum,
            ema_overwrite_frequency,
            micro_steps=micro_steps,
            start_from_params=rules.average_starts_from_params,
        )
        if use_ema
        else None,
    )
    period = micro_steps * (ema_overwrite_frequency or 1 if use_ema else 1)
    kept = {"accumulator": accumulates, "mu": True, "nu": True, "nu_max": amsgrad, "average": use_ema}
    stages = with_learning_rate(
        learning_rate,
        update,
        decay,
        period=period if period <= 2**31 else micro_steps,  # A longer one has no second overwrite that is counted.
        kept=tuple(name for name, is_kept in kept.items() if is_kept),
        # `optax.inject_hyperparams` hands over all numbers as arrays.
        is_injected=all(isinstance(number, jax.Array) for number in (learning_rate, beta_1, beta_2, epsilon)),
    )
    return accept(stages, distinct=rules.rows_are_summed_first, scope=name or "adam")


@_call.named
def kadamw(
    learning_rate: Hyperparameter = 0.001,
    weight_decay: Number = 0.004,
    beta_1: Hyperparameter = 0.9,
    beta_2: Hyperparameter = 0.999,
    epsilon: Number = 1e-7,
    amsgrad: bool = False,
    clipnorm: Number | None = None,
    clipvalue: Number | None = None,
    global_clipnorm: Number | None = None,
    use_ema: bool = False,
    ema_momentum: Number = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: Number | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = "adamw",
    *,
    generation: Generation = "keras3",
    weight_decay_mask: Mask | None = None,
    decay: float | None = None,
    adaptive_epsilon: bool = False,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keras's AdamW: `kadam` with a weight decay that must be given, in AdamW's positional order.

        p = p - p * weight_decay * learning_rate;   then the step of `kadam`

    The second position is the weight decay, where `optax.adamw` has `b1`: `kadamw(1e-3, 0.9, 0.95)` decays by 0.9 with
    a `beta_1` of 0.95, and nothing can tell that optax's order was meant. Name all but the learning rate.

    `weight_decay` is the share of a parameter that it loses per unit of learning rate, >= 0. Keras's default is 0.004,
    that of `optax.adamw` 0.0001. All other arguments are those of `kadam`, and what it returns; `decay` and the legacy
    generation, which knows no weight decay, are refused.

    Raises:
      ValueError: if `weight_decay` is None, and as `kadam` does.
      TypeError: as `kadam` does.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = kadamw(0.1, weight_decay=0.5)
      >>> params = jnp.array([10.0, 10.0])
      >>> updates, state = tx.update(jnp.array([1.0, 0.0]), tx.init(params), params)
      >>> optax.apply_updates(params, updates).tolist()
      [9.4, 9.5]

    References:
      Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101; `keras/src/optimizers/adamw.py` (Keras 3.15).
    """
    arguments: dict[str, Tree] = dict(locals(), name=name or "adamw")
    if weight_decay is None:
        raise ValueError(
            "`weight_decay` must be a number. Received: weight_decay=None. Use `kadam` for Adam without it."
        )
    return kadam(**arguments)


def _is_on(value: Number | None) -> bool:
    """Return whether Keras takes `value` for more than off: not None, not 0. An array, maybe traced, is on."""
    return isinstance(value, jax.Array) or bool(value)


def _clips(
    generation: Generation,
    clipnorm: Number | None,
    clipvalue: Number | None,
    global_clipnorm: Number | None,
    axis_name: str | tuple[str, ...] | None,
) -> list[optax.GradientTransformationExtraArgs]:
    """Return the clips that this generation applies, in its order."""
    rules = _generations.rules_of(generation)
    clips = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
    _generations.check_clips(generation, clips)
    _check.axis_names(axis_name)
    stages = {
        "clipvalue": limit_values,
        "clipnorm": lambda clip: limit_norms(clip, axis_name),
        "global_clipnorm": lambda clip: limit_global_norm(clip, axis_name, float32_reciprocal=rules.float32_reciprocal),
    }
    if rules.clips_combine:
        return [stages[name](clips[name]) for name in stages if clips[name] is not None]
    first = next((name for name in ("clipnorm", "global_clipnorm", "clipvalue") if _is_on(clips[name])), None)
    return [] if first is None else [stages[first](clips[first])]


def _chain(*stages: optax.GradientTransformation | None) -> optax.GradientTransformationExtraArgs:
    """Return the `optax.chain` of the stages that are switched on."""
    given = [stage for stage in stages if stage is not None]
    chain = optax.chain(*given)

    def update_fn(updates: optax.Updates, state: Tree, params: Tree = None, **extra_args: Tree) -> Tree:
        _check.stages(state, len(given))
        return chain.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(chain.init, update_fn)
