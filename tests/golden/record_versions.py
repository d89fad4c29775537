"""Record what the installed Keras 3 or TensorFlow saves of one small model, in every format that it writes.

    python tests/golden/record_versions.py NAME [--out DIR]

    tf2.1                      Python 3.7    tensorflow-cpu==2.1.4 "numpy<1.20" "protobuf<3.21" "h5py<3"
    tf2.4                      Python 3.8    tensorflow-cpu==2.4.4 "numpy<1.20" "protobuf<3.21" "h5py<3.2"
    tf2.8                      Python 3.8    tensorflow-cpu==2.8.4 "numpy<1.24" "protobuf<3.21"
    tf2.12, tf2.13, tf2.15     Python 3.10   tensorflow-cpu==2.12.1, 2.13.1, 2.15.1
    keras3.0, keras3.3         Python 3.11   keras==3.0.5, 3.3.3, tensorflow-cpu==2.16.2 "numpy<2"
    keras3.6, keras3.9         Python 3.11   keras==3.6.0, 3.9.2, tensorflow-cpu==2.18.1
    keras3.15                  Python 3.11   keras==3.15.1, tensorflow-cpu==2.21.0

Writes `DIR/NAME.tar.xz` (DIR is `files/versions/` here), where NAME is that of the version: `keras3.3`, `tf2.8`.
The model has a Bidirectional LSTM, three equal dense layers and a batch normalisation, and is trained for three steps
of Adam, once for each of `variants`. In the archive there are, for each variant:

    <variant>.keras, .weights.h5, .h5      where the version writes them
    <variant>_ckpt/                        the folder of a `CheckpointManager`
    <variant>_savedmodel/                  `Model.save` of TensorFlow; `<variant>_export`: `Model.export` of Keras 3
    <variant>.expected.npz                 `weight/<i>` of `weight_names`; the slots `m/<i>`, `v/<i>`, `vhat/<i>`,
                                           `average/<i>`, `accum/<i>` of `trainable_names`; `iterations`,
                                           `config`, the serialized optimizer; and `step_counter` and `dynamic_scale`
                                           of a loss scale around
"""

import argparse
import inspect
import json
import os
import pathlib
import sys
import tarfile
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).parent
STEPS = 3
# The lists in which an optimizer that is not a legacy one keeps a slot.
SLOTS = {
    "m": "_momentums",
    "v": "_velocities",
    "vhat": "_velocity_hats",
    "average": "_model_variables_moving_average",
    "accum": "_accumulated_gradients",
}


def variants(keras):
    """The optimizer of each variant: what is handed to `compile`."""
    adam, scale = keras.optimizers.Adam, loss_scale(keras)
    known = inspect.signature(adam).parameters
    wanted = {"amsgrad": True, "use_ema": True, "gradient_accumulation_steps": 2}
    return {
        "named": lambda: "adam",
        "plain": lambda: adam(learning_rate=0.01),
        "flat": lambda: adam(learning_rate=0.01),  # Without the Bidirectional.
        "all": lambda: adam(learning_rate=0.01, **{name: v for name, v in wanted.items() if name in known}),
        "scaled": lambda: scale(adam(learning_rate=0.01)),
        "policy": lambda: adam(learning_rate=0.01),
    }


def loss_scale(keras):
    """The loss scale of this version around an optimizer, with a scale that three steps change once."""
    if not hasattr(keras, "mixed_precision"):  # Keras 3.
        return lambda inner: keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0, dynamic_growth_steps=2)
    around = getattr(keras.mixed_precision, "LossScaleOptimizer", None)
    if around is not None:
        return lambda inner: around(inner, initial_scale=8.0, dynamic_growth_steps=2)
    from tensorflow import mixed_precision

    around, scale = keras.mixed_precision.experimental.LossScaleOptimizer, mixed_precision.experimental.DynamicLossScale
    return lambda inner: around(inner, scale(initial_loss_scale=8.0, increment_period=2))


def set_policy(keras, name):
    """Set the policy of the layers that are made next."""
    modules = [getattr(keras, name, None) for name in ("config", "mixed_precision")]
    modules.append(getattr(modules[1], "experimental", None))
    names = ("set_dtype_policy", "set_global_policy", "set_policy")  # The newest first.
    next(getattr(module, setter) for setter in names for module in modules if hasattr(module, setter))(name)


def small_model(keras, variant):
    first = keras.layers.Flatten() if variant == "flat" else keras.layers.Bidirectional(keras.layers.LSTM(2))
    layers = [first, keras.layers.Dense(4), keras.layers.Dense(4)]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dense(4)]
    x = inputs = keras.Input((3, 2))
    if variant != "all":
        model = keras.Sequential(layers)
        model.build((None, 3, 2))
        return model
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def number(value):
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


