"""Record what the installed Keras computes on the inputs of this folder, in the form of the files beside this one.

    python tests/golden/record.py k3-jax-eager [--out DIR] [CASE ...]     keras 3 with jax
    python tests/golden/record.py tfk-eager [--out DIR] [CASE ...]        tf_keras with tensorflow-cpu
    python tests/golden/record.py schedules [--out DIR]                   keras 3 with jax

A run is written to `DIR/<case>.npz` as `<runner>/<slot>` [snapshots, parameters] beside what that file already holds,
so that a later Keras can be compared with the one recorded. `manifest.json` says what a case is; `inputs.npz` holds the
initial parameters and the gradients.
"""

import argparse
import json
import os
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
MANIFEST = json.loads((HERE / "manifest.json").read_text())
RUNNERS = ("k3-jax-eager", "k3-jax-jit", "k3-jax64-eager", "tfk-eager", "legacy-eager")
# The names of a slot's variables end so: Keras 3's paths, tf_keras's and legacy Keras's names.
SLOTS = {
    "m": ("_momentum", "/m/", "/m:"),
    "v": ("_velocity", "/v/", "/v:"),
    "vhat": ("_velocity_hat", "/vhat/", "/vhat:"),
    "avg": ("_average", "average/", None),
    "acc": ("_gradient_accumulator", None, None),
}


def split(flat):
    """The five parameters of a case, from their flat concatenation."""
    pieces = ((v["offset"], v["offset"] + v["size"], v["shape"]) for v in MANIFEST["variables"])
    return [flat[start:stop].reshape(shape) for start, stop, shape in pieces]


def flatten(arrays):
    arrays = [np.asarray(array) for array in arrays]
    wide = np.float64 if arrays[0].dtype == np.float64 else np.float32
    return np.concatenate([array.astype(wide).ravel() for array in arrays])


def gradients(case, step, inputs):
    """The gradients of a step, counted from 1: arrays, None, or (indices, rows) for the table of a sparse case."""
    found = [g * np.float32(case.get("loss_scale", 1.0)) for g in split(inputs[case["grads"]][step - 1])]
    if sparse := case.get("sparse"):
        indices, rows = (inputs[f"{case['grads']}_{part}"][step - 1] for part in ("idx", "val"))
        found[2] = (indices, rows)
        if sparse == "densified":
            found[2] = np.zeros((17, 5), np.float32)
            np.add.at(found[2], indices, rows)
    period, missing = case.get("none", (0, None))
    return [None if period and step % period == 0 and i == missing else g for i, g in enumerate(found)]


def keras3(case, inputs, jit):
    """Yield (variables by slot, iterations) after every step of Keras 3 on JAX."""
    import jax
    import jax.numpy as jnp
    import keras
    from jax.experimental.sparse import BCOO

    arguments = dict(case["full_kwargs"]["k3"])
    if isinstance(arguments["learning_rate"], dict):
        name, config = arguments["learning_rate"]["$schedule"]
        arguments["learning_rate"] = getattr(keras.optimizers.schedules, name)(**config)
    inner = optimizer = getattr(keras.optimizers, case["cls"])(**arguments)
    constrained = [keras.constraints.NonNeg() if i == case.get("constraint") else None for i in range(5)]
    variables = [
        keras.Variable(jnp.asarray(p).astype(case["dtype"]), dtype=case["dtype"], name=f"v{i}")
        for i, p in enumerate(split(inputs["init"]))
    ]
    for variable, constraint in zip(variables, constrained, strict=True):
        variable.constraint = constraint
    if exclude := case.get("exclude_vars"):
        optimizer.exclude_from_weight_decay(var_list=[variables[i] for i in exclude])
    if wrapper := case.get("wrapper"):
        scale, growth = wrapper["initial_scale"], wrapper["dynamic_growth_steps"]
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=scale, dynamic_growth_steps=growth)
    optimizer.build(variables)
    inner._iterations.assign(case.get("start_iteration", 0))

    def array(g):
        if isinstance(g, tuple):
            return BCOO((jnp.asarray(g[1]), jnp.asarray(g[0])[:, None]), shape=(17, 5))
        return None if g is None else jnp.asarray(g).astype(case["dtype"])

    stateless = jit or "wrapper" in case
    apply = optimizer.stateless_apply
    apply = jax.jit(apply) if jit else apply
    for step in range(1, case["n_steps"] + 1):
        found = [array(g) for g in gradients(case, step, inputs)]
        if stateless:
            values, slots = apply([v.value for v in optimizer.variables], found, [v.value for v in variables])
            for variable, value in zip([*variables, *optimizer.variables], [*values, *slots], strict=True):
                variable.assign(value)
        else:
            optimizer.apply(found, variables)
        yield variables, [(v.path, v.value) for v in optimizer.variables], int(inner._iterations.value)


