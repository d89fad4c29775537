"""Live models: read as their files are, trained on here, and written back for Keras to go on.

Keras 3 is here on JAX. The models of tf_keras are stand-ins with the attributes that are read, filled from recorded
files; `python -m tests.stress.live_models` does with the real ones, and with other backends, what is done here.
"""

import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from ..helpers import keras_rules, share

keras = pytest.importorskip("keras")

FILES = pathlib.Path(__file__).parents[1] / "golden" / "files"
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 4)).astype("f4"), RNG.normal(size=(8, 2)).astype("f4")


@pytest.fixture(autouse=True)
def rules():
    with keras_rules():
        keras.utils.clear_session()
        keras.utils.set_random_seed(7)
        yield


# The models, each built and not compiled yet.


def sequential(policy="float32"):
    dense, norm = keras.layers.Dense(3, activation="tanh"), keras.layers.BatchNormalization()
    layers = [keras.Input((4,)), dense, norm, keras.layers.Dense(2, dtype="float32")]
    return keras.Sequential(layers, name="net") if policy == "float32" else scaled(layers)


def scaled(layers):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential(layers, name="net")
        model.build((None, 4))
        return model
    finally:
        keras.config.set_dtype_policy("float32")


def shared():
    """The last layer is used twice; two layers, of which one is frozen, have the same paths."""
    inputs = keras.Input((4,))
    frozen = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="d")], name="frozen")
    trained = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="d")], name="trained")
    frozen.trainable = False
    twice, last = keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)
    return keras.Model(inputs, last(twice(trained(frozen(twice(inputs))))), name="net")


class Odd(keras.Model):
    """Its layers are called in another order than they were made in, and in the file they stand in a third."""

    def __init__(self):
        super().__init__(name="odd")
        self.zeta, self.alpha = keras.layers.Dense(4, name="zeta"), keras.layers.Dense(4, name="alpha")
        self.mid = keras.layers.BatchNormalization(name="mid")
        self.scale = self.add_weight(shape=(2,), initializer="ones", name="scale")
        self.end = keras.layers.Dense(2, name="end")

    def call(self, x, training=False):
        return self.scale * self.end(self.zeta(self.mid(self.alpha(x), training=training)))


def odd():
    model = Odd()
    model(X)
    return model


DECAY = keras.optimizers.schedules.CosineDecay(0.05, 20)
CASES = {
    "plain": (sequential, lambda: keras.optimizers.Adam(0.05)),
    "amsgrad": (sequential, lambda: keras.optimizers.Adam(0.05, amsgrad=True)),
    "average": (sequential, lambda: keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9)),
    "accumulation": (sequential, lambda: keras.optimizers.Adam(0.05, gradient_accumulation_steps=2)),
    "all": (
        sequential,
        lambda: keras.optimizers.Adam(0.05, amsgrad=True, use_ema=True, gradient_accumulation_steps=2, clipnorm=1.0),
    ),
    "schedule": (sequential, lambda: keras.optimizers.Adam(DECAY)),
    "AdamW": (sequential, lambda: keras.optimizers.AdamW(DECAY, weight_decay=0.01)),
    "policy": (lambda: sequential("mixed_float16"), lambda: keras.optimizers.Adam(0.05)),
    "loss scale": (
        sequential,
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.05), dynamic_growth_steps=2),
    ),
    "shared and frozen": (shared, lambda: keras.optimizers.Adam(0.05)),
    "odd": (odd, lambda: keras.optimizers.Adam(0.05)),
}


DAILY = ("all", "AdamW", "loss scale", "odd")


def compiled(case):
    model, optimizer = CASES[case]
    model = model()
    model.compile(optimizer(), "mse")
    return model


def trained(case):
    """Return a model and its optimizer whose variables have all kinds of values, as after some steps."""
    model, rng = compiled(case), np.random.default_rng(1)
    model.optimizer.build(model.trainable_variables)
    for variable in model.weights + model.optimizer.variables:
        if variable.shape:
            variable.assign(rng.uniform(0.01, 1.0, variable.shape))
        elif variable.dtype == "int32":
            variable.assign(3)
    return model


def train(model, steps=3):
    for _ in range(steps):
        model.train_on_batch(X, Y)