def expectations(keras, model, is_keras3):
    """What a reader must find of the model and of its optimizer."""
    label = "path" if is_keras3 else "name"
    outer = model.optimizer
    optimizer = next((getattr(outer, n) for n in ("inner_optimizer", "_optimizer") if hasattr(outer, n)), outer)
    trained = model.trainable_variables
    config = json.dumps(keras.optimizers.serialize(outer), default=lambda value: value.item())
    expected = {
        "config": np.array(config),
        "trainable_names": np.array([getattr(v, label) for v in trained]),
        "weight_names": np.array([getattr(v, label) for v in model.weights]),
        "iterations": number(getattr(optimizer, "_iterations", optimizer.iterations)),
        "learning_rate": number(optimizer.learning_rate),
    }
    expected.update({f"weight/{i}": number(v) for i, v in enumerate(model.weights)})
    if hasattr(optimizer, "get_slot_names"):
        names = optimizer.get_slot_names()
        slots = {f"{s}/{i}": optimizer.get_slot(v, s) for s in names for i, v in enumerate(trained)}
    else:
        lists = {slot: getattr(optimizer, attribute, None) or [] for slot, attribute in SLOTS.items()}
        slots = {f"{slot}/{i}": v for slot, values in lists.items() for i, v in enumerate(values)}
    expected.update({name: number(value) for name, value in slots.items()})
    if optimizer is not outer:
        state = getattr(outer, "_loss_scale", None)
        kept = {
            "step_counter": next(
                (
                    getattr(o, n)
                    for o in (outer, state)
                    for n in ("step_counter", "dynamic_counter", "_num_good_steps")
                    if hasattr(o, n)
                ),
                None,
            ),
            "dynamic_scale": outer.dynamic_scale if is_keras3 else getattr(outer, "loss_scale", None),
        }
        if callable(kept["dynamic_scale"]) and not hasattr(kept["dynamic_scale"], "numpy"):
            kept["dynamic_scale"] = kept["dynamic_scale"]()
        expected.update({name: number(value) for name, value in kept.items() if value is not None})
    return expected


def save(model, form, path):
    """Save to `path`, a path without an ending, in one form."""
    if form == "tf_keras":  # TensorFlow 2.12 takes a path that ends in `.keras` for one of a `.h5` otherwise.
        model.save(f"{path}.keras", save_format="keras_v3")
    elif form in ("keras", "h5"):
        model.save(f"{path}.{form}")
    elif form == "weights":
        model.save_weights(f"{path}.weights.h5")
    elif form == "ckpt":
        import tensorflow as tf

        checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        tf.train.CheckpointManager(checkpoint, f"{path}_ckpt", max_to_keep=1).save()
    elif form == "savedmodel":
        model.save(f"{path}_savedmodel", save_format="tf")
    elif form == "export":
        model.export(f"{path}_export")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "files" / "versions")
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    is_keras3 = options.name.startswith("keras3")
    if is_keras3:
        import keras
    else:
        from tensorflow import keras
    import tensorflow as tf

    forms = ("keras", "weights", "ckpt") if is_keras3 else ("h5", "ckpt")
    if not is_keras3 and tuple(map(int, tf.__version__.split(".")[:2])) >= (2, 12):
        forms = ("tf_keras", "weights", *forms)
    folder = pathlib.Path(tempfile.mkdtemp())
    for variant, optimizer in variants(keras).items():
        keras.backend.clear_session()
        tf.random.set_seed(3)
        set_policy(keras, "mixed_float16" if variant == "policy" else "float32")
        model = small_model(keras, variant)
        model.compile(optimizer(), "mse")
        rng = np.random.RandomState(3)
        for _ in range(STEPS):
            model.train_on_batch(rng.normal(size=(8, 3, 2)).astype("f"), rng.normal(size=(8, 4)).astype("f"))
        np.savez(folder / (variant + ".expected.npz"), **expectations(keras, model, is_keras3))
        last = {"plain": ("export",) if is_keras3 else ("savedmodel",), "scaled": () if is_keras3 else ("savedmodel",)}
        # The .h5 of Keras 3 takes the optimizer out of the configuration that the others write.
        for form in (*forms, *last.get(variant, ()), *(("h5",) if is_keras3 else ())):
            try:
                save(model, form, folder / variant)
            except Exception as error:
                print(options.name, variant, form, "is not written:", repr(error)[:200], file=sys.stderr, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(options.out / (options.name + ".tar.xz"), "w:xz") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                about = archive.gettarinfo(str(path), str(path.relative_to(folder)))
                about.uid = about.gid = about.mtime = 0
                about.uname = about.gname = ""
                with open(path, "rb") as file:
                    archive.addfile(about, file)
    print(options.name, sorted(str(p.relative_to(folder)) for p in folder.iterdir()))


if __name__ == "__main__":
    main()
