"""The clips by norm and by value, one array or all arrays at a time."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from ..helpers import keras_rules
from ..sparing import mostly_slow, quick_jit


@pytest.mark.parametrize(
    ("count", "jit"), mostly_slow([(3, False), (3, True), (450, False), (450, True)], lambda count, jit: count == 3)
)
def test_a_global_norm_of_many_gradients_is_summed_up_as_keras_does(count, jit):
    random = np.random.default_rng(0)
    gradients = [jnp.asarray(random.normal(size=(3, 5)), jnp.float32) for _ in range(count)]

    def keras(gradients):  # `clip_by_global_norm` in keras/src/optimizers/base_optimizer.py (Keras 3.15).
        norm = jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(g)) for g in gradients])))
        scale = 0.7 * jnp.minimum(1.0 / norm, 1.0 / 0.7) + (norm - norm)
        return [g * scale for g in gradients]

    def ours(gradients):
        return ok.clip_by_global_norm(0.7).update(gradients, optax.EmptyState())[0]

    expected, found = (jax.jit(f)(gradients) if jit else f(gradients) for f in (keras, ours))
    assert all(jax.tree.map(np.array_equal, found, expected))


def test_a_compiled_sum_of_many_norms_takes_200_at_a_time():
    """XLA fuses a sum with all that it adds up, in a time that grows with the square of their number."""
    gradients = [jax.ShapeDtypeStruct((2,), jnp.float32)] * 450
    lowered = jax.jit(lambda g: ok.clip_by_global_norm(0.7).update(g, optax.EmptyState())[0]).lower(gradients)
    lengths = re.findall(r"stablehlo.concatenate.*-> tensor<(\d+)xf32>", lowered.as_text())
    assert max(map(int, lengths)) == 200


@pytest.mark.parametrize("clip", [41.0, 49.0, 1.7, 2.3])
@pytest.mark.parametrize("length", [0.01, 0.6, 100.0])
def test_a_clip_alone_scales_as_keras_3_does(clip, length):
    """Below the limit too: by `c * (1 / c)`, which is 0.99999994 for 41, with the reciprocal of Keras's generation."""
    keras = pytest.importorskip("keras")
    gradients = [length * jnp.array([0.6, 0.0]), length * jnp.array([[0.8]])]
    with keras_rules():
        expected = keras.optimizers.Adam(global_clipnorm=clip)._clip_gradients(gradients)
    found, _ = ok.clip_by_global_norm(clip).update(gradients, optax.EmptyState())
    assert all(jax.tree.map(np.array_equal, found, expected))


@pytest.mark.parametrize("make", [ok.clip_by_value, ok.clip_by_norm, ok.clip_by_global_norm])
@pytest.mark.parametrize("of_gradient", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("of_clip", ["float32", "float64"])
def test_a_clip_may_be_an_array_of_another_dtype_than_the_gradients(make, of_clip, of_gradient):
    with jax.enable_x64(True):
        gradient = jnp.array([8.0], of_gradient)
        found, _ = make(jnp.asarray(0.5, of_clip)).update(gradient, optax.EmptyState())
        assert found.dtype == of_gradient and found.tolist() == [0.5]


@pytest.mark.parametrize("generation", ["keras3", "tf_keras", "legacy"])
@pytest.mark.parametrize("clip", [1.7, 2.3])
def test_a_global_norm_takes_the_reciprocal_of_its_generation(clip, generation):
    """That of the Python float in Keras 3, and that of the float32 in the two older ones."""
    gradient = jnp.array([0.006, 0.008])
    reciprocals = {"keras3": np.float32(1.0 / clip)}
    tx = ok.kadam(beta_1=0.0, global_clipnorm=clip, generation=generation)
    _, state = tx.update(gradient, tx.init(gradient), gradient)
    scale = np.float32(clip) * reciprocals.get(generation, np.float32(1) / np.float32(clip))
    assert reciprocals["keras3"] != np.float32(1) / np.float32(clip)
    np.testing.assert_array_equal(optax.tree.get(state, "mu"), np.asarray(gradient) * scale)


def test_the_slope_of_a_clip_is_finite_at_a_gradient_of_zero():
    """The root has an infinite slope at 0, which would be NaN behind a selection; Keras guards its root likewise."""
    zero = {"a": jnp.zeros(3), "b": jnp.array([3.0, 4.0])}

    def total(gradients):
        clipped, _ = ok.clip_by_norm(2.0).update(gradients, optax.EmptyState())
        return jnp.sum(clipped["a"]) + jnp.sum(clipped["b"])

    slope = jax.grad(total)(zero)
    np.testing.assert_array_equal(slope["a"], np.ones(3))
    np.testing.assert_allclose(slope["b"], 2 * (np.ones(2) / 5 - 7 * np.array([3.0, 4.0]) / 125), rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "applied"),
    [
        ({"clipnorm": 1.0, "clipvalue": 0.3}, {"clipnorm": 1.0}),
        ({"global_clipnorm": 1.5, "clipvalue": 0.3}, {"global_clipnorm": 1.5}),
        ({"clipnorm": 0.0, "clipvalue": 0.3}, {"clipvalue": 0.3}),
        ({"global_clipnorm": 0.0, "clipvalue": 0.3}, {"clipvalue": 0.3}),
        ({"clipvalue": 0.0}, {}),
    ],
)
def test_tf_keras_clips_once_and_takes_0_for_off(given, applied):
    """tf_keras's `_clip_gradients` asks for one clip after the other, and applies the first that is on."""
    gradients = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([0.5])}
    found, expected = (
        tx.update(gradients, tx.init(gradients), gradients)[1]
        for tx in (ok.kadam(**given, generation="tf_keras"), ok.kadam(**applied))
    )
    for a, b in zip(*(jax.tree.leaves(optax.tree.get(state, "mu")) for state in (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-7)


# --- The norm that a clip keeps.

PARAMS = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, "scale": jnp.ones(())}


def draw(seed, params=PARAMS):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(3 * random.normal(size=p.shape), p.dtype), params)


