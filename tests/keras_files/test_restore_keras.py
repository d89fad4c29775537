"""Keras trainings carried over: into trees of every kind, on from where Keras stopped, and back."""

import dataclasses
import json
import pathlib
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_kadam as ok

from ..helpers import keras_rules, ulp

keras = pytest.importorskip("keras")

FILES = pathlib.Path(__file__).parents[1] / "golden" / "files"
TRAINING = pathlib.Path(__file__).parents[1] / "golden" / "training"


class Net(nnx.Module):
    """The model of the recorded files, in Flax."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.emb, self.d1 = nnx.Embed(11, 4, rngs=rngs), nnx.Linear(20, 6, rngs=rngs)
        self.bn, self.d2 = nnx.BatchNorm(6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)


NESTED = {
    "emb": {"embedding": (11, 4)},
    "d1": {"kernel": (20, 6), "bias": (6,)},
    "bn": {"scale": (6,), "bias": (6,)},
    "d2": {"kernel": (6, 3), "bias": (3,)},
}
STRUCTS = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), NESTED, is_leaf=lambda x: type(x) is tuple
)
SAVED = ["k3j/amsgrad.keras", "k3j/amsgrad.h5", "tfk/amsgrad.keras", "tfk/amsgrad_ckpt/ck", "legacy/amsgrad_savedmodel"]


def same(tree, wanted, words):
    """Return whether the tree holds Keras's arrays under the paths that `words` makes of Keras's."""
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }
    translated = {words(path): array for path, array in wanted.items()}
    return found.keys() == translated.keys() and all(np.array_equal(found[path], translated[path]) for path in found)


def words(path, prefix="", suffix=""):
    path = path.removeprefix("m/").removesuffix(":0").replace("embeddings", "embedding")
    return prefix + path.replace("gamma", "scale").replace("beta", "bias") + suffix


@pytest.mark.parametrize("name", SAVED)
def test_a_training_is_restored_into_trees_of_every_kind(name):
    training = ok.load_keras(FILES / name)
    assert training.mu is not None
    linen = {"params": jax.tree.map(lambda s: jnp.zeros(s.shape), STRUCTS)}
    for params, prefix, suffix in (
        (STRUCTS, "", ""),
        (linen, "params/", ""),
        (nnx.state(Net(), nnx.Param), "", "/value"),
    ):
        restored, state = training.restore(params)
        kinds = {"prefix": prefix, "suffix": suffix}
        assert jax.tree.structure(restored) == jax.tree.structure(params)
        trained = {path: training.variables[path] for path in training.mu}
        assert same(restored, trained, lambda path, kinds=kinds: words(path, **kinds))
        for slot in ("mu", "nu", "nu_max"):
            kept = getattr(training, slot)
            assert kept and same(optax.tree.get(state, slot), kept, lambda path, kinds=kinds: words(path, **kinds))
        assert optax.tree.get(state, "iterations") == 20
        assert optax.tree.get(state, "learning_rate") == np.float32(0.01)
        fresh = (training.transformation() if training.config else ok.kadam(amsgrad=True)).init(restored)
        assert jax.tree.map(jax.typeof, fresh) == jax.tree.map(jax.typeof, state)
    listed, _ = training.restore([jax.ShapeDtypeStruct(a.shape, a.dtype) for a in training.mu.values()])
    assert all(map(np.array_equal, listed, training.variables.values()))


def test_moving_statistics_are_filled():
    training = ok.load_keras(FILES / "k3j/adam.keras")
    statistics = training.fill(nnx.state(Net(), nnx.BatchStat))
    assert np.array_equal(statistics["bn"]["mean"][...], training.variables["m/bn/moving_mean"])
    assert np.array_equal(statistics["bn"]["var"][...], training.variables["m/bn/moving_variance"])
    linen = {"batch_stats": {"bn": {"mean": jnp.zeros(6), "var": jnp.zeros(6)}}}
    assert np.array_equal(training.fill(linen)["batch_stats"]["bn"]["mean"], training.variables["m/bn/moving_mean"])


def test_what_keras_did_not_train_may_be_among_the_parameters(tmp_path):
    training = ok.load_keras(FILES / "k3j/adam.keras")
    everything = {path: jax.ShapeDtypeStruct(a.shape, a.dtype) for path, a in training.variables.items()}
    listed, _ = training.restore(list(everything.values()))
    assert all(map(np.array_equal, listed, training.variables.values()))
    restored, state = training.restore(everything)
    mu = optax.tree.get(state, "mu")
    assert not mu["m/bn/moving_mean"].any() and np.array_equal(mu["m/d1/bias"], training.mu["m/d1/bias"])
    restored["m/bn/moving_mean"] += 1
    ok.save_keras(tmp_path / "x.keras", restored, state, template=FILES / "k3j/adam.keras")
    again = ok.load_keras(tmp_path / "x.keras")
    assert np.array_equal(again.variables["m/bn/moving_mean"], restored["m/bn/moving_mean"])


RENAMES = {
    "mapping": {"emb": "Embed_0", "m/d1": "mu", "d2/kernel": "out/w", "m/d2/bias": "out/b"},
    "function": lambda path: {
        "m/emb/embeddings": "Embed_0/embedding",
        "m/d1/kernel": "mu/kernel",
        "m/d1/bias": "mu/bias",
        "m/d2/kernel": "out/w",
        "m/d2/bias": "out/b",
    }.get(path),
}


@pytest.mark.parametrize("rename", RENAMES)
def test_parts_of_paths_are_renamed(rename):
    # A layer may have the name of a slot.
    params = {"Embed_0": STRUCTS["emb"], "mu": STRUCTS["d1"], "bn": STRUCTS["bn"]}
    params["out"] = {"w": STRUCTS["d2"]["kernel"], "b": STRUCTS["d2"]["bias"]}
    training = ok.load_keras(FILES / "k3j/adam.keras")
    restored, state = training.restore(params, rename=RENAMES[rename])
    assert np.array_equal(restored["out"]["w"], training.variables["m/d2/kernel"])
    assert np.array_equal(state.inner_state[0][0].mu["mu"]["bias"], training.mu["m/d1/bias"])


def test_restored_state_keeps_sharding_and_goes_into_a_chain():
    mesh = jax.make_mesh((2,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = jax.tree.map(lambda s: s, STRUCTS)
    params["d1"]["kernel"] = jax.device_put(jnp.zeros((20, 6)), sharding)
    training = ok.load_keras(FILES / "k3j/adam.keras")
    tx = optax.chain(optax.zero_nans(), training.transformation())
    restored, state = training.restore(params, tx=tx)
    moment = optax.tree.get(state, "mu")["d1"]["kernel"]
    assert restored["d1"]["kernel"].sharding == moment.sharding == sharding
    params = {"mu": jax.ShapeDtypeStruct((3,), jnp.float32)}  # A parameter with the name of a slot.
    state = ok.kadam().init(params)
    assert optax.tree.get(state, "iterations") == 0


def without(tree, *path):
    first, *rest = path
    return {k: without(v, *rest) if k == first and rest else v for k, v in tree.items() if k != first or rest}


STRUCT = jax.ShapeDtypeStruct
BAD_PARAMS = {
    r"no leaf for 'm/d2/bias' \(near: 'd1/bias'\).*`rename`": without(STRUCTS, "d2", "bias"),
    r"no variable for 'd3/kernel'": STRUCTS | {"d3": {"kernel": STRUCT((1,), jnp.float32)}},
    r"float32\[2\] at 'd2/bias', where 'm/d2/bias' is float32\[3\]": STRUCTS
    | {"d2": STRUCTS["d2"] | {"bias": STRUCT((2,), jnp.float32)}},
    r"bfloat16\[3\] at 'd2/bias', where 'm/d2/bias' is float32": STRUCTS
    | {"d2": STRUCTS["d2"] | {"bias": STRUCT((3,), jnp.bfloat16)}},
    "several leaves for 'm/d2/bias'": STRUCTS | {"m": {"d2": {"bias": STRUCT((3,), jnp.float32)}}},
    "A list must hold an array for each of Keras's trainable variables. Received: 1 arrays": [
        STRUCT((3,), jnp.float32)
    ],
}


@pytest.mark.parametrize("message", BAD_PARAMS)
def test_a_tree_that_does_not_fit_is_refused(message):
    with pytest.raises(ValueError, match=message):
        ok.load_keras(FILES / "k3j/adam.keras").restore(BAD_PARAMS[message])


def test_what_does_not_go_together_is_refused():
    training = ok.load_keras(FILES / "k3j/adam.keras")
    with pytest.raises(ValueError, match="Received: 'nu_max' in `tx`, and not in the file"):
        training.restore(STRUCTS, tx=ok.kadam(amsgrad=True))
    with pytest.raises(ValueError, match="'bn/bias', which could be m/d1/bias or m/bn/beta. Say which with `rename`"):
        training.restore(STRUCTS, rename={"d1/bias": "bn/beta"})
    with pytest.warns(UserWarning, match="holds weights alone"):
        weights = ok.load_keras(FILES / "legacy/adam.keras")
    with pytest.raises(ValueError, match="must hold the state of an optimizer"):
        weights.restore(STRUCTS)
    with pytest.warns(UserWarning, match="holds weights alone"):
        weights = ok.load_keras(FILES / "legacy/adam.weights.h5")
    with pytest.raises(
        ValueError, match="The order of the variables must be known to fill a list. Received: a list, and"
    ):
        weights.fill(list(weights.variables.values()))


def test_float64_needs_x64(tmp_path):
    with keras_rules(), jax.enable_x64(True):
        model = keras.Sequential([keras.Input((2,), dtype="float64"), keras.layers.Dense(1, dtype="float64")])
        model.compile(optimizer="adam", loss="mse")
        model.optimizer.build(model.trainable_variables)
        model.save_weights(tmp_path / "x.weights.h5")
    training = ok.load_keras(tmp_path / "x.weights.h5")
    structs = {path: jax.ShapeDtypeStruct(a.shape, np.dtype("float64")) for path, a in training.mu.items()}
    with pytest.raises(ValueError, match="JAX must keep the dtype that Keras saved.*jax_enable_x64"):
        training.fill(structs)


def steps(tx, params, state, gradients):
    for row in zip(*gradients, strict=True):
        updates, state = tx.update(list(map(jnp.asarray, row)), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


RECORDED = sorted(p for p in TRAINING.glob("*/*/saved*") if p.name != "run.npz")


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: str(p.relative_to(TRAINING)))
def test_a_recorded_training_goes_on_as_keras_did(path, tmp_path):
    """20 steps in TensorFlow, 20 here: the bits of Keras's own 40, but where it sums a norm in another order."""
    with np.load(path.parent / "run.npz") as arrays:
        run = dict(arrays)
    count = len(run["names"])
    config = {"config": json.loads(str(run["config"]))} if path.is_dir() else {}  # A checkpoint does not hold it.
    training = ok.load_keras(path / "ck" if path.is_dir() else path, **config)
    params = [jnp.asarray(run[f"weight20/{i}"]) for i in range(count)]
    restored, state = training.restore(params)
    assert all(map(np.array_equal, restored, params))
    restored, state = steps(training.transformation(), restored, state, [run[f"grad/{i}"] for i in range(count)])
    furthest = max(ulp(leaf, run[f"weight40/{i}"]) for i, leaf in enumerate(restored))
    assert furthest <= (2 if path.parent.name == "clipnorm" else 0)
    if path.is_dir():
        return
    # What is written back is the file that Keras would have saved at step 40.
    written = tmp_path / path.name
    ok.save_keras(written, restored, state, template=path)
    again = ok.load_keras(written)
    assert again.iterations == 40 and again.config == training.config
    assert all(map(np.array_equal, list(again.variables.values())[:count], restored))
    assert all(map(np.array_equal, again.mu.values(), jax.tree.leaves(optax.tree.get(state, "mu"))))


