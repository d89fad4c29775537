"""Replays of the recorded runs of the real Keras, and measures of how far two arrays are apart."""

import contextlib
import json
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_kadam as ok

GOLDEN = pathlib.Path(__file__).parent / "golden"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
CASES = {case["id"]: case for case in MANIFEST["cases"]}
GENERATIONS = {"k3": "keras3", "tfk": "tf_keras", "legacy": "legacy"}
SLOTS = {"m": "mu", "v": "nu", "vhat": "nu_max", "avg": "average", "acc": "accumulator"}


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays)


INPUTS = golden("inputs")


@contextlib.contextmanager
def keras_rules():
    """Run Keras itself under the usual rules of promotion, and ignore its warnings."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def split(flat):
    """Return the five parameters of every recorded case, from their flat concatenation."""
    pieces = ((v["offset"], v["offset"] + v["size"], v["shape"]) for v in MANIFEST["variables"])
    return [flat[start:stop].reshape(shape) for start, stop, shape in pieces]


def flatten(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def ulp(a, b):
    """Return the largest distance in units in the last place. Denormals are 0, as JAX flushes them; NaN equals NaN."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    integers, wide = {4: (np.int32, np.int64), 8: (np.int64, object)}[a.dtype.itemsize]

    def ordered(x):
        bits = np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x).view(integers).astype(wide)
        return np.where(bits < 0, -(bits & np.iinfo(integers).max), bits)

    both_nan = np.isnan(a) & np.isnan(b)
    return int(np.where(both_nan, 0, np.abs(ordered(a) - ordered(b))).max(initial=0))


def share(a, b, scale):
    """Return the largest distance as a share of `scale`; what is infinite or NaN in both is at no distance."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return float(np.where(same, 0, np.abs(np.subtract(a, b, dtype=np.float64))).max(initial=0) / scale)


def build(case, generation, learning_rate=None):
    """Return the transformation of a recorded case, from the arguments that Keras was given."""
    arguments = dict(case["full_kwargs"][generation])
    if isinstance(arguments["learning_rate"], dict):
        name, config = arguments["learning_rate"]["$schedule"]
        arguments["learning_rate"] = learning_rate or getattr(ok.schedules, name)(**config)
    if "exclude_vars" in case:
        arguments["weight_decay_mask"] = [i not in case["exclude_vars"] for i in range(len(MANIFEST["variables"]))]
    named = GENERATIONS[generation]
    tx = {"Adam": ok.kadam, "AdamW": ok.kadamw}[case["cls"]](**arguments, generation=named)
    if wrapper := case.get("wrapper"):
        tx = ok.dynamic_loss_scale(tx, wrapper["initial_scale"], wrapper["dynamic_growth_steps"], generation=named)
    return tx


def gradients(case, step):
    """Return the gradients of a step, counted from 1, as the recorded Keras got them; rows of a table are added up."""
    rows = split(INPUTS[case["grads"]][step - 1])
    if case.get("sparse"):
        rows[2] = np.zeros_like(rows[2])
        np.add.at(rows[2], INPUTS[f"{case['grads']}_idx"][step - 1], INPUTS[f"{case['grads']}_val"][step - 1])
    scaled = [jnp.asarray(row * np.float32(case.get("loss_scale", 1.0))).astype(case["dtype"]) for row in rows]
    period, missing = case.get("none", (0, None))
    return [None if period and step % period == 0 and i == missing else g for i, g in enumerate(scaled)]


def replay(case, tx, jit, steps=200):
    """Yield the number of each step, and the parameters and the state after it."""
    params = [jnp.asarray(p).astype(case["dtype"]) for p in split(INPUTS["init"])]
    state = tx.init(params)
    if start := case.get("start_iteration"):
        state = optax.tree.set(state, iterations=start)

    def step(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        if (kept := case.get("constraint")) is not None:
            params[kept] = params[kept] * (params[kept] >= 0).astype(params[kept].dtype)
        return params, state

    step = jax.jit(step, donate_argnums=(1, 2)) if jit else step
    for i in range(1, min(steps, case["n_steps"]) + 1):
        params, state = step(gradients(case, i), state, params)
        yield i, params, state
