"""The six schedules give one answer, op by op and jitted: that of the recorded grid and of the live Keras."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_kadam as ok

from .helpers import GOLDEN, golden, ulp
from .sparing import mostly_slow

GRID = json.loads((GOLDEN / "schedules.json").read_text())["k3j"]
RECORDED = golden("schedules")
CLASSES = ["ExponentialDecay", "InverseTimeDecay", "PiecewiseConstantDecay"]
CLASSES += ["PolynomialDecay", "CosineDecay", "CosineDecayRestarts"]


def rates(schedule, steps):
    return np.array([schedule(jnp.int32(step)) for step in steps])


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("entry", GRID, ids=[f"{entry['id']}-{entry['cls']}" for entry in GRID])
def test_recorded_grid(entry, jit):
    schedule = getattr(ok.schedules, entry["cls"])(**entry["kwargs"])
    found = rates(jax.jit(schedule) if jit else schedule, RECORDED["k3j/steps"])
    assert found.dtype == np.float32
    assert ulp(found, RECORDED[f"k3j/{entry['id']}"].astype(np.float32)) == 0


# The schedules that divide by a constant. The compiled Keras is wrong over periods of 41, 47, 55, 61 and multiples of 7
# and 30 steps.
DIVIDING = [
    ("ExponentialDecay", {"decay_rate": 0.5, "staircase": True}),
    ("InverseTimeDecay", {"decay_rate": 0.7}),
    ("InverseTimeDecay", {"decay_rate": 0.7, "staircase": True}),
    ("PolynomialDecay", {"power": 0.5, "end_learning_rate": 0.01}),
    ("PolynomialDecay", {"power": 1.0, "cycle": True}),
    ("CosineDecay", {"alpha": 0.1}),
    ("CosineDecay", {"alpha": 0.1, "warmup_target": 0.7, "warmup_steps": 13}),
    ("CosineDecayRestarts", {"t_mul": 1.0, "m_mul": 0.9, "alpha": 0.05}),
    ("CosineDecayRestarts", {"t_mul": 1.5}),
]


@pytest.mark.parametrize(
    "steps_per_period", mostly_slow(zip([7, 30, 41, 47, 55, 60, 61, 1000]), lambda steps: steps in (7, 41, 60))
)
@pytest.mark.parametrize(("name", "config"), DIVIDING)
def test_jitted_is_eager_keras(name, config, steps_per_period):
    keras = pytest.importorskip("keras")
    steps_name = "first_decay_steps" if name == "CosineDecayRestarts" else "decay_steps"
    config = {"initial_learning_rate": 0.1, steps_name: steps_per_period, **config}
    ours = getattr(ok.schedules, name)(**config)
    steps = [0, 1, 2, 13, 14, *(steps_per_period * i + j for i in (1, 3, 8) for j in (0, 1)), 10**6]
    with jax.numpy_dtype_promotion("standard"):
        expected = rates(getattr(keras.optimizers.schedules, name)(**config), steps)
    assert ulp(rates(ours, steps), expected) == 0
    assert ulp(rates(jax.jit(ours), steps), expected) == 0


def test_the_compiled_keras_is_wrong_where_ours_is_not():
    keras = pytest.importorskip("keras")
    arguments = {"initial_learning_rate": 0.01, "decay_steps": 60, "end_learning_rate": 0.0001, "power": 0.5}
    with jax.numpy_dtype_promotion("standard"):
        assert np.isnan(jax.jit(keras.optimizers.schedules.PolynomialDecay(**arguments).__call__)(jnp.int32(70)))
    assert jax.jit(ok.schedules.PolynomialDecay(**arguments))(jnp.int32(70)) == np.float32(0.0001)


@pytest.mark.parametrize("entry", GRID, ids=[f"{entry['id']}-{entry['cls']}" for entry in GRID])
def test_config_goes_there_and_back(entry):
    keras = pytest.importorskip("keras")
    ours = getattr(ok.schedules, entry["cls"])(**entry["kwargs"])
    theirs = getattr(keras.optimizers.schedules, entry["cls"])(**entry["kwargs"])
    assert ours.get_config() == theirs.get_config()
    assert type(ours).from_config(theirs.get_config()) == ours
    assert hash(ours) == hash(type(ours).from_config(ours.get_config()))


def test_the_names_are_keras_s():
    assert sorted(ok.schedules.__all__) == sorted(CLASSES)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda s: s.ExponentialDecay(0.1, 0, 0.9),
            "`decay_steps` must be a finite number > 0. Received: decay_steps=0",
        ),
        (lambda s: s.InverseTimeDecay(0.1, -1, 0.9), "`decay_steps` must be .* > 0"),
        (lambda s: s.PolynomialDecay(0.1, 0), "`decay_steps` must be .* > 0"),
        (lambda s: s.CosineDecay(0.1, 0), "`decay_steps` must be .* > 0"),
        (lambda s: s.CosineDecayRestarts(0.1, 0), "`first_decay_steps` must be .* > 0"),
        (lambda s: s.PiecewiseConstantDecay([1, 2], [1.0, 2.0]), "`boundaries` must .* one shorter than `values`"),
        (lambda s: s.PiecewiseConstantDecay([], [1.0]), "`boundaries` must hold at least one step"),
        (lambda s: s.ExponentialDecay(float("nan"), 1, 0.9), "`initial_learning_rate` must be a finite number"),
    ],
)
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make(ok.schedules)


def test_a_string_is_no_number():
    with pytest.raises(TypeError, match="`decay_rate` must be a finite number. Received: decay_rate='0.9'"):
        ok.schedules.ExponentialDecay(0.1, 10, "0.9")