def same(found, wanted):
    """Hold that two trainings are the same, to the bit, the trained variables in the same order."""
    whole = [{"registered_name": None} | training.config for training in (found, wanted)]
    assert whole[0] == whole[1]  # A file does not say that the loss scale of a policy has no registered name.
    for field in ("generation", "iterations", "learning_rate", "step_counter", "dynamic_scale"):
        assert getattr(found, field) == getattr(wanted, field), field
    assert found.variables.keys() == wanted.variables.keys()
    assert list(found.variables)[: len(wanted.mu or ())] == list(wanted.mu or ())
    for field in ("variables", "mu", "nu", "nu_max", "average", "accumulator"):
        one, two = getattr(found, field), getattr(wanted, field)
        assert (one is None) == (two is None), field
        for path in two or ():
            assert one[path].dtype == two[path].dtype and np.array_equal(one[path], two[path]), (field, path)


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_read_as_its_file_is(case, tmp_path):
    model = trained(case)
    found = ok.KerasTraining.from_model(model)
    model.save(tmp_path / "x.keras")
    variables = model.trainable_variables if case in ("odd", "shared and frozen") else None
    same(found, ok.load_keras(tmp_path / "x.keras", trainable=variables))
    assert found.order == "live" and list(found.mu) == [variable.path for variable in model.trainable_variables]
    assert found.iterations == 3 and all(array.all() for array in found.mu.values())


def gradient_of(model):
    """Return a jitted function of the trainable variables and the others: it gives scaled gradients, and the others."""

    def loss(trainable, others, scale):
        predicted, others = model.stateless_call(trainable, others, X, training=True)
        return scale * jnp.mean((predicted - Y) ** 2), others

    return jax.jit(jax.grad(loss, has_aux=True))


def values(variables):
    return [variable.value for variable in variables]


def assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def steps_of_keras(model, count):
    """Take steps as `fit` does, but that the gradients are computed by a program of their own."""
    optimizer, gradient = model.optimizer, gradient_of(model)
    step = jax.jit(lambda slots, g, params: optimizer.stateless_apply(slots, g, params), donate_argnums=(0, 2))
    for _ in range(count):
        scale = optimizer.dynamic_scale.value if hasattr(optimizer, "dynamic_scale") else jnp.float32(1)
        params, others = values(model.trainable_variables), values(model.non_trainable_variables)
        gradients, others = gradient(params, others, scale)
        params, slots = step(values(optimizer.variables), gradients, params)
        assign(model.trainable_variables + model.non_trainable_variables, params + others)
        assign(optimizer.variables, slots)


def steps_here(model, count):
    """Read the training out of the model, take the steps here, and write it back."""
    training, gradient = ok.KerasTraining.from_model(model), gradient_of(model)
    tx = training.transformation()
    params, state = training.restore([training.variables[path] for path in training.mu])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    others = values(model.non_trainable_variables)
    for _ in range(count):
        gradients, others = gradient(params, others, optax.tree.get(state, "dynamic_scale", jnp.float32(1)))
        params, state = step(params, state, gradients)
    moving = {v.path: o for v, o in zip(model.non_trainable_variables, others, strict=True) if "moving" in v.path}
    ok.update_model(model, params, state, non_trainable=moving)
    return params, state


def all_values(model):
    return [np.array(variable) for variable in (*model.weights, *model.optimizer.variables)]


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in DAILY else pytest.mark.slow) for c in CASES])
def test_steps_here_are_steps_of_keras(case):
    """3 steps in Keras, 3 here, 3 in Keras: the bits of Keras's own 9, in each variable of model and optimizer."""
    model = compiled(case)
    train(model)
    third = all_values(model)
    steps_of_keras(model, 3)
    train(model)
    wanted = all_values(model)
    assign([*model.weights, *model.optimizer.variables], third)
    steps_here(model, 3)
    train(model)
    for before, one, two in zip(third, all_values(model), wanted, strict=True):
        # A decayed parameter is rounded twice (docs/how-exact.md), and the gradients see it.
        bound = 1e-5 if case == "AdamW" else 0.0
        assert (one == two).all() or share(one, two, np.abs(two - before).max()) <= bound