def lengths(tree):
    return jax.tree.map(lambda g: np.sqrt(np.sum(np.square(np.asarray(g, np.float64)))), tree)


def length(tree):
    return np.sqrt(sum(norm**2 for norm in jax.tree.leaves(lengths(tree))))


def kept_norm(state):
    norm = optax.tree.get(state, "gradient_norm")
    assert all(x.shape == () and x.dtype == jnp.float32 and not x.weak_type for x in jax.tree.leaves(norm))
    return norm


def assert_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)


# How an optimizer is built, and what it clips, from the gradients of a call.
BY_NORM = {
    "alone": (lambda: ok.clip_by_norm(0.5), lambda g: g),
    "chain": (lambda: optax.chain(optax.identity(), ok.clip_by_norm(0.5), ok.scale_by_kadam()), lambda g: g),
    "keras3": (lambda: ok.kadam(clipnorm=0.5), lambda g: g),
    "not clipped": (lambda: ok.kadam(clipnorm=1e9), lambda g: g),
    "loss scale": (
        lambda: ok.kadam(clipnorm=0.5, loss_scale_factor=8.0),
        lambda g: jax.tree.map(lambda x: x / 8.0, g),
    ),
    "dynamic loss scale": (
        lambda: ok.dynamic_loss_scale(ok.kadam(clipnorm=0.5), 16.0),
        lambda g: jax.tree.map(lambda x: x / 16.0, g),
    ),
    "tf_keras": (lambda: ok.kadam(clipnorm=0.5, clipvalue=0.1, generation="tf_keras"), lambda g: g),
    "legacy": (
        lambda: ok.kadam(clipnorm=0.5, clipvalue=1.5, generation="legacy"),
        lambda g: jax.tree.map(lambda x: jnp.clip(x, -1.5, 1.5), g),
    ),
}
GLOBAL = {
    "alone": (lambda: ok.clip_by_global_norm(0.5), lambda g: g),
    "keras3": (lambda: ok.kadamw(global_clipnorm=0.5, use_ema=True), lambda g: g),
    "loss scale": (
        lambda: ok.kadam(global_clipnorm=0.5, loss_scale_factor=8.0),
        lambda g: jax.tree.map(lambda x: x / 8.0, g),
    ),
    "tf_keras": (lambda: ok.kadam(global_clipnorm=0.5, clipvalue=0.1, generation="tf_keras"), lambda g: g),
    "legacy": (
        lambda: ok.kadam(global_clipnorm=0.5, clipvalue=1.5, generation="legacy"),
        lambda g: jax.tree.map(lambda x: jnp.clip(x, -1.5, 1.5), g),
    ),
}
CASES = [(*case, lengths) for case in BY_NORM.values()] + [(*case, length) for case in GLOBAL.values()]


