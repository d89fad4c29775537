"""Record files that the installed Keras saves, and how its training goes on, in the form of the folders beside it.

    python tests/golden/record_files.py training tf_keras [--out DIR]   tf_keras with tensorflow-cpu
    python tests/golden/record_files.py training legacy [--out DIR]     its legacy optimizer
    python tests/golden/record_files.py samples k3j [--out DIR]         keras 3 with jax
    python tests/golden/record_files.py samples k3t [--out DIR]         keras 3 with tensorflow-cpu
    python tests/golden/record_files.py samples tfk [--out DIR]         tf_keras
    python tests/golden/record_files.py samples legacy [--out DIR]      tf_keras with its legacy optimizer
    python tests/golden/record_files.py samples tf2.4 [--out DIR]       tensorflow-cpu 2.4 with Python 3.8

`training` writes to `DIR/<generation>/<variant>/` (DIR is `training/` here) what a model was saved as after step 20 of
`apply_gradients`, run eagerly: `saved.keras`, `saved.h5` and `saved_ckpt/ck`, where they hold the optimizer's state.
`run.npz` tells how it went on to step 40: `names`, `config` (the optimizer's, in JSON), `grad/<i>` [20, ...] (row k is
the gradient of step 21 + k), `weight20/<i>`, `weight40/<i>` and at step 40 `m40/<i>`, `v40/<i>`, `vhat40/<i>`,
`average40/<i>`; i counts `model.trainable_variables`.

`samples` writes to `DIR/<generation>/` (DIR is `files/` here) the files of every format after 20 steps of training and
their `<optimizer>.expected.npz`: `weight/<i>` of `weight_names`, the slots `m/<i>`, `v/<i>`, `vhat/<i>` of
`trainable_names`, `iterations`, and `optvar/<i>`, the optimizer's own list, of `optimizer_variable_names`.
"""