def test_the_order_is_the_optimizers_own(tmp_path):
    """Both layers have the same shapes, and the optimizer was built in another order than the model's."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4)])
    optimizer = keras.optimizers.Adam(0.05)
    model.compile(optimizer, "mse")
    backwards = model.trainable_variables[::-1]
    optimizer.build(backwards)
    optimizer.apply([jnp.full(variable.shape, float(i)) for i, variable in enumerate(backwards)])
    training = ok.KerasTraining.from_model(model)
    assert list(training.mu) == [variable.path for variable in backwards]
    assert [float(mu.max()) for mu in training.mu.values()] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    params, state = training.restore({path: training.variables[path] for path in training.mu})
    ok.update_model(model, params, optax.tree.set(state, mu=optax.tree.get(state, "nu")))
    for mu, nu in zip(optimizer._momentums, optimizer._velocities, strict=True):
        assert np.array_equal(np.asarray(mu), np.asarray(nu))


def test_neither_side_shares_its_memory():
    model = compiled("plain")
    train(model)
    training = ok.KerasTraining.from_model(model)
    read = {path: array.copy() for path, array in training.variables.items()}
    train(model)
    assert all(np.array_equal(array, training.variables[path]) for path, array in read.items())
    params, state = steps_here(model, 2)
    written = [np.array(leaf) for leaf in jax.tree.leaves((params, state))]
    train(model)  # Keras donates its arrays.
    assert all(map(np.array_equal, written, jax.tree.leaves((params, state))))
    kept = all_values(model)
    jax.jit(lambda *leaves: [leaf + 1 for leaf in leaves], donate_argnums=range(len(params)))(*params)
    assert all(map(np.array_equal, kept, all_values(model)))


class Doubles(keras.callbacks.Callback):
    """Within an epoch, it doubles what is in the model, and holds that Keras goes on from there."""

    def on_train_batch_end(self, batch, logs=None):
        model = self.of
        training = ok.KerasTraining.from_model(model)
        assert training.iterations == batch + 1
        self.found.append(training.variables["net/dense/kernel"])
        params, state = training.restore({path: training.variables[path] for path in training.mu})
        ok.update_model(model, jax.tree.map(lambda leaf: 2 * leaf, params), state)


def test_a_callback_reads_and_writes_within_an_epoch():
    model, callback = compiled("plain"), Doubles()
    model.optimizer.learning_rate = 0.0
    callback.of, callback.found = model, []  # It does not go through its own `model`, where Keras puts the state back.
    start = np.array(model.layers[0].kernel)
    model.fit(X, Y, batch_size=2, epochs=1, verbose=0, callbacks=[callback])
    for power, found in enumerate(callback.found):
        assert np.array_equal(found, start * 2**power)
    assert len(callback.found) == 4 and np.array_equal(np.array(model.layers[0].kernel), start * 16)


class GAN(keras.Model):
    """Two models with an optimizer each; Keras itself knows of none."""

    def __init__(self):
        super().__init__(name="gan")
        self.generator = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)], name="generator")
        self.discriminator = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="discriminator")
        self.g_optimizer, self.d_optimizer = keras.optimizers.Adam(0.1), keras.optimizers.AdamW(0.2)
        self.g_optimizer.build(self.generator.trainable_variables)
        self.d_optimizer.build(self.discriminator.trainable_variables)


def test_each_optimizer_of_a_gan_is_read_and_written():
    gan = GAN()
    with pytest.raises(ValueError, match="`model` must be compiled. Received: a model without an optimizer. Call"):
        ok.KerasTraining.from_model(gan)
    for part, optimizer in ((gan.generator, gan.g_optimizer), (gan.discriminator, gan.d_optimizer)):
        training = ok.KerasTraining.from_model(gan, optimizer=optimizer)
        assert list(training.mu) == [variable.path for variable in part.trainable_variables]
        assert len(training.variables) == 4
        params, state = training.restore({path: training.variables[path] for path in training.mu})
        updates, state = training.transformation().update(params, state, params)
        ok.update_model(gan, optax.apply_updates(params, updates), state, optimizer=optimizer)
        assert optimizer.iterations.value == 1 and optimizer._momentums[0].value.any()
    assert gan.g_optimizer._momentums[0].value.any()


def test_an_optimizer_that_was_not_built_has_no_slots(tmp_path):
    model = compiled("plain")
    model.save(tmp_path / "x.keras")
    training = ok.KerasTraining.from_model(model)
    same(training, ok.load_keras(tmp_path / "x.keras"))
    assert training.mu is None
    message = "`model` must have an optimizer that was built. Received: an optimizer without slots. Train it for a step"
    with pytest.raises(ValueError, match=message):
        ok.update_model(model, dict(training.variables), ok.kadam().init({}))


class Mine(keras.optimizers.Adam):
    """An Adam of the user's, which may compute anything."""


def float8():
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(16)])
    model.quantize("float8")
    return model


