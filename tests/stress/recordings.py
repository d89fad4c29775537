"""Recordings of every backend and generation, replayed: does the optimizer agree? It needs a Keras of that kind.

    python -m tests.stress.recordings KIND

KIND is one of those of `tests.stress.live_models`, whose docstring says what to install for each. Each case is fitted
for 8 steps by `fit`, which is run eagerly, after 2 steps that are not recorded; its recording is replayed op by op and
jitted. It holds if the op by op one is within 1e-5 of the movement. A model with an embedding gives TensorFlow's
optimizers rows (`IndexedSlices`): Keras 3 on TensorFlow adds up the squares of a row that comes twice, where all others
square the sum, so that it must differ there, and in the table alone. Last, a `fit` that compiles must be refused, and
leave no file.
"""

import os
import pathlib
import sys
import tempfile
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np

import optax_kadam as ok
from optax_kadam.commands._replay import replayed
from optax_kadam.keras_files.comparing._recording import read_recording

KIND = sys.argv[1] if len(sys.argv) > 1 else ""
os.environ["KERAS_BACKEND"] = KIND if KIND in ("jax", "torch") else "tensorflow"  # Keras is imported below.
RNG = np.random.default_rng(0)
TOKENS, Y = RNG.integers(0, 7, (40, 3)), RNG.normal(size=(40, 2)).astype("f4")
X = RNG.normal(size=(40, 4)).astype("f4")
BASE = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "clipvalue": {"clipvalue": 0.05},
    "clipnorm": {"clipnorm": 0.1},
    "global_clipnorm": {"global_clipnorm": 0.1},
}
SINCE_TF_KERAS = BASE | {
    "AdamW, bias excluded": {"weight_decay": 0.01},
    "average": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
}
ARGUMENTS = {
    "legacy": BASE | {"decay": {"decay": 0.1}, "two clips": {"clipvalue": 0.05, "clipnorm": 0.1}},
    "tf_keras": SINCE_TF_KERAS | {"adaptive_epsilon": {"adaptive_epsilon": True, "epsilon": 1e-3}},
}.get(
    KIND,
    SINCE_TF_KERAS
    | {"accumulation": {"gradient_accumulation_steps": 2}, "loss_scale_factor": {"loss_scale_factor": 8.0}},
)


def family():
    if KIND in ("tf_keras", "legacy"):
        import tf_keras as keras  # pyright: ignore[reportMissingImports]: see above.
    else:
        import keras
    return keras, keras.optimizers.legacy if KIND == "legacy" else keras.optimizers


def cases(keras, optimizers):
    """Yield the name of a case, whether its model has an embedding, and the optimizer."""
    for name, arguments in ARGUMENTS.items():
        optimizer = (optimizers.AdamW if "AdamW" in name else optimizers.Adam)(learning_rate=0.05, **arguments)
        if "excluded" in name:
            optimizer.exclude_from_weight_decay(var_names=["bias"])
        yield name, False, optimizer
    yield "schedule", False, optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, 20))
    if KIND not in ("tf_keras", "legacy"):
        yield "loss scale", False, optimizers.LossScaleOptimizer(optimizers.Adam(0.05), dynamic_growth_steps=2)
    yield "embedding", True, optimizers.Adam(0.05)


def model(keras, optimizer, has_embedding, **arguments):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    if has_embedding:
        begin = [layers.Input((3,), dtype="int32"), layers.Embedding(7, 2, name="emb"), layers.Flatten()]
    else:
        begin = [layers.Input((4,))]
    rest = [
        layers.Dense(8, activation="tanh", name="one"),
        layers.BatchNormalization(name="bn"),
        layers.Dense(2, name="two"),
    ]
    made = keras.Sequential([*begin, *rest], name="m")
    made.compile(optimizer, "mse", **arguments)
    return made


def fit(made, has_embedding, start, steps):
    inputs = (TOKENS if has_embedding else X)[4 * start : 4 * (start + steps)]
    made.fit(inputs, Y[4 * start : 4 * (start + steps)], batch_size=4, verbose=0, shuffle=False)


def shown(result):
    if not result.differing:
        return "0 ULP"
    furthest = max(apart.distance.ulp for apart in result.differing)
    return f"{furthest} ULP, {result.furthest.distance.share:.1e}"


def run(keras, name, has_embedding, optimizer, path):
    made = model(keras, optimizer, has_embedding, run_eagerly=True, jit_compile=False)
    fit(made, has_embedding, 0, 2)
    with ok.record(made.optimizer, path, steps=8):
        fit(made, has_embedding, 2, 8)
    recording = read_recording(path)
    ways = {way: replayed(recording, is_jitted=way == "jitted") for way in ("op by op", "jitted")}
    kinds = {type(g).__name__ for step in recording.steps for g in step.gradients.values()}
    held = len(recording.steps) == 8 and recording.start.iterations == 2
    if KIND == "tensorflow" and has_embedding:
        far = {apart.name for apart in ways["op by op"].differing if apart.distance.share > 1e-5}
        held &= far == {"m/emb/embeddings", "nu of m/emb/embeddings"}
    else:
        held &= ways["op by op"].is_within(None, 1e-5)
    texts = [f"{way} {shown(result):22}" for way, result in ways.items()]
    print(f"{name:22} {' '.join(texts)} {'held' if held else 'NOT HELD'} {sorted(kinds)}", flush=True)
    return held


def is_refused(keras, optimizers, path):
    """Return whether a fit that compiles is refused, in the words of `record`."""
    made = model(keras, optimizers.Adam(0.05), False, run_eagerly=False)
    try:
        with ok.record(made.optimizer, path):
            fit(made, False, 0, 2)
    except ValueError as error:
        print("a compiled fit is refused:", "must be handed numbers" in str(error) and not path.exists())
        return "must be handed numbers" in str(error) and not path.exists()
    print("a compiled fit is not refused")
    return KIND == "torch"  # It compiles nothing.


def main():
    warnings.simplefilter("ignore")
    keras, optimizers = family()
    print(KIND, keras.__name__, keras.__version__, "jax", jax.__version__)
    with tempfile.TemporaryDirectory() as folder:
        good = [run(keras, *case, pathlib.Path(folder) / f"{i}.npz") for i, case in enumerate(cases(keras, optimizers))]
        good.append(is_refused(keras, optimizers, pathlib.Path(folder) / "refused.npz"))
    print(f"{sum(good)} of {len(good)} cases hold")
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
