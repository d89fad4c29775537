"""What the assembled optimizer does as a whole: in Flax, donated, accumulated, averaged, scaled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optax_kadam as ok
from benchmarks._hlo import aliased, shapes

X = jnp.asarray(np.random.default_rng(0).normal(size=(32, 4)), jnp.float32)
Y = X @ jnp.array([[1.0], [-2.0], [0.5], [3.0]])
ARGUMENTS = {"amsgrad": True, "weight_decay": 0.01, "clipnorm": 1.0, "use_ema": True}


@pytest.fixture
def usual_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_flax_nnx(usual_promotion):
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, ok.kadam(0.05, **ARGUMENTS), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(X) - Y) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(200)]
    assert losses[-1] < 0.01 * losses[0]
    average = ok.averaged_params(nnx.as_pure(optimizer.opt_state))
    assert 0 < jnp.mean((X @ average["kernel"] + average["bias"] - Y) ** 2) < 0.3 * losses[0]


def test_flax_linen(usual_promotion):
    model = nn.Dense(1)
    state = TrainState.create(
        apply_fn=model.apply, params=model.init(jax.random.key(0), X)["params"], tx=ok.kadam(0.05, **ARGUMENTS)
    )

    @jax.jit
    def step(state):
        loss = lambda params: jnp.mean((state.apply_fn({"params": params}, X) - Y) ** 2)  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradients), value

    values = []
    for _ in range(200):
        state, value = step(state)
        values.append(float(value))
    assert values[-1] < 0.01 * values[0]


@pytest.mark.parametrize("arguments", [{}, ARGUMENTS, {"gradient_accumulation_steps": 3}])
def test_every_buffer_is_donated(arguments):
    params = {"kernel": jnp.ones((256, 256)), "bias": jnp.ones(256)}
    tx = ok.kadam(0.05, **arguments)
    state = tx.init(params)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    assert aliased(compiled.as_text()) == len(jax.tree.leaves((params, state)))
    arrays_copied = [shape for shape in shapes(compiled.as_text(), "copy") if shape]
    assert not arrays_copied or "gradient_accumulation_steps" in arguments


def primitives(jaxpr):
    """The names of the primitives of a jaxpr, those of its branches aside; and the branches."""
    names, branches = set(), []
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for parameter in equation.params.values():
            if equation.primitive.name == "cond" and isinstance(parameter, tuple):
                branches += [branch.jaxpr for branch in parameter if hasattr(branch, "jaxpr")]
            elif hasattr(parameter, "jaxpr"):
                inner_names, inner_branches = primitives(parameter.jaxpr)
                names, branches = names | inner_names, branches + inner_branches
    return names, branches


def test_a_micro_step_evaluates_nothing_of_adam():
    tx = ok.kadam(gradient_accumulation_steps=4, clipnorm=1.0, weight_decay=0.1)
    params = jnp.ones(8)
    names, branches = primitives(jax.make_jaxpr(tx.update)(params, tx.init(params), params).jaxpr)
    assert not names & {"sqrt", "pow", "div", "reduce_sum"}
    collect, step = (primitives(branch)[0] for branch in branches)
    assert "sqrt" in step
    assert not collect & {"sqrt", "pow", "div", "mul", "reduce_sum"}


@pytest.mark.parametrize("jit", [False, True])
def test_a_window_is_one_step_on_the_mean_and_a_nan_does_not_outlive_it(jit):
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    tx, plain = ok.kadam(0.1, gradient_accumulation_steps=2), ok.kadam(0.1)
    update = jax.jit(tx.update) if jit else tx.update
    first = {"a": jnp.array([1.0, jnp.nan]), "b": jnp.array(1.0)}
    second = {"a": jnp.array([3.0, 1.0]), "b": jnp.array(0.0)}
    nothing, state = update(first, tx.init(params), params)
    assert not any(u.any() for u in jax.tree.leaves(nothing))
    updates, state = update(second, state, params)
    mean = {"a": jnp.array([2.0, jnp.nan]), "b": jnp.array(0.5)}
    expected, _ = plain.update(mean, plain.init(params), params)
    np.testing.assert_allclose(updates["a"], expected["a"], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], expected["b"], rtol=1e-6)
    assert not any(a.any() for a in jax.tree.leaves(optax.tree.get(state, "accumulator")))
    _, state = update(second, state, params)
    np.testing.assert_array_equal(optax.tree.get(state, "accumulator")["a"], second["a"])


def test_the_average_starts_where_each_generation_starts_it():
    params = jnp.array([10.0])
    for generation, first in (("keras3", 9.9), ("tf_keras", 0.75 * 10.0 + 0.25 * 9.9)):
        tx = ok.kadam(0.1, use_ema=True, ema_momentum=0.75, generation=generation)
        _, state = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(ok.averaged_params(state), [first], rtol=1e-6)


def test_the_average_becomes_the_parameters_at_every_third_step():
    tx = ok.kadam(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    params, overwritten = jnp.array([8.0]), []
    state = tx.init(params)
    for step in range(1, 8):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
        if step > 1 and params == ok.averaged_params(state):  # The first average is the first parameter.
            overwritten.append(step)
    assert overwritten == [3, 6]


def test_an_infinite_average_does_not_poison_the_parameters_between_overwrites():
    params = jnp.array([1.0])
    tx = ok.kadam(0.1, use_ema=True, ema_overwrite_frequency=5)
    state = optax.tree.set(tx.init(params), average=jnp.array([jnp.inf]), iterations=1)
    updates, _ = tx.update(params, state, params)
    assert np.isfinite(updates).all()


def test_legacy_clips_by_value_before_the_norm_and_keras3_takes_zero_for_off():
    gradient = jnp.array([3.0, 4.0])

    def first_moment(**arguments):
        tx = ok.kadam(beta_1=0.5, **arguments)
        return np.asarray(optax.tree.get(tx.update(gradient, tx.init(gradient), gradient)[1], "mu"))

    both = first_moment(clipvalue=3.0, clipnorm=3.0, generation="legacy")
    np.testing.assert_allclose(both, 0.5 * np.full(2, 3 / np.sqrt(2)), rtol=1e-6)
    np.testing.assert_allclose(first_moment(clipnorm=5.0, clipvalue=1.0, generation="tf_keras"), [1.5, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(first_moment(clipnorm=0), [1.5, 2.0])
    np.testing.assert_array_equal(first_moment(clipnorm=0.0, generation="legacy"), [0.0, 0.0])


def test_adaptive_epsilon_is_the_epsilon_of_optax():
    params, gradient = jnp.array([1.0, 2.0]), jnp.array([1e-6, 1.0])
    tx = ok.kadam(0.1, epsilon=1e-3, adaptive_epsilon=True, generation="tf_keras")
    updates, _ = tx.update(gradient, tx.init(params), params)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = optax.adam(0.1, eps=1e-3).update(gradient, optax.adam(0.1).init(params), params)
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_legacy_takes_an_epsilon_of_zero_for_the_default():
    params = jnp.array([1.0])
    for epsilon in (0, None, 1e-7):
        tx = ok.kadam(0.1, epsilon=epsilon, generation="legacy")
        assert float(tx.update(jnp.array([0.0]), tx.init(params), params)[0][0]) == 0.0


def test_dynamic_loss_scale_scales_any_optax_transformation():
    tx = ok.dynamic_loss_scale(optax.sgd(1.0), initial_scale=4.0, dynamic_growth_steps=2)
    params = jnp.array([1.0])
    state, scales, steps = tx.init(params), [], []
    for gradient in (4.0, 4.0, jnp.nan, 8.0):
        updates, state = jax.jit(tx.update)(jnp.array([gradient]), state, params)
        scales.append(float(state.dynamic_scale))
        steps.append(float(updates[0]))
    assert scales == [4.0, 8.0, 4.0, 4.0]
    assert steps == [-1.0, -1.0, 0.0, -2.0]


@pytest.mark.parametrize("generation", ["tf_keras", "legacy"])
def test_the_older_generations_count_skipped_steps_and_stop_at_a_scale_of_one(generation):
    inner = ok.kadam(generation=generation)
    tx = ok.dynamic_loss_scale(inner, initial_scale=1.0, generation=generation)
    params = jnp.array([1.0])
    updates, state = jax.jit(tx.update)(jnp.array([jnp.inf]), tx.init(params), params)
    assert (float(state.dynamic_scale), int(optax.tree.get(state, "iterations")), float(updates[0])) == (1.0, 1, 0.0)