@pytest.mark.parametrize(("make", "clipped", "norm_of"), CASES, ids=[*BY_NORM, *(f"{name}, global" for name in GLOBAL)])
def test_the_norm_before_the_clip_is_kept(make, clipped, norm_of):
    tx = make()
    state = tx.init(PARAMS)
    assert_close(kept_norm(state), jax.tree.map(lambda x: 0 * x, norm_of(PARAMS)))
    for step in range(2):
        g = draw(step)
        _, state = quick_jit(tx.update)(g, state, PARAMS)
        assert_close(kept_norm(state), norm_of(clipped(g)))


@pytest.mark.parametrize(("clip", "norm_of"), [("clipnorm", lengths), ("global_clipnorm", length)])
def test_with_accumulation_it_is_the_norm_of_the_mean_at_the_last_step(clip, norm_of):
    tx = ok.kadam(**{clip: 0.5}, gradient_accumulation_steps=2)
    state, gradients = tx.init(PARAMS), [draw(i) for i in range(5)]
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *gradients[i : i + 2]) for i in (0, 2)]
    zero = jax.tree.map(lambda x: 0 * x, norm_of(PARAMS))
    for g, expected in zip(gradients, [zero, *(norm_of(means[i]) for i in (0, 0, 1, 1))], strict=True):
        _, state = tx.update(g, state, PARAMS)
        assert_close(kept_norm(state), expected)


@pytest.mark.parametrize("jit", [False, True])
def test_a_skipped_step_leaves_the_norm(jit):
    tx = ok.dynamic_loss_scale(ok.kadam(global_clipnorm=0.5), 1.0)
    update = quick_jit(tx.update) if jit else tx.update
    _, state = update(draw(0), tx.init(PARAMS), PARAMS)
    _, state = update(jax.tree.map(lambda g: g * jnp.inf, draw(1)), state, PARAMS)
    assert_close(kept_norm(state), length(draw(0)))


@pytest.mark.parametrize("make", [lambda: ok.clip_by_norm(0.5), lambda: ok.kadam(clipnorm=0.5)])
def test_the_norm_of_a_gradient_that_is_none_is_zero(make):
    tx, g = make(), draw(0)
    _, state = tx.update(draw(1), tx.init(PARAMS), PARAMS)
    g["dense"]["kernel"] = None
    _, state = tx.update(g, state, PARAMS)
    assert_close(
        kept_norm(state), {"dense": {"kernel": 0.0, "bias": lengths(g["dense"]["bias"])}, "scale": lengths(g["scale"])}
    )


def test_the_global_norm_of_no_gradient_is_zero():
    tx = ok.clip_by_global_norm(0.5)
    _, state = tx.update(draw(0), tx.init(PARAMS))
    _, state = tx.update(jax.tree.map(lambda _: None, PARAMS), state)
    assert kept_norm(state) == 0.0


@pytest.mark.parametrize(("generation", "values"), [("keras3", [[4.0, 6.0]]), ("legacy", [[1.0, 2.0], [3.0, 4.0]])])
def test_the_norm_of_rows_is_that_of_what_is_clipped(generation, values):
    """Keras 3 sums rows of one index up before, the older generations after the clip."""
    tx, params = ok.kadam(clipnorm=0.5, generation=generation), {"table": jnp.ones((5, 2)), "w": jnp.ones(2)}
    rows = ok.RowUpdates(jnp.array([3, 3, -1]), jnp.array([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]))
    _, state = tx.update({"table": rows, "w": jnp.array([3.0, 4.0])}, tx.init(params), params)
    assert_close(kept_norm(state), {"table": lengths(jnp.array(values)), "w": 5.0})


@pytest.mark.parametrize(("make", "norm_of"), [(ok.clip_by_norm, lengths), (ok.clip_by_global_norm, length)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_norm_is_in_float32_whatever_the_gradients_are_in(make, norm_of, dtype):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
        tx, g = make(0.5), draw(0, params)
        _, state = quick_jit(tx.update)(g, tx.init(params))
        assert_close(kept_norm(state), norm_of(jax.tree.map(lambda x: x.astype("float64"), g)))


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_a_clip_that_is_a_power_of_two_and_never_clips_leaves_every_bit(clip):
    found, expected = (
        tx.update(draw(0), tx.init(PARAMS), PARAMS)[0] for tx in (ok.kadam(**{clip: 2.0**30}), ok.kadam())
    )
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, expected)))