def with_optimizer(optimizer, model=sequential):
    model = model()
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model


REFUSED = [
    (
        lambda: ("x.keras",),
        TypeError,
        "`model` must be a Keras model. Received: model='x.keras'. Read a file with",
    ),
    (
        lambda: (sequential(),),
        ValueError,
        "`model` must be compiled. Received: a model without an optimizer. Call `model",
    ),
    (
        lambda: (keras.Sequential([keras.layers.Dense(2)]), keras.optimizers.Adam()),
        ValueError,
        "`model` must be built. Received: a model without variables. Call it once, or `model.build",
    ),
    (
        lambda: (with_optimizer("sgd"),),
        ValueError,
        "`optimizer` must be Keras's own Adam or AdamW, or a Loss.*Received: an optimizer of keras.*SGD. If the model",
    ),
    (lambda: (with_optimizer(Mine()),), ValueError, "Received: an optimizer of .*test_live.Mine. If"),
    (
        lambda: (with_optimizer(keras.optimizers.LossScaleOptimizer(Mine())),),
        ValueError,
        "Received: an optimizer of .*test_live.Mine. If",
    ),
    (
        lambda: (sequential(), with_optimizer("adam").optimizer),
        ValueError,
        "`optimizer` must train variables of `model` alone. Received: an optimizer with 'net/dense_2/kernel', which is",
    ),
    (
        lambda: (with_optimizer("adam", float8),),
        ValueError,
        "Every trained variable must have the same slots. Received: 8 variables, 2 of mu, 2 of nu. Keras keeps none",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_what_cannot_be_read_is_refused(make, error, message):
    model, *optimizer = make()
    with pytest.raises(error, match=message):
        ok.KerasTraining.from_model(model, **dict(zip(["optimizer"], optimizer, strict=False)))


def test_nothing_is_written_unless_everything_fits():
    model = trained("plain")
    training = ok.KerasTraining.from_model(model)
    params, state = training.restore({path: training.variables[path] for path in training.mu})
    changed = {path: leaf + 1 for path, leaf in params.items()}
    last = list(params)[-1]
    bad = [
        (
            (changed | {last: jnp.zeros(3)}, state),
            {},
            r"shapes and dtypes of the model. Received: float32\[3\] for '" + last,
        ),
        (({path: changed[path] for path in list(changed)[:-1]}, state), {}, f"no leaf for '{last}'"),
        (
            (changed, ok.kadam(amsgrad=True).init(params)),
            {},
            "`opt_state` must be what the model's optimizer keeps: mu, nu. ",
        ),
        (
            (changed, (state, ok.scale_by_kadam().init(params))),
            {},
            "must hold each slot of a parameter once. Received: 'mu' of",
        ),
        ((changed, state), {"non_trainable": {"bn": {"x": jnp.zeros(3)}}}, "no variable for 'bn/x'"),
        ((changed, state), {"rename": {last: "other"}}, "no variable for"),
    ]
    before = all_values(model)
    for arguments, keywords, message in bad:
        with pytest.raises(ValueError, match=message):
            ok.update_model(model, *arguments, **keywords)
        assert all(map(np.array_equal, before, all_values(model)))
    with pytest.raises(TypeError, match="`params` must hold arrays. Received: float for"):
        ok.update_model(model, changed | {last: 0.0}, state)
    assert all(map(np.array_equal, before, all_values(model)))
    renamed = {path.removeprefix("net/").replace("dense/", "first/"): leaf for path, leaf in changed.items()}
    state = ok.kadam(0.5).init(renamed)
    ok.update_model(model, renamed, state, rename={"dense": "first"})
    assert np.array_equal(np.asarray(model.layers[0].kernel), changed["net/dense/kernel"])
    assert model.optimizer.iterations.value == 0 and model.optimizer.learning_rate.value == 0.5


def test_a_rate_that_keras_computes_is_left_alone():
    for rate in (DECAY, lambda: 0.25):
        model = with_optimizer(keras.optimizers.Adam(rate))
        training = ok.KerasTraining.from_model(model)
        assert training.learning_rate is None
        params = {path: training.variables[path] for path in training.mu}
        _, state = training.restore(params, tx=ok.kadam(0.5))
        ok.update_model(model, params, state)
        assert model.optimizer._learning_rate is rate


class StandIn:
    """A variable of TensorFlow's."""

    def __init__(self, name, value):
        self.name, self.value = name, np.array(value)
        self.shape, self.dtype = self.value.shape, self.value.dtype

    def numpy(self):
        return self.value

    def assign(self, value):
        self.value = value


def tf_keras_optimizer(training, weights, slots):
    keys = {f"{weight.name}_key": i for i, weight in enumerate(weights[: len(training.mu)])}
    lists = {"mu": "_momentums", "nu": "_velocities", "nu_max": "_velocity_hats"}
    return {
        "_index_dict": dict(sorted(keys.items())),  # Not in the order of the indices.
        "_var_key": lambda self, variable: f"{variable.name}_key",
        **{lists[slot]: variables for slot, variables in slots.items()},
    }


def legacy_optimizer(training, weights, slots):
    names = {"mu": "m", "nu": "v", "nu_max": "vhat"}
    of = {
        (id(weight), names[slot]): variable
        for slot, variables in slots.items()
        for weight, variable in zip(weights, variables, strict=False)
    }
    count = StandIn("iter", np.int64(training.iterations))
    return {
        "weights": [count, *of.values()],
        "iterations": count,
        "_iterations": count,
        "get_slot_names": lambda self: list(names.values())[: len(slots)],
        "get_slot": lambda self, variable, name: of[id(variable), name],
    }


def stand_in(training):
    """Return a model of tf_keras with this training; its variables are not in the order of the optimizer."""
    weights = [StandIn(path, array) for path, array in training.variables.items()]
    slots = {
        slot: [StandIn(f"Adam/{slot}/{path}", array) for path, array in kept.items()]
        for slot in ("mu", "nu", "nu_max")
        if (kept := getattr(training, slot)) is not None
    }
    is_legacy = training.generation == "legacy"
    attributes = (legacy_optimizer if is_legacy else tf_keras_optimizer)(training, weights, slots)
    optimizer = type("Adam", (), {"__module__": "tf_keras.src.optimizers.adam"} | attributes)()
    optimizer.get_config = lambda: training.config["config"]
    optimizer.learning_rate = StandIn("learning_rate", np.float32(training.learning_rate))
    optimizer._iterations = attributes.get("_iterations", StandIn("iteration", np.int64(training.iterations)))
    return types.SimpleNamespace(optimizer=optimizer, weights=weights[::-1], trainable_variables=weights[:7][::-1])


@pytest.mark.parametrize("name", ["tfk/adam.h5", "tfk/amsgrad.keras", "legacy/amsgrad.h5", "legacy/decay_clip.h5"])
def test_models_of_tf_keras_are_read_and_written(name):
    training = ok.load_keras(FILES / name)
    model = stand_in(training)
    found = ok.KerasTraining.from_model(model)
    for field in ("generation", "iterations", "learning_rate"):
        assert getattr(found, field) == getattr(training, field)
    assert found.config["config"] == training.config["config"]
    assert list(found.mu) == list(training.mu)
    for slot in ("variables", "mu", "nu", "nu_max"):
        one, two = getattr(found, slot) or {}, getattr(training, slot) or {}
        assert one.keys() == two.keys() and all(np.array_equal(one[path], two[path]) for path in two)
    params, state = found.restore({path: found.variables[path] for path in found.mu})
    updates, state = found.transformation().update(params, state, params)
    decays = training.config["config"].get("decay", 0.0) > 0.0  # The state has the rate of the step then.
    state = state if decays else optax.tree.set(state, learning_rate=0.5)
    ok.update_model(model, optax.apply_updates(params, updates), state)
    again = ok.KerasTraining.from_model(model)
    assert again.iterations == training.iterations + 1
    assert again.learning_rate == (training.learning_rate if decays else 0.5)
    for slot in ("mu", "nu", "nu_max"):
        kept = optax.tree.get(state, slot)
        assert kept is None or all(np.array_equal(getattr(again, slot)[path], kept[path]) for path in kept)


def test_a_variable_of_another_model_and_a_callable_rate_are_seen_in_legacy_optimizers():
    model = stand_in(ok.load_keras(FILES / "legacy/adam.h5"))
    model.optimizer.learning_rate = 0.01  # What the callable returned.
    training = ok.KerasTraining.from_model(model)
    assert training.learning_rate is None
    with pytest.raises(ValueError, match="code that it holds is never run.*Pass `learning_rate=` to take its place"):
        training.transformation()
    del model.weights[-1]
    with pytest.raises(ValueError, match="Received: an optimizer with 'Adam/mu/emb/embeddings:0', which is none of"):
        ok.KerasTraining.from_model(model)
