"""What docs/from-optax.md says of optax's Adam beside this one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from .helpers import keras_rules
from .sparing import quick_jit

random = np.random.default_rng(0)
SHAPES = {"w": (17, 5), "b": (3,)}
PARAMS = {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
# From 1e-10 to 1: what is far above epsilon, and what is far below.
GRADIENTS = [
    {
        name: jnp.asarray(10.0 ** random.uniform(-10, 0, shape) * random.normal(size=shape), jnp.float32)
        for name, shape in SHAPES.items()
    }
    for _ in range(200)
]
CLOSE = 5e-6  # A share of the movement: 3.6e-6 was measured with weight decay, 2.2e-6 without.
AS_OPTAX = {"epsilon": 1e-8, "generation": "tf_keras", "adaptive_epsilon": True}


@pytest.fixture(autouse=True)
def usual_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's own Adam mixes dtypes.
        yield


def run(tx, gradients, params=PARAMS, state=None):
    @jax.jit
    def step(state, params, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params) if state is None else state
    for g in gradients:
        params, state = step(state, params, g)
    return params, state


def furthest(found, expected, start=PARAMS):
    """Return the largest distance between two results, as a share of how far that parameter has moved at most."""
    return max(
        float(jnp.abs(found[name] - expected[name]).max() / jnp.abs(expected[name] - start[name]).max())
        for name in start
    )


PAIRS = {
    "adam": (lambda: optax.adam(0.01), lambda **epsilon: ok.kadam(0.01, **epsilon)),
    "other betas": (
        lambda: optax.adam(0.01, b1=0.8, b2=0.95),
        lambda **epsilon: ok.kadam(0.01, beta_1=0.8, beta_2=0.95, **epsilon),
    ),
    "adamw": (
        lambda: optax.adamw(0.01, weight_decay=0.1),
        lambda **epsilon: ok.kadamw(0.01, weight_decay=0.1, **epsilon),
    ),
    "adamw, masked": (
        lambda: optax.adamw(0.01, weight_decay=0.1, mask=ok.except_names("b")),
        lambda **epsilon: ok.kadamw(0.01, weight_decay=0.1, weight_decay_mask=ok.except_names("b"), **epsilon),
    ),
    "a schedule": (
        lambda: optax.adam(optax.cosine_decay_schedule(0.01, 200)),
        lambda **epsilon: ok.kadam(optax.cosine_decay_schedule(0.01, 200), **epsilon),
    ),
    "a clip": (
        lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01)),
        lambda **epsilon: ok.kadam(0.01, global_clipnorm=0.5, **epsilon),
    ),
    "MultiSteps": (
        lambda: optax.MultiSteps(optax.adam(0.01), 4),
        lambda **epsilon: optax.MultiSteps(ok.kadam(0.01, **epsilon), 4),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_an_adaptive_epsilon_is_that_of_optax(name):
    theirs, ours = PAIRS[name]
    expected, _ = run(theirs(), GRADIENTS)
    found, _ = run(ours(**AS_OPTAX), GRADIENTS)
    assert furthest(found, expected) <= CLOSE
    other, _ = run(ours(epsilon=1e-8), GRADIENTS)  # The epsilon of Keras is another one.
    assert furthest(other, expected) > 1e-2


def with_state(state, mu, nu, count):
    """In two calls: `optax.tree.set` of optax 0.2.8 overlooks what stands below a field that it sets."""
    return optax.tree.set(optax.tree.set(state, mu=mu, nu=nu), iterations=count)


def test_a_training_of_optax_goes_on():
    """100 steps there and 100 here are 200 there; without the moments or the count they are not."""
    theirs, ours = optax.adam(0.01), ok.kadam(0.01, **AS_OPTAX)
    params, old = run(theirs, GRADIENTS[:100])
    mu, nu, count = (optax.tree.get(old, name) for name in ("mu", "nu", "count"))
    state = with_state(ours.init(params), mu, nu, count)
    found, _ = run(ours, GRADIENTS[100:], params, state)
    expected, _ = run(theirs, GRADIENTS)
    assert furthest(found, expected) <= CLOSE
    zeros = jax.tree.map(jnp.zeros_like, mu)
    for lost in ((zeros, nu, count), (mu, zeros, count), (mu, nu, jnp.zeros_like(count))):
        other, _ = run(ours, GRADIENTS[100:], params, with_state(ours.init(params), *lost))
        assert furthest(other, expected) > 1e-3


def test_accumulation_takes_the_steps_of_multi_steps_and_counts_the_calls():
    """A schedule of k times the length is the same schedule, asked at the last call of a step."""
    ours = ok.kadam(lambda step: 0.1 * 0.5 ** (step // 4), epsilon=1e-8, gradient_accumulation_steps=4)
    theirs = optax.MultiSteps(ok.kadam(lambda step: 0.1 * 0.5**step, epsilon=1e-8), 4)
    found, state = run(ours, GRADIENTS[:12])
    expected, _ = run(theirs, GRADIENTS[:12])
    assert furthest(found, expected) <= CLOSE
    assert int(optax.tree.get(state, "iterations")) == 12


def test_the_iterations_of_keras_count_the_steps():
    keras = pytest.importorskip("keras")
    calls, steps = 7, 3
    with keras_rules():
        optimizer = keras.optimizers.Adam(gradient_accumulation_steps=steps)
        variable = keras.Variable(np.ones(3, np.float32))
        optimizer.build([variable])
        for _ in range(calls):
            optimizer.apply([jnp.ones(3)], [variable])
        shown, kept = int(optimizer.iterations), int(optimizer.variables[0].value)
    tx, params = ok.kadam(gradient_accumulation_steps=steps), jnp.ones(3)
    state = tx.init(params)
    for _ in range(calls):
        _, state = quick_jit(tx.update)(params, state, params)
    iterations = int(optax.tree.get(state, "iterations"))
    assert (iterations, iterations // steps) == (kept, shown) == (7, 2)
