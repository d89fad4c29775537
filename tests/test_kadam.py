"""The assembled optimizer as a whole: it trains models of Flax, donates every buffer, clips in the right order."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optax_kadam as ok

from .hlo import aliased, shapes

X = jnp.asarray(np.random.default_rng(0).normal(size=(32, 4)), jnp.float32)
Y = X @ jnp.array([[1.0], [-2.0], [0.5], [3.0]])
ARGUMENTS = {"amsgrad": True, "weight_decay": 0.01, "clipnorm": 1.0, "use_ema": True}


@pytest.fixture
def usual_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_a_model_of_flax_nnx_trains(usual_promotion):
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


def test_a_model_of_flax_linen_trains(usual_promotion):
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


@pytest.mark.compiler
@pytest.mark.parametrize("arguments", [{}, ARGUMENTS, {"gradient_accumulation_steps": 3}])
def test_every_buffer_is_donated(arguments):
    params = {"kernel": jnp.ones((256, 256)), "bias": jnp.ones(256)}
    tx = ok.kadam(0.05, **arguments)
    state = tx.init(params)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    unread = jax.tree.leaves(optax.tree.get(state, "gradient_norm"))  # The old norms: JAX does not even hand them over.
    assert aliased(compiled.as_text()) == len(jax.tree.leaves((params, state))) - len(unread)
    arrays_copied = [shape for shape in shapes(compiled.as_text(), "copy") if shape]
    assert not arrays_copied or "gradient_accumulation_steps" in arguments


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


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_names_order_and_defaults_are_keras_s(name):
    keras = pytest.importorskip("keras")
    ours = inspect.signature({"Adam": ok.kadam, "AdamW": ok.kadamw}[name]).parameters.values()
    theirs = inspect.signature(getattr(keras.optimizers, name)).parameters.values()
    expected = {p.name: p.default for p in theirs if p.kind is not inspect.Parameter.VAR_KEYWORD}
    expected["name"] = name.lower()  # Keras has None for it, or itself, by its version.
    found = {p.name: p.default for p in ours if p.kind is not inspect.Parameter.KEYWORD_ONLY}
    assert list(found.items()) == list(expected.items())


def test_the_name_is_the_scope_in_the_compiled_step():
    tx, params = ok.kadam(name="my_adam"), jnp.ones(3)
    text = jax.jit(tx.update).lower(params, tx.init(params), params).compile().as_text()
    assert "my_adam/" in text
