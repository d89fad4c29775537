"""Keras's configs: of every generation and form into the optimizer that they describe, and ours into Keras's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok
from optax_kadam.config._config import OptimizerConfig, from_config, parse, to_config

from ..helpers import GOLDEN, ulp

keras = pytest.importorskip("keras")
# NumPy warns of the `__array__` of Keras's variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

SAMPLES = sorted((GOLDEN / "files").glob("*/*.optconfig.json"))
RANDOM = np.random.default_rng(7)
PARAMS = [RANDOM.normal(size=shape).astype(np.float32) for shape in [(5, 3), (3,), ()]]
GRADIENTS = [[jnp.asarray(RANDOM.normal(size=p.shape), jnp.float32) for p in PARAMS] for _ in range(4)]
OVERFLOWING = [GRADIENTS[0], [jnp.full_like(g, jnp.inf) for g in GRADIENTS[1]], *GRADIENTS[2:]]

# What `get_config()` returns in keras 3.15 and tf_keras 2.21, to the letter.
ADAM = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-07, "amsgrad": False}
BASE = {"weight_decay": None, "clipnorm": None, "global_clipnorm": None, "clipvalue": None}
BASE |= {"use_ema": False, "ema_momentum": 0.99, "ema_overwrite_frequency": None}
KERAS3 = {"name": "adam", "learning_rate": 0.01, **BASE}
KERAS3 |= {"loss_scale_factor": None, "gradient_accumulation_steps": None, **ADAM}
TF_KERAS = {"name": "Adam", **BASE, "jit_compile": False, "is_legacy_optimizer": False}
TF_KERAS |= {"learning_rate": np.float32(0.001), **ADAM}
LEGACY = {"name": "Adam", "learning_rate": 0.001, "decay": 0.0, **ADAM}
SCALING = {"dynamic": True, "initial_scale": 32768.0, "dynamic_growth_steps": 2000}
FIXED = {"dynamic": False, "initial_scale": 3.0, "dynamic_growth_steps": None}


def serialized(config, class_name="Adam", module="keras.optimizers", registered_name=None):
    return {"module": module, "class_name": class_name, "config": config, "registered_name": registered_name}


def older(config, class_name="Adam"):
    return {"class_name": class_name, "config": config}


def scaled(inner, class_name="LossScaleOptimizerV3", **scaling):
    module = "tf_keras.src.mixed_precision.loss_scale_optimizer"
    return serialized({"inner_optimizer": inner, **(scaling or SCALING)}, class_name, module, class_name)


def run(tx, gradients=GRADIENTS):
    params, state = [jnp.array(p) for p in PARAMS], tx.init([jnp.array(p) for p in PARAMS])
    for g in gradients:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def run_keras(optimizer, gradients=GRADIENTS):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = [jnp.array(p) for p in PARAMS]
        optimizer.build([keras.Variable(p) for p in PARAMS])
        slots = [v.value for v in optimizer.variables]
        for g in gradients:
            params, slots = optimizer.stateless_apply(slots, g, params)
    return params


def assert_same(found, expected):
    assert [ulp(p, q) for p, q in zip(found, expected, strict=True)] == [0] * len(PARAMS)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: f"{path.parent.name}-{path.name.split('.')[0]}")
def test_every_recorded_config_is_read_as_it_was_meant(sample):
    generations = {"k3j": "keras3", "k3t": "keras3", "tfk": "tf_keras", "legacy": "legacy", "tf2.4": "legacy"}
    generation = generations[sample.parent.name]
    forms = json.loads(sample.read_text())
    expected = {k: v for k, v in forms["get_config"].items() if k not in ("jit_compile", "is_legacy_optimizer")}
    for form in (*forms.values(), older(forms["get_config"])):
        before = json.dumps(form)
        assert parse(form) == OptimizerConfig(generation, expected)
        assert_same(run(from_config(form)), run(ok.kadam(**expected, generation=generation)))
        assert json.dumps(form) == before


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"learning_rate": 0.3, "beta_1": np.float32(0.8), "beta_2": 0.95, "epsilon": 1e-3, "amsgrad": True},
        {"clipnorm": 0.5, "gradient_accumulation_steps": 2},
        {"global_clipnorm": np.float64(0.7), "loss_scale_factor": 3.0},
        {"clipvalue": 0.01, "use_ema": True, "ema_momentum": 0.5},
    ],
)
def test_a_config_goes_from_keras_to_ours_and_back(arguments):
    optimizer = keras.optimizers.Adam(**arguments)
    config = keras.optimizers.serialize(optimizer)
    expected = run_keras(optimizer)
    for form in (json.loads(json.dumps(config)), optimizer.get_config()):
        assert_same(run(from_config(form)), expected)
    ours = to_config(**{"name": optimizer.name, **arguments})
    assert ours == config and list(ours["config"]) == list(config["config"])
    assert keras.optimizers.deserialize(json.loads(json.dumps(ours))).get_config() == config["config"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ExponentialDecay", (0.1, 2, 0.5, True)),
        ("InverseTimeDecay", (0.1, 2, 0.5)),
        ("PiecewiseConstantDecay", (np.array([1, 2]), (0.1, np.float32(0.05), 0.01))),
        ("PolynomialDecay", (0.1, 3, 0.01, 2.0)),
        ("CosineDecay", (np.float32(0.01), 3, 0.1, "warm", 0.1, 2)),
        ("CosineDecayRestarts", (0.1, 2, 1.0, 0.5)),
    ],
)
def test_a_schedule_goes_from_keras_to_ours_and_back(name, arguments):
    schedule = getattr(keras.optimizers.schedules, name)(*arguments)
    config = keras.optimizers.Adam(schedule, name="adam").get_config()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rates = [float(schedule(jnp.asarray(step))) for step in range(6)]
    for rate in (config["learning_rate"], older(schedule.get_config(), name), schedule):
        built = parse({**KERAS3, "learning_rate": rate}).arguments["learning_rate"]
        assert [float(built(jnp.asarray(step))) for step in range(6)] == rates
        again = keras.optimizers.deserialize(json.loads(json.dumps(to_config(learning_rate=built))))
        assert again.get_config() == to_config(learning_rate=built)["config"]
    assert_same(run(from_config(config)), run_keras(keras.optimizers.Adam(schedule)))


def test_a_lambda_is_told_and_replaced():
    with pytest.warns(UserWarning, match="lambda"):
        config = keras.optimizers.Adam(lambda: 0.1, clipnorm=1.0).get_config()
    parsed = parse(config)
    assert parsed.arguments["learning_rate"]["class_name"] == "__lambda__" and parsed.arguments["clipnorm"] == 1.0
    with pytest.raises(ValueError, match=r"`learning_rate` must be a number or one .* '__lambda__', ...}. Pass `lear"):
        parsed.transformation()
    assert_same(run(from_config(config, learning_rate=0.1)), run(ok.kadam(0.1, clipnorm=1.0)))


def test_adamw_takes_a_mask_and_has_a_decay_of_its_own():
    config, mask = keras.optimizers.serialize(keras.optimizers.AdamW(0.1)), [True, False, False]
    assert_same(run(from_config(config, weight_decay_mask=mask)), run(ok.kadamw(0.1, weight_decay_mask=mask)))
    assert parse(older({}, "AdamW")).arguments["weight_decay"] == 0.004
    assert keras.optimizers.deserialize(to_config(weight_decay=0.004)).weight_decay == 0.004


def test_a_loss_scale_of_keras3_is_read():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1), 7.0, 2)
    config = keras.optimizers.serialize(optimizer)
    expected = run_keras(optimizer, OVERFLOWING)
    before_3_12 = {**config["config"], **BASE, "loss_scale_factor": None, "dynamic": True}
    config["config"]["inner_optimizer"]["config"]["loss_scale_factor"] = 4.0  # Keras switches it off.
    for form in (config, before_3_12):
        assert_same(run(from_config(form), OVERFLOWING), expected)


SCHEDULE = serialized({"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.5}, "ExponentialDecay")
RATE = {"learning_rate": ok.schedules.ExponentialDecay(0.1, 10, 0.5)}
CLIPS = {"clipnorm": 1.0, "clipvalue": 0.5}
TF_2_3 = {"optimizer": older(LEGACY), "loss_scale": older({"loss_scale_value": 3.0}, "FixedLossScale")}
GROWING = older({"initial_loss_scale": 8.0, "increment_period": 5, "multiplier": 2.0}, "DynamicLossScale")
RECORDED = [  # A config, its generation, the arguments of `kadam` that it means, and the loss scale.
    (serialized(TF_KERAS | CLIPS), "tf_keras", CLIPS, None),
    (older(TF_KERAS | {"use_ema": True}, "Custom>Adam"), "tf_keras", {"use_ema": True}, None),
    (older(TF_KERAS | {"weight_decay": 0.1}, "Custom>AdamW"), "tf_keras", {"weight_decay": 0.1}, None),
    (TF_KERAS | {"adaptive_epsilon": True, "lr": 5.0}, "tf_keras", {"adaptive_epsilon": True}, None),
    (serialized(TF_KERAS | {"learning_rate": SCHEDULE}), "tf_keras", RATE, None),
    ({"jit_compile": True}, "tf_keras", {}, None),  # TensorFlow 2.9 and 2.10 wrote fewer keys.
    (serialized({}, module="keras.src.optimizers.legacy.adam"), "legacy", {}, None),
    (older(LEGACY | {"decay": 0.1}), "legacy", {"decay": 0.1}, None),
    (LEGACY | CLIPS | {"is_legacy_optimizer": True}, "legacy", CLIPS, None),
    ({"lr": 0.5, "learning_rate": 0.1, "epsilon": None}, "legacy", {"learning_rate": 0.5, "epsilon": None}, None),
    (LEGACY | {"learning_rate": older(SCHEDULE["config"], "ExponentialDecay")}, "legacy", RATE, None),
    (scaled(serialized(TF_KERAS)), "tf_keras", {}, (2.0**15, 2000)),
    (scaled(serialized(TF_KERAS), dynamic=True), "tf_keras", {}, (2.0**15, 2000)),
    (scaled(serialized(TF_KERAS), **FIXED), "tf_keras", {}, (3.0, None)),
    (scaled(older(LEGACY), "LossScaleOptimizer"), "legacy", {}, (2.0**15, 2000)),
    (older(TF_2_3, "LossScaleOptimizerV1"), "legacy", {}, (3.0, None)),
    (older(TF_2_3 | {"loss_scale": GROWING}, "LossScaleOptimizer"), "legacy", {}, (8.0, 5)),
    (older({"learning_rate": 0.1}, "adam"), "keras3", {"learning_rate": 0.1}, None),
]


@pytest.mark.parametrize(("config", "generation", "arguments", "scale"), RECORDED)
def test_older_configs_mean_these_arguments(config, generation, arguments, scale):
    parsed, expected = parse(config), ok.kadam(**arguments, generation=generation)
    given = gradients = OVERFLOWING if scale and scale[1] else GRADIENTS
    assert parsed.generation == generation
    assert scale == (parsed.loss_scale and (parsed.loss_scale.initial_scale, parsed.loss_scale.dynamic_growth_steps))
    if scale and scale[1]:
        expected = ok.dynamic_loss_scale(expected, *scale, generation=generation)
    elif scale:  # tf_keras multiplies gradients by the reciprocal of a fixed scale.
        gradients = [[g * (jnp.float32(1) / jnp.float32(scale[0])) for g in gs] for gs in GRADIENTS]
    assert_same(run(from_config(config), given), run(expected, gradients))


def test_numbers_of_every_kind_are_written():
    assert to_config(clipnorm=1.0, generation="tf_keras") == to_config(clipnorm=jnp.float32(1.0))
    assert to_config(epsilon=0)["config"]["epsilon"] == 0.0


@pytest.mark.parametrize("kind", ["__numpy__", "__tensor__"])
def test_a_number_that_keras_wrapped_has_the_value_of_its_dtype(kind):
    wrapped = {"class_name": kind, "config": {"value": 0.9, "dtype": "float32"}}
    assert parse({"beta_1": wrapped}).arguments["beta_1"] == float(np.float32(0.9))


def test_tuples_that_keras_wrapped_are_read():
    steps, rates = ({"class_name": "__tuple__", "items": items} for items in ([1, 2], [0.1, 0.05, 0.01]))
    rate = serialized({"boundaries": steps, "values": rates}, "PiecewiseConstantDecay")
    expected = ok.schedules.PiecewiseConstantDecay([1, 2], [0.1, 0.05, 0.01])
    assert parse({"learning_rate": rate}).arguments["learning_rate"] == expected


def test_an_optimizer_without_a_name_has_that_of_its_class():
    assert to_config(name=None) == to_config()