def test_an_infinite_norm_shows():
    tx = ok.clip_by_global_norm(0.5)
    _, state = tx.update({"a": jnp.array([jnp.inf]), "b": jnp.ones(2)}, tx.init(PARAMS))
    assert np.isposinf(kept_norm(state))


@pytest.mark.parametrize("make", [ok.clip_by_norm, ok.clip_by_global_norm])
def test_a_clip_without_a_state_clips_the_same(make):
    """As the clips of optax, which keep nothing, are called in a loop of one's own."""
    tx, g = make(0.5), draw(0)
    expected, _ = tx.update(g, tx.init(PARAMS))
    for state in (None, optax.EmptyState()):
        found, after = tx.update(g, state)
        assert after is state
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, expected)))


@pytest.mark.parametrize("make", [ok.clip_by_norm, ok.clip_by_global_norm])
def test_a_clip_of_each_shard_alone_keeps_no_norm(make):
    assert make(0.5, axis_name=()).init(PARAMS) == optax.EmptyState()


@pytest.mark.parametrize(("mine", "other"), [("clipnorm", "global_clipnorm"), ("global_clipnorm", "clipnorm")])
def test_the_norm_of_another_clip_is_refused(mine, other):
    """It would stay as it is, and be logged as that of this step."""
    tx, state = ok.kadam(**{mine: 0.5}), ok.kadam(**{other: 0.5}).init(PARAMS)
    with pytest.raises(ValueError, match=r"which keeps gradient_norm. Received: ClipBy(Global)?NormState, which keeps"):
        tx.update(draw(0), state, PARAMS)


def test_a_state_from_before_norms_were_kept_goes_on():
    tx = ok.kadam(clipnorm=0.5)
    new = tx.init(PARAMS)
    old = new._replace(inner_state=((optax.EmptyState(), *new.inner_state[0][1:]), *new.inner_state[1:]))
    (found, state), (expected, _) = (tx.update(draw(0), state, PARAMS) for state in (old, new))
    assert jax.tree.structure(state) == jax.tree.structure(old) and kept_norm(state) is None
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, expected)))


@pytest.mark.parametrize(
    ("params", "gradients", "received"),
    [
        ({"a": jnp.ones(2)}, {"b": jnp.ones(2)}, r"\"\['a'\]\", \"\['b'\]\" in one"),
        ({"a": jnp.ones(2)}, {"a": jnp.ones(2), "b": jnp.ones(2)}, r"\"\['b'\]\" in one of the two"),
        ({}, {"a": jnp.ones(2), "b": jnp.ones(2)}, r"'', \"\['a'\]\", \"\['b'\]\" in one"),
    ],
)
def test_norms_of_other_parameters_are_refused(params, gradients, received):
    tx = ok.clip_by_norm(0.5)
    match = rf"(?s)must have the leaves of `gradient_norm`, .* Received: {received}.* Call `init` with the parameters"
    with pytest.raises(ValueError, match=match):
        tx.update(gradients, tx.init(params))


@pytest.mark.parametrize(
    ("clip", "expected"), [("clipnorm", {"a": 5.0, "b": optax.MaskedNode()}), ("global_clipnorm", 5.0)]
)
def test_a_part_keeps_the_norm_of_its_own_gradients(clip, expected):
    tx = optax.partition({"a": ok.kadam(**{clip: 1.0}), "b": optax.sgd(0.1)}, {"a": "a", "b": "b"})
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.ones(2)}
    _, state = tx.update(params, tx.init(params), params)
    assert_close(kept_norm(state), expected)


@pytest.mark.parametrize("make", [lambda: ok.clip_by_norm(1.0), lambda: ok.clip_by_global_norm(1.0)])
def test_a_part_without_parameters_keeps_its_state(make):
    tx = optax.partition({"a": make(), "b": make()}, {"a": "a"})
    params = {"a": jnp.array([3.0, 4.0])}
    state = tx.init(params)
    _, new = tx.update(params, state, params)
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
    assert optax.tree.get(new.inner_states["b"], "gradient_norm") == 0.0


def test_norms_are_no_parameters_to_optax():
    """`optax.tree.map_params` would hand the sharding of a matrix to a number."""
    tx = ok.kadam(clipnorm=1.0)
    labelled = optax.tree.map_params(
        tx, lambda _: "as the parameter", tx.init(PARAMS), transform_non_params=lambda _: 0
    )
    assert optax.tree.get(labelled, "gradient_norm") == 0
    assert optax.tree.get(labelled, "mu")["scale"] == "as the parameter"