def tf_keras(case, inputs, legacy):
    """Yield (variables by slot, iterations) after every step of tf_keras, or of its legacy optimizer."""
    import tensorflow as tf
    import tf_keras

    optimizers = tf_keras.optimizers.legacy if legacy else tf_keras.optimizers
    arguments = dict(case["full_kwargs"]["legacy" if legacy else "tfk"])
    if isinstance(arguments["learning_rate"], dict):
        name, config = arguments["learning_rate"]["$schedule"]
        arguments["learning_rate"] = getattr(tf_keras.optimizers.schedules, name)(**config)
    if case["cls"] == "AdamW":  # It does not know this one.
        arguments.pop("adaptive_epsilon", None)
    if legacy:  # It takes a None for a number.
        arguments = {name: value for name, value in arguments.items() if value is not None}
    variables = [
        tf.Variable(
            tf.cast(p, case["dtype"]),
            name=f"v{i}",
            constraint=tf_keras.constraints.NonNeg() if i == case.get("constraint") else None,
        )
        for i, p in enumerate(split(inputs["init"]))
    ]
    inner = optimizer = getattr(optimizers, case["cls"])(**arguments)
    if exclude := case.get("exclude_vars"):
        optimizer.exclude_from_weight_decay(var_list=[variables[i] for i in exclude])
    if wrapper := case.get("wrapper"):
        scale, growth = wrapper["initial_scale"], wrapper["dynamic_growth_steps"]
        scaled = tf_keras.mixed_precision.LossScaleOptimizer
        optimizer = scaled(inner, initial_scale=scale, dynamic_growth_steps=growth)
    if not legacy:
        inner.build(variables)
    inner.iterations.assign(case.get("start_iteration", 0))

    def tensor(g):
        if isinstance(g, tuple):
            return tf.IndexedSlices(tf.constant(g[1]), tf.constant(g[0]), dense_shape=(17, 5))
        return None if g is None else tf.cast(g, case["dtype"])

    for step in range(1, case["n_steps"] + 1):
        found = [tensor(g) for g in gradients(case, step, inputs)]
        if "wrapper" in case:
            found = optimizer.get_unscaled_gradients(found)
        optimizer.apply_gradients(zip(found, variables, strict=True))
        slots = inner.variables() if legacy else inner.variables
        yield variables, [(v.name, v.numpy()) for v in slots], int(inner.iterations)


def record(case, runner, inputs):
    """Return `{"<runner>/<slot>": [snapshots, parameters]}` of one case."""
    if runner.startswith("k3"):
        steps = keras3(case, inputs, jit=runner.endswith("jit"))
    else:
        steps = tf_keras(case, inputs, legacy=runner.startswith("legacy"))
    which = 0 if runner.startswith("k3") else 1 if runner.startswith("tfk") else 2
    kept = {}
    for step, (variables, slots, iterations) in enumerate(steps, start=1):
        if step not in case["snapshots"]:
            continue
        kept.setdefault("p", []).append(flatten(variables))
        kept.setdefault("it", []).append(iterations)
        for slot, names in SLOTS.items():
            mark = names[which]
            of_slot = [x for path, x in slots if mark and (path.endswith(mark) if which == 0 else mark in path)]
            if of_slot:
                kept.setdefault(slot, []).append(flatten(of_slot))
    return {f"{runner}/{slot}": np.asarray(value) for slot, value in kept.items()}


def record_schedules(out):
    import jax.numpy as jnp
    import keras

    with np.load(HERE / "schedules.npz") as old:
        arrays = dict(old)
    for entry in json.loads((HERE / "schedules.json").read_text())["k3j"]:
        schedule = getattr(keras.optimizers.schedules, entry["cls"])(**entry["kwargs"])
        arrays[f"k3j/{entry['id']}"] = np.array([schedule(jnp.int32(step)) for step in arrays["k3j/steps"]])
    np.savez_compressed(out / "schedules.npz", **arrays)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runner", choices=[*RUNNERS, "schedules"])
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    options = parser.parse_intermixed_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("JAX_ENABLE_X64", "1" if options.runner == "k3-jax64-eager" else "0")
    if options.runner == "schedules":
        return record_schedules(options.out)
    inputs = np.load(HERE / "inputs.npz")
    for case in MANIFEST["cases"]:
        if case["runners"].get(options.runner) != "ok" or options.cases and case["id"] not in options.cases:
            continue
        path = options.out / f"{case['id']}.npz"
        arrays = dict(np.load(path)) if path.exists() else {}
        np.savez_compressed(path, **arrays | record(case, options.runner, inputs))
        print(case["id"], flush=True)


if __name__ == "__main__":
    main()