@pytest.mark.parametrize("wrap", [False, True], ids=["adam", "loss scale"])
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
@keras_rules()
def test_a_live_training_goes_on_here_and_then_in_keras(ending, wrap, tmp_path):
    """6 steps in Keras, 6 here, 6 in Keras, with the same gradients: the bits of Keras's own 18."""
    arguments = {"learning_rate": 0.05, "amsgrad": True, "use_ema": True, "global_clipnorm": 1.5}
    rng = np.random.default_rng(0)

    def model():
        layers = [keras.Input((4,)), keras.layers.Dense(5), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
        made = keras.Sequential(layers, name="net")
        inner = keras.optimizers.Adam(**arguments)
        made.compile(optimizer=keras.optimizers.LossScaleOptimizer(inner) if wrap else inner, loss="mse")
        made.optimizer.build(made.trainable_variables)
        return made

    def train(made, gradients):
        optimizer = made.optimizer.inner_optimizer if wrap else made.optimizer
        for row in gradients:
            optimizer.apply([jnp.asarray(g) for g in row], made.trainable_variables)

    alone, first = model(), model()
    start = [rng.normal(size=weight.shape) for weight in alone.get_weights()]
    alone.set_weights(start)
    first.set_weights(start)
    gradients = [[rng.normal(size=v.shape).astype("f4") for v in alone.trainable_variables] for _ in range(18)]
    train(alone, gradients)
    train(first, gradients[:6])
    save = (lambda made, path: made.save(path)) if ending == ".keras" else (lambda made, path: made.save_weights(path))
    save(first, tmp_path / f"x{ending}")
    config = keras.optimizers.serialize(first.optimizer)
    training = ok.load_keras(tmp_path / f"x{ending}", config=config)
    params, state = training.restore([jax.ShapeDtypeStruct(v.shape, jnp.float32) for v in first.trainable_variables])
    inner = ok.from_config(config["config"]["inner_optimizer"] if wrap else config)
    kept = state.inner_state if wrap else state
    params, kept = steps(inner, params, kept, [[row[i] for row in gradients[6:12]] for i in range(len(params))])
    state = state._replace(inner_state=kept) if wrap else kept
    moving = {path: array + 1 for path, array in training.variables.items() if "moving" in path}
    ok.save_keras(
        tmp_path / f"y{ending}", params, state, template=tmp_path / f"x{ending}", non_trainable=moving, config=config
    )
    if ending == ".keras":
        last = keras.models.load_model(tmp_path / f"y{ending}")
    else:
        last = model()
        last.load_weights(tmp_path / f"y{ending}")
    statistics = [np.asarray(v) for v in last.non_trainable_variables]
    assert all(map(np.array_equal, statistics, moving.values()))
    train(last, gradients[12:])
    for found, wanted in zip(last.trainable_variables, alone.trainable_variables, strict=True):
        assert ulp(np.asarray(found), np.asarray(wanted)) == 0
    optimizers = [made.optimizer.inner_optimizer if wrap else made.optimizer for made in (last, alone)]
    for found, wanted in zip(*(optimizer.variables for optimizer in optimizers), strict=True):
        assert np.array_equal(found, wanted)


def cosine(step):
    return 0.1 * (1.0 + jnp.cos(jnp.asarray(step, jnp.float32) / 40.0))


WRAPPED = {
    "chain": optax.chain(optax.clip(1e3), ok.scale_by_kadam(), optax.scale_by_schedule(lambda step: -cosine(step))),
    "inject": optax.inject_hyperparams(ok.kadam)(learning_rate=cosine),
    "masked": optax.masked(ok.kadam(cosine), lambda tree: jax.tree.map(lambda leaf: leaf.size > 0, tree)),
    "partition": optax.partition(
        {"kernels": ok.kadam(cosine), "others": ok.kadam(cosine)},
        lambda tree: {path: "kernels" if path.endswith("kernel") else "others" for path in tree},
    ),
    "finite": optax.apply_if_finite(ok.kadam(cosine), 3),
    "MultiSteps": optax.MultiSteps(ok.kadam(cosine), 1),
}


@pytest.mark.parametrize("name", WRAPPED)
@keras_rules()  # optax.adam needs them too.
def test_moments_and_every_count_come_back_in_what_optax_puts_around(name):
    training = ok.load_keras(FILES / "k3j/adam.keras")
    params, state = training.restore({path: training.variables[path] for path in training.mu}, tx=WRAPPED[name])
    _, expected = training.restore(params, tx=ok.kadam(cosine))
    grads = jax.tree.map(lambda leaf: jnp.cos(leaf) * 1e-3, params)
    for _ in range(3):
        updates, state = WRAPPED[name].update(grads, state, params)
        expected_updates, expected = ok.kadam(cosine).update(grads, expected, params)
        chex.assert_trees_all_close(
            updates, expected_updates, rtol=3e-5
        )  # 1.4e-5 measured: injected betas are float32.


@pytest.mark.parametrize("name", WRAPPED)
@keras_rules()
def test_a_restored_state_has_the_dtypes_of_a_new_one(name):
    """`inject_hyperparams` keeps its numbers in the dtype of the parameters."""
    array = np.ones(3, jnp.bfloat16)
    training = ok.KerasTraining("keras3", None, 3, 0.1, {"w": array}, mu={"w": array}, nu={"w": array})
    params, state = training.restore({"w": array}, tx=WRAPPED[name])
    chex.assert_trees_all_equal_shapes_and_dtypes(state, WRAPPED[name].init(params))


def test_moments_and_counts_come_back_in_adam_of_optax():
    training = ok.load_keras(FILES / "k3j/adam.keras")
    params = {path: training.variables[path] for path in training.mu}
    _, state = training.restore(params, tx=optax.adam(cosine))
    assert [int(count) for count in jax.tree.leaves(state) if not count.shape] == [20, 20]
    chex.assert_trees_all_equal(optax.tree.get(state, "mu"), training.mu)
    chex.assert_trees_all_equal(optax.tree.get(state, "nu"), training.nu)


@pytest.mark.parametrize("other", [optax.trace(0.9), optax.ema(0.9), optax.scale_by_rms()])
def test_a_state_that_no_file_holds_is_refused(other):
    training = ok.load_keras(FILES / "k3j/adam.keras")
    tx = optax.chain(ok.scale_by_kadam(), other)
    with pytest.raises(ValueError, match="`tx` must keep no more than Keras's Adam does. Received: "):
        training.restore({path: training.variables[path] for path in training.mu}, tx=tx)


@pytest.mark.parametrize("count", [2**31 - 1, 2**31, 2**40])
def test_a_count_beyond_int32_is_restored_as_the_largest(count):
    """tf_keras counts in int64; the count of `kadam` ends at 2**31 - 1, as docs/differences.md says."""
    training = dataclasses.replace(ok.load_keras(FILES / "tfk/adam.keras"), iterations=count)
    params, state = training.restore(STRUCTS)
    assert optax.tree.get(state, "iterations") == 2**31 - 1
    updates, state = training.transformation().update(params, state, params)
    assert optax.tree.get(state, "iterations") == 2**31 - 1
    assert all(np.isfinite(update).all() for update in jax.tree.leaves(updates))


@keras_rules()
def test_the_rate_within_a_loss_scale_is_saved(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    inner = keras.optimizers.Adam(0.01, clipnorm=1.0)
    model.compile(optimizer=keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "old.keras")
    training = ok.load_keras(tmp_path / "old.keras")
    params, state = training.restore([np.asarray(variable) for variable in model.trainable_variables])
    state = optax.tree.set(state, learning_rate=0.5)
    ok.save_keras(tmp_path / "new.keras", params, state, template=tmp_path / "old.keras")
    config = ok.load_keras(tmp_path / "new.keras").config
    assert config["config"]["inner_optimizer"]["config"]["learning_rate"] == 0.5
    again = keras.models.load_model(tmp_path / "new.keras").optimizer
    assert float(again.inner_optimizer.learning_rate) == 0.5 and again.inner_optimizer.clipnorm == 1.0


def test_a_restore_makes_no_array_of_its_own():
    """Zeros for all variables, of which none was used, took a third more memory and twice the time."""
    array = np.ones(1 << 20, np.float32)
    training = ok.KerasTraining("keras3", None, 3, 0.1, {"w": array}, mu={"w": array}, nu={"w": array})
    struct = {"w": jax.ShapeDtypeStruct(array.shape, array.dtype)}
    training.restore(struct)
    tracemalloc.start()
    training.restore(struct)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes / 2