import argparse
import json
import os
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
STEPS = 20
VARIANTS = {
    "tf_keras": {
        "clipnorm": {"clipnorm": 0.5},
        "amsgrad": {"amsgrad": True},
        "decay_ema": {"weight_decay": 0.02, "use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 15},
    },
    "legacy": {"clipnorm": {"clipnorm": 0.5}, "amsgrad": {"amsgrad": True}, "decay": {"decay": 0.01}},
}
# A legacy optimizer's state is not in a .keras file; tf_keras's .h5 is 45 kB, and one of them does.
FORMATS = {
    ("tf_keras", "clipnorm"): ("keras", "h5", "ckpt"),
    "tf_keras": ("keras", "ckpt"),
    "legacy": ("h5", "ckpt"),
}
SAMPLES = {
    "adam": {},
    "amsgrad": {"amsgrad": True},
    "decay_clip": {"decay": 0.01, "clipnorm": 1.0},
}
# The lists in which an optimizer that is not a legacy one keeps a slot.
SLOTS = {"m": "_momentums", "v": "_velocities", "vhat": "_velocity_hats", "average": "_model_variables_moving_average"}


def small_model(keras, small):
    """Seven trainable variables, and two that are not."""
    rows, width, tokens, units = (5, 2, 3, 4) if small else (11, 4, 5, 6)
    return keras.Sequential(
        [
            keras.layers.InputLayer((tokens,), dtype="int32", name="tok"),
            keras.layers.Embedding(rows, width, name="emb"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(units, activation="relu", name="d1"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Dense(3, name="d2"),
        ],
        name="m",
    )


def slots(optimizer, variables):
    """The optimizer's slots by `<slot>/<i>`, in the order of the variables."""
    if hasattr(optimizer, "get_slot_names"):
        names = optimizer.get_slot_names()
        return {f"{s}/{i}": optimizer.get_slot(v, s).numpy() for s in names for i, v in enumerate(variables)}
    lists = ((slot, getattr(optimizer, attribute, None) or []) for slot, attribute in SLOTS.items())
    return {f"{slot}/{i}": np.asarray(value) for slot, values in lists for i, value in enumerate(values)}


def plain(value):
    """A number of numpy as Python's own, for JSON."""
    return value.item()


def save(model, optimizer, form, path):
    """Save to `path`, a pathlib.Path without an ending, in one form."""
    if form in ("keras", "h5"):
        model.save(f"{path}.{form}")
    elif form == "weights":
        model.save_weights(f"{path}.weights.h5")
    elif form == "shards":
        model.save_weights(f"{path}.weights.json", max_shard_size=1000 / 1024**3)
    elif form == "npz":
        from keras.src.saving import saving_lib

        saving_lib.save_model(model, f"{path}.npzfmt.keras", weights_format="npz")
    elif form == "export":
        model.export(f"{path}_export", verbose=False)
    elif form == "savedmodel":
        model.save(f"{path}_savedmodel", save_format="tf")
    elif form == "tfweights":
        model.save_weights(f"{path}_tfweights/ckpt", save_format="tf")
    elif form == "ckpt":
        import tensorflow as tf

        tf.train.Checkpoint(model=model, optimizer=optimizer).write(f"{path}_ckpt/ck")


def record_training(generation, out):
    import tensorflow as tf
    import tf_keras

    optimizers = tf_keras.optimizers.legacy if generation == "legacy" else tf_keras.optimizers
    for variant, arguments in VARIANTS[generation].items():
        folder = out / generation / variant
        folder.mkdir(parents=True, exist_ok=True)
        tf_keras.utils.set_random_seed(7)
        model = small_model(tf_keras, small=True)
        optimizer = optimizers.Adam(learning_rate=0.01, **arguments)
        model.compile(optimizer, loss="mse")
        variables = model.trainable_variables
        rng = np.random.default_rng(11)
        # Of sizes from 1e-4 to 1, as those of the layers of one model are.
        scales = np.logspace(-4, 0, len(variables))
        gradients = [
            [(rng.normal(size=v.shape) * scale).astype(np.float32) for v, scale in zip(variables, scales, strict=True)]
            for _ in range(2 * STEPS)
        ]
        run = {"names": np.array([v.name for v in variables])}
        for step, found in enumerate(gradients, start=1):
            optimizer.apply_gradients(zip(map(tf.constant, found), variables, strict=True))
            if step in (STEPS, 2 * STEPS):
                run |= {f"weight{step}/{i}": v.numpy() for i, v in enumerate(variables)}
            if step == STEPS:
                for form in FORMATS.get((generation, variant), FORMATS[generation]):
                    save(model, optimizer, form, folder / "saved")
        for name, value in slots(optimizer, variables).items():
            slot, i = name.split("/")
            run[f"{slot}{2 * STEPS}/{i}"] = value
        run |= {f"grad/{i}": np.stack(g) for i, g in enumerate(zip(*gradients[STEPS:], strict=True))}
        run["config"] = np.array(json.dumps(optimizer.get_config(), default=plain))
        np.savez_compressed(folder / "run.npz", **run)
        print(generation, variant, flush=True)


def record_samples(generation, out):
    if keras3 := generation.startswith("k3"):
        import keras
    elif generation == "tf2.4":
        from tensorflow import keras
    else:
        import tf_keras as keras
    forms = {
        "tf2.4": ("h5", "savedmodel"),
        "k3j": ("keras", "npz", "weights", "shards", "h5"),
        "k3t": ("keras", "npz", "weights", "shards", "ckpt", "export", "h5"),
    }.get(generation, ("keras", "weights", "h5", "ckpt", "savedmodel", "tfweights"))
    optimizers = keras.optimizers.legacy if generation == "legacy" else keras.optimizers
    folder = out / generation
    folder.mkdir(parents=True, exist_ok=True)
    for name, arguments in SAMPLES.items():
        if name not in {"k3t": ("adam",), "tf2.4": ("amsgrad",), "legacy": SAMPLES}.get(
            generation, ("adam", "amsgrad")
        ):
            continue
        np.random.seed(3)
        if generation != "tf2.4":
            keras.utils.set_random_seed(3)
        model = small_model(keras, small=False)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizers.Adam(learning_rate=0.01, **arguments), loss)
        optimizer = model.optimizer
        rng = np.random.default_rng(3)
        for _ in range(STEPS):
            tokens, labels = rng.integers(0, 11, (8, 5)), rng.integers(0, 3, (8,))
            model.train_on_batch(tokens.astype(np.int32), labels.astype(np.int32))

        def label(variable):
            return variable.path if keras3 else variable.name

        own = optimizer.variables() if callable(optimizer.variables) else optimizer.variables
        expected = {
            "trainable_names": np.array([label(v) for v in model.trainable_variables]),
            "weight_names": np.array([label(v) for v in model.weights]),
            "optimizer_variable_names": np.array([label(v) for v in own]),
            "iterations": np.asarray(optimizer.iterations.numpy() if generation == "tf2.4" else optimizer.iterations),
        }
        expected.update({f"weight/{i}": np.asarray(v) for i, v in enumerate(model.weights)})
        expected.update({f"optvar/{i}": np.asarray(v) for i, v in enumerate(own)})
        np.savez(folder / f"{name}.expected.npz", **expected, **slots(optimizer, model.trainable_variables))
        config = {"get_config": optimizer.get_config(), "serialize": keras.optimizers.serialize(optimizer)}
        (folder / f"{name}.optconfig.json").write_text(json.dumps(config, indent=1, default=plain))
        # The .h5 comes last: in Keras 3 it takes the optimizer out of the configuration that the others write.
        for form in sorted(forms, key=lambda form: form == "h5"):
            if name != "adam" and form in ("npz", "shards"):  # One of each will do.
                continue
            save(model, optimizer, form, folder / name)
        print(generation, name, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, generations in (("training", VARIANTS), ("samples", ("k3j", "k3t", "tfk", "legacy", "tf2.4"))):
        arguments = commands.add_parser(command)
        arguments.add_argument("generation", choices=list(generations))
        arguments.add_argument("--out", type=pathlib.Path, default=HERE / {"samples": "files"}.get(command, command))
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow" if options.generation == "k3t" else "jax"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    {"training": record_training, "samples": record_samples}[options.command](options.generation, options.out)


if __name__ == "__main__":
    main()
