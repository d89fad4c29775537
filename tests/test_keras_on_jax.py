"""The recipes of docs/keras-on-jax.md, as they stand there, give the bits that Keras gives alone."""

import doctest
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from .helpers import keras_rules, ulp
from .sparing import mostly_slow

keras = pytest.importorskip("keras")

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "keras-on-jax.md"
RANDOM = np.random.default_rng(0)
X, Y = (RANDOM.normal(size=(128, n)).astype(np.float32) for n in (8, 1))
BATCH, EPOCHS = 32, 2


@pytest.fixture(autouse=True)
def rules():
    with keras_rules():
        yield


@functools.cache
def recipes():
    """Run the definitions of the page, and return them by their names."""
    found = {"functools": functools, "jax": jax, "jnp": jnp, "keras": keras, "optax": optax}
    for example in doctest.DocTestParser().get_examples(PAGE.read_text()):
        if example.source.startswith(("class OptaxOptimizer", "def step_of", "def values")):
            exec(example.source, found)
    return found


def model_of(policy="float32", **arguments):
    keras.utils.clear_session()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    first = keras.layers.Dense(16, activation="gelu", **arguments)
    others = keras.layers.BatchNormalization(), keras.layers.Dropout(0.1), keras.layers.Dense(1)
    return keras.Sequential([keras.Input((8,)), first, *others])


def fitted(optimizer, callbacks=(), policy="float32"):
    model = model_of(policy)
    model.compile(optimizer, "mse")
    history = model.fit(X, Y, batch_size=BATCH, epochs=EPOCHS, callbacks=list(callbacks), verbose=0)
    return [*model.get_weights(), np.asarray(history.history["loss"], np.float32)]


def in_keras(tx, learning_rate=0.01):
    return recipes()["OptaxOptimizer"](tx, learning_rate)


def furthest(found, expected):
    return max(ulp(a, b) for a, b in zip(found, expected, strict=True) if a.dtype == np.float32)


@pytest.mark.parametrize(
    "arguments",
    mostly_slow(
        [
            ({},),
            ({"amsgrad": True, "clipnorm": 0.1},),
            ({"global_clipnorm": 0.1},),
            ({"clipvalue": 0.01, "epsilon": 1e-3},),
        ],
        lambda arguments: "amsgrad" in arguments,
    ),
    ids=lambda arguments: " ".join(arguments) or "plain",
)
def test_fit_gives_the_bits_of_keras(arguments):
    expected = fitted(keras.optimizers.Adam(0.01, **arguments))
    assert furthest(fitted(in_keras(ok.kadam(0.0, **arguments))), expected) == 0
    if arguments:  # The test sees what an argument does, and so what would be lost.
        assert furthest(fitted(in_keras(ok.kadam(0.0))), expected) > 1000


@pytest.mark.slow
def test_schedules_and_callbacks_of_keras_set_the_learning_rate():
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 6)
    assert furthest(fitted(in_keras(ok.kadam(0.0), schedule)), fitted(keras.optimizers.Adam(schedule))) == 0
    slower = [keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 * rate)]
    found, expected = fitted(in_keras(ok.kadam(0.0)), slower), fitted(keras.optimizers.Adam(0.01), slower)
    assert furthest(found, expected) == 0
    assert furthest(found, fitted(keras.optimizers.Adam(0.01))) > 1000


def test_a_loop_around_stateless_call_gives_the_bits_of_stateless_apply():
    """Both are jitted with their gradients, and donate all that they change."""

    def trained(model, update, state):
        step_of, values = recipes()["step_of"], recipes()["values"]
        step = step_of(model, optax.GradientTransformationExtraArgs(lambda params: state, update))
        params, others = values(model.trainable_variables), values(model.non_trainable_variables)
        loss = None
        for start in range(0, 2 * len(X), BATCH):
            rows = slice(start % len(X), start % len(X) + BATCH)
            params, others, state, loss = step(params, others, state, X[rows], Y[rows])
        return [np.asarray(x) for x in (*params, *others, loss)]

    model = model_of()
    optimizer = keras.optimizers.Adam(0.01, clipnorm=0.1, amsgrad=True)
    optimizer.build(model.trainable_variables)

    def of_keras(gradients, slots, params):
        changed, slots = optimizer.stateless_apply(slots, gradients, params)
        return [new - old for new, old in zip(changed, params, strict=True)], slots

    expected = trained(model, of_keras, [jnp.array(v.value) for v in optimizer.variables])
    model, tx = model_of(), ok.kadam(0.01, clipnorm=0.1, amsgrad=True)
    assert furthest(trained(model, tx.update, tx.init([v.value for v in model.trainable_variables])), expected) == 0


@pytest.mark.slow
def test_what_the_page_says_of_the_optimizer(tmp_path):
    with pytest.raises(KeyError, match="learning_rate"):
        fitted(in_keras(optax.adam(0.01)))
    fitted(in_keras(optax.inject_hyperparams(optax.adam)(0.0)))
    model = model_of(kernel_constraint="non_neg")
    model.compile(in_keras(ok.kadam(0.0)), "mse")
    with pytest.raises(ValueError, match=r"No variable may have a `constraint`. Received: \['.*kernel'\]. Use Keras's"):
        model.fit(X, Y, verbose=0)

    models = [model_of() for _ in range(2)]
    for model in models:
        model.compile(in_keras(optax.chain(optax.zero_nans(), ok.kadam(0.0, use_ema=True))), "mse")
        model.fit(X, Y, batch_size=BATCH, verbose=0)
    first, second = models
    first.fit(X, Y, batch_size=BATCH, verbose=0)
    first.save_weights(tmp_path / "first.weights.h5")
    second.load_weights(tmp_path / "first.weights.h5")
    slots = [[v.numpy() for v in model.optimizer.slots] for model in models]
    assert all(np.array_equal(a, b) for a, b in zip(*slots, strict=True))
    state = jax.tree.unflatten(second.optimizer.treedef, [v.value for v in second.optimizer.slots])
    average = ok.averaged_params(state)
    assert [x.shape for x in average] == [v.shape for v in second.trainable_variables]


@pytest.mark.slow
def test_the_loss_of_mixed_float16_is_scaled():
    """`compile` puts Keras's `LossScaleOptimizer` around it, which skips steps whose gradients overflow."""
    try:
        expected = fitted(keras.optimizers.Adam(0.01, clipnorm=0.1), policy="mixed_float16")
        assert furthest(fitted(in_keras(ok.kadam(0.0, clipnorm=0.1)), policy="mixed_float16"), expected) == 0
        model = model_of("mixed_float16")
        model.compile(in_keras(ok.kadam(0.0)), "mse")
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    finally:
        keras.config.set_dtype_policy("float32")
