"""Live models of every backend and generation: read, trained on here, written back. It needs a Keras of that kind.

    python -m tests.stress.live_models jax          Keras 3 on JAX
    python -m tests.stress.live_models torch        Keras 3 on PyTorch
    python -m tests.stress.live_models tensorflow   Keras 3 on TensorFlow
    python -m tests.stress.live_models tf_keras     tf_keras, which needs TensorFlow
    python -m tests.stress.live_models legacy       the legacy optimizers of tf_keras

Each needs an environment of its own, which is no part of the project's: `pip install torch keras jax optax` or, for the
last three, `pip install tensorflow-cpu keras tf_keras jax optax google-crc32c`.

Each case is trained for 3 steps, and four things are held:

    read     `from_model` gives what `load_keras` reads from the file of the model, to the bit
    same     restored and written back by `update_model`, no variable has changed
    other    another state, written by `update_model`, is what `from_model` then reads
    on       3 steps here and then 3 of Keras's are 6 of Keras's: the distance is printed, in ULP and as a share of the
             movement. JAX compiles our loss scale of Keras 3, so that it rounds otherwise than op by op.
"""

import json
import os
import pathlib
import sys
import tempfile
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_kadam as ok

from ..helpers import share, ulp

KIND = sys.argv[1] if len(sys.argv) > 1 else ""
os.environ["KERAS_BACKEND"] = KIND if KIND in ("jax", "torch") else "tensorflow"  # Keras is imported below.
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 4)).astype("f4"), RNG.normal(size=(8, 2)).astype("f4")
COUNTED = ("variables", "mu", "nu", "nu_max", "average", "accumulator")
BASE = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "clipvalue": {"clipvalue": 0.1},
}
SINCE_TF_KERAS = BASE | {"average": {"use_ema": True, "ema_momentum": 0.9}, "AdamW": {"weight_decay": 0.01}}
ARGUMENTS = {
    "legacy": BASE | {"decay": {"decay": 0.1}},
    "tf_keras": SINCE_TF_KERAS,
}.get(KIND, SINCE_TF_KERAS | {"accumulation": {"gradient_accumulation_steps": 2}})


class Family:
    """What this Keras is called, and how it takes a gradient and a step."""

    def __init__(self):
        if KIND in ("tf_keras", "legacy"):
            import tf_keras as keras  # pyright: ignore[reportMissingImports]: see above.
        else:
            import keras
        self.keras, self.is_keras3 = keras, KIND not in ("tf_keras", "legacy")
        self.optimizers = keras.optimizers.legacy if KIND == "legacy" else keras.optimizers
        mixed = keras.mixed_precision if not self.is_keras3 else keras.optimizers
        self.loss_scale = mixed.LossScaleOptimizer

    def model(self):
        layers = self.keras.layers
        inner = [layers.Input((4,)), layers.Dense(3, activation="tanh"), layers.BatchNormalization()]
        frozen = layers.Dense(3)
        frozen.trainable = False
        return self.keras.Sequential([*inner, frozen, layers.Dense(2)], name="net")

    def cases(self):
        for name, arguments in ARGUMENTS.items():
            kind = self.optimizers.AdamW if name == "AdamW" else self.optimizers.Adam
            yield name, lambda kind=kind, arguments=arguments: kind(learning_rate=0.05, **arguments)
        schedule = self.keras.optimizers.schedules.CosineDecay(0.05, 20)
        yield "schedule", lambda: self.optimizers.Adam(schedule)
        yield "loss scale", lambda: self.loss_scale(self.optimizers.Adam(0.05), dynamic_growth_steps=2)

    def scale(self, optimizer):
        found = getattr(optimizer, "dynamic_scale" if self.is_keras3 else "loss_scale", None)
        return np.float32(1) if found is None else np.float32(np.asarray(found))

    def gradients(self, model):
        """Return the gradients of the loss, as arrays; the moving statistics move."""
        trainable = model.trainable_variables
        if KIND == "jax":

            def loss(values, others):
                predicted, others = model.stateless_call(values, others, X, training=True)
                return jnp.mean((predicted - Y) ** 2), others

            others = model.non_trainable_variables
            found, moved = jax.grad(loss, has_aux=True)([v.value for v in trainable], [v.value for v in others])
            for variable, value in zip(others, moved, strict=True):
                variable.assign(value)
        elif KIND == "torch":
            import torch  # pyright: ignore[reportMissingImports]: see above.

            model.zero_grad()
            torch.mean((model(X, training=True) - torch.from_numpy(Y)) ** 2).backward()
            found = [variable.value.grad.detach().clone().numpy() for variable in trainable]
        else:
            import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]: see above.

            with tf.GradientTape() as tape:
                total = tf.reduce_mean((model(X, training=True) - Y) ** 2)
            found = tape.gradient(total, [getattr(v, "value", v) if self.is_keras3 else v for v in trainable])
        return [np.array(gradient) for gradient in found]

    def step(self, model):
        """Take a step of Keras's, op by op."""
        found, optimizer = self.gradients(model), model.optimizer
        if self.is_keras3:
            trainable = model.trainable_variables
            scaled = [self.keras.ops.convert_to_tensor(g * self.scale(optimizer)) for g in found]
            if KIND != "jax" or not hasattr(optimizer, "inner_optimizer"):
                optimizer.apply(scaled, trainable)
                return
            # Op by op, the loss scale of Keras 3.15 on JAX fails.
            values = [v.value for v in optimizer.variables], scaled, [v.value for v in trainable]
            params, slots = optimizer.stateless_apply(*values)
            for variable, value in zip([*trainable, *optimizer.variables], [*params, *slots], strict=True):
                variable.assign(value)
        else:
            import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]: see above.

            optimizer.apply_gradients(zip(map(tf.constant, found), model.trainable_variables, strict=True))

    def variables(self, model):
        """Return all variables of the model and its optimizer."""
        optimizer = model.optimizer
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        own = inner.variables() if KIND == "legacy" else inner.variables
        scale = [] if inner is optimizer else self.scale_variables(optimizer)
        return [*model.weights, *own, *scale]

    def scale_variables(self, optimizer):
        if self.is_keras3:
            return [optimizer.step_counter, optimizer.dynamic_scale]
        return [optimizer.dynamic_counter, optimizer._loss_scale.current_loss_scale]

    def files(self, model, folder):
        """Yield what `load_keras` reads from the files of a model that hold all of its state."""
        if KIND != "legacy":
            model.save(f"{folder}/x.keras")
            yield ok.load_keras(f"{folder}/x.keras", trainable=model.trainable_variables)
        if KIND in ("tf_keras", "legacy"):
            import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]: see above.

            tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(f"{folder}/ck")
            config = self.keras.optimizers.serialize(model.optimizer)
            yield ok.load_keras(f"{folder}/ck", config=json.loads(json.dumps(config, default=float)))


