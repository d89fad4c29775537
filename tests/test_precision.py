"""bfloat16 and float16 parameters: Keras rounds the scalars of a step to their dtype, here they are float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from .helpers import CASES, INPUTS, build, flatten, golden, gradients, replay, share, split, ulp

LOW = [case["id"] for case in CASES.values() if case["dtype"] in ("float16", "bfloat16")]


@pytest.mark.parametrize("steps", [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case_id", LOW)
def test_moments_are_those_of_float32(case_id, steps):
    """Moments that are kept in float32 are those of the float32 run on the same gradients.

    The runs are op by op, as a compiler may contract other multiply-adds where a conversion stands between them.
    """
    case = CASES[case_id]
    generation, arguments = next(iter(case["full_kwargs"].items()))
    case = case | {"full_kwargs": {generation: arguments | {"mu_dtype": "float32", "nu_dtype": "float32"}}}
    *_, (_, _, low) = replay(case, build(case, generation), False, steps)

    tx = build(case, generation)
    params = [jnp.asarray(p) for p in split(INPUTS["init"])]
    state = tx.init(params)
    for step in range(1, min(steps, case["n_steps"]) + 1):
        _, state = tx.update([g.astype("float32") for g in gradients(case, step)], state, params)
    # A clipped gradient is rounded to the gradient's own dtype; all else is float32.
    clipped = any(arguments.get(name) for name in ("clipnorm", "global_clipnorm"))
    for name in ("mu", "nu"):
        found, expected = flatten(optax.tree.get(low, name)), flatten(optax.tree.get(state, name))
        if clipped:
            assert share(found, expected, np.abs(expected).max()) <= float(jnp.finfo(case["dtype"]).eps)
        else:
            assert ulp(found, expected) == 0


def test_keras_s_bfloat16_never_moves_and_ours_does():
    case, recorded = CASES["default_bfloat16"], golden("default_bfloat16")
    start = flatten([jnp.asarray(p).astype("bfloat16") for p in split(INPUTS["init"])]).astype(np.float32)
    assert (recorded["k3-jax-eager/p"][-1] == start).all()
    *_, (_, params, _) = replay(case, build(case, "k3"), jit=True)
    assert (flatten(params).astype(np.float32) != start).mean() > 0.3


@pytest.mark.filterwarnings("ignore:The second moments of float16:UserWarning")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_first_step_in_low_precision_is_float32_s(dtype):
    params, gradient = jnp.ones(4, dtype), jnp.asarray([1.0, -0.5, 0.25, 2.0], dtype)
    tx = ok.kadam(0.125)
    updates, _ = tx.update(gradient, tx.init(params), params)
    wide, _ = tx.update(gradient.astype("float32"), tx.init(params.astype("float32")), params.astype("float32"))
    assert updates.dtype == dtype
    assert (updates == wide.astype(dtype)).all()


def test_moments_are_kept_as_told():
    tx = ok.kadam(amsgrad=True, mu_dtype="bfloat16", nu_dtype=jnp.float32)
    state = tx.init(jnp.ones(3, "float16"))
    _, state = tx.update(jnp.ones(3, "float16"), state, jnp.ones(3, "float16"))
    kept = [optax.tree.get(state, name).dtype.name for name in ("mu", "nu", "nu_max")]
    assert kept == ["bfloat16", "float32", "float32"]


@pytest.mark.parametrize("wide", ["mu", "nu"])
def test_a_moment_of_float64_is_computed_in_float64(wide):
    with jax.enable_x64(True):
        params, gradient = jnp.ones(2, "float32"), jnp.array([0.3, -1.7], "float32")
        tx = ok.kadam(0.1, **{f"{wide}_dtype": "float64"})
        updates, state = tx.update(gradient, tx.init(params), params)
        g = np.asarray(gradient, np.float64)
        exact = {"mu": g * (1 - 0.9), "nu": g * g * (1 - 0.999)}
        for name, moment in exact.items():
            found = optax.tree.get(state, name)
            np.testing.assert_array_equal(found, moment.astype(found.dtype))
            assert found.dtype == ("float64" if name == wide else "float32")
        assert updates.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_that_are_no_float64_are_stepped_alike_under_x64(dtype):
    def after_three_steps():
        params = jnp.array([1.0, -2.0, 0.3], dtype)
        tx = ok.kadamw(0.1, use_ema=True, global_clipnorm=0.7)
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return jax.tree.leaves((params, state))

    with jax.enable_x64(True):
        found = after_three_steps()
    for a, b in zip(found, after_three_steps(), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_float64_is_float64_throughout():
    with jax.enable_x64(True):
        params, gradient = jnp.array([1.0, 2.0], "float64"), jnp.array([0.3, 1e-20], "float64")
        tx = ok.kadam(0.1, epsilon=1e-30)
        updates, state = tx.update(gradient, tx.init(params), params)
        rate, beta_1, beta_2 = float(np.float32(0.1)), 0.9, 0.999  # Keras's learning rate is a float32 variable.
        m, v = 0.3 * (1 - beta_1), 0.09 * (1 - beta_2)
        expected = -m * (rate * np.sqrt(1 - beta_2) / (1 - beta_1)) / (np.sqrt(v) + 1e-30)
        np.testing.assert_allclose(updates[0], expected, rtol=1e-15)
        assert optax.tree.get(state, "learning_rate").dtype == jnp.float32