def differences(found, wanted):
    """Return the names of what differs between two trainings."""
    names = [name for name in ("generation", "iterations") if getattr(found, name) != getattr(wanted, name)]
    # A `.keras` of tf_keras lacks the loss scale; a checkpoint of it has the present rate of a schedule.
    skipped = {"step_counter": wanted.step_counter is None, "dynamic_scale": wanted.dynamic_scale is None}
    skipped["learning_rate"] = found.learning_rate is None and found.generation == "tf_keras"
    names += [name for name, skip in skipped.items() if not skip and getattr(found, name) != getattr(wanted, name)]
    for name in COUNTED:
        one, two = getattr(found, name), getattr(wanted, name)
        if (one is None) != (two is None) or any(
            path not in (one or {}) or one[path].dtype != two[path].dtype or not np.array_equal(one[path], two[path])
            for path in two or {}
        ):
            names.append(name)
    if list(found.variables)[: len(found.mu)] != list(wanted.mu):
        names.append("order")
    return names


def here(family, model, count):
    """Take steps here on gradients of the live model, and return the state."""
    training = ok.KerasTraining.from_model(model)
    tx = training.transformation()
    params, state = training.restore([training.variables[path] for path in training.mu])
    for _ in range(count):
        scale = family.scale(model.optimizer)
        gradients = [jnp.asarray(g * scale) for g in family.gradients(model)]
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        ok.update_model(model, params, state)


def run(family, name, make, folder):
    family.keras.utils.set_random_seed(7)
    model = family.model()
    model.compile(make(), "mse")
    for _ in range(3):
        model.train_on_batch(X, Y)
    training = ok.KerasTraining.from_model(model)
    read = [differences(training, wanted) for wanted in family.files(model, folder)]
    third = [np.array(v) for v in family.variables(model)]
    params, state = training.restore({path: training.variables[path] for path in training.mu})
    ok.update_model(
        model, params, state, non_trainable={p: a for p, a in training.variables.items() if p not in params}
    )
    same = all(np.array_equal(np.asarray(v), old) for v, old in zip(family.variables(model), third, strict=True))

    moved = jax.tree.map(lambda a: a * 2 if jnp.issubdtype(a.dtype, jnp.floating) else a + 1, (params, state))
    ok.update_model(model, *moved)
    again = ok.KerasTraining.from_model(model)
    is_rate_kept = training.learning_rate is None or KIND == "legacy" and name == "decay"
    other = all(np.array_equal(again.variables[path], moved[0][path]) for path in params)
    other &= all(
        np.array_equal(getattr(again, slot)[path], kept[path])
        for slot in COUNTED[1:]
        if (kept := optax.tree.get(moved[1], slot)) is not None
        for path in params
    )
    other &= again.iterations == training.iterations + 1
    other &= is_rate_kept or again.learning_rate == 2 * training.learning_rate
    other &= training.dynamic_scale is None or again.dynamic_scale == 2 * training.dynamic_scale

    def assign(values):
        for variable, value in zip(family.variables(model), values, strict=True):
            variable.assign(value)
        if training.learning_rate is not None:
            model.optimizer.learning_rate = training.learning_rate

    assign(third)
    for _ in range(6):
        family.step(model)
    wanted = [np.array(v) for v in family.variables(model)]
    assign(third)
    here(family, model, 3)
    for _ in range(3):
        family.step(model)
    found = [np.asarray(v) for v in family.variables(model)]
    floats = [(f, w, t) for f, w, t in zip(found, wanted, third, strict=True) if w.dtype == np.float32]
    counts = all(np.array_equal(f, w) for f, w in zip(found, wanted, strict=True) if w.dtype != np.float32)
    furthest = max(ulp(f, w) for f, w, _ in floats)
    apart = max(share(f, w, max(np.abs(w - t).max(initial=0), 1e-30)) for f, w, t in floats)
    held = {"read": not any(read), "same": same, "other": bool(other), "on": counts and apart < 1e-4}
    failed = [key for key, value in held.items() if not value]
    print(f"{name:14} {furthest:4} ULP {apart:8.1e}  {f'NOT HELD: {failed} {read}' if failed else 'held'}", flush=True)
    return not failed


def main():
    warnings.simplefilter("ignore")
    family = Family()
    module = family.keras
    print(KIND, module.__name__, module.__version__, "jax", jax.__version__)
    with tempfile.TemporaryDirectory() as folder:
        good = [run(family, name, make, pathlib.Path(folder)) for name, make in family.cases()]
    print(f"{sum(good)} of {len(good)} cases hold")
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
