"""`compare`: equal trainings of every kind are equal, and each thing that may differ between two is found and named."""

import dataclasses
import math
import pathlib
import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import optax_kadam as ok
from optax_kadam.commands._convert import convert
from optax_kadam.keras_files._open import hints_of
from optax_kadam.keras_files.comparing._comparison import NumberDifference

from ...helpers import keras_rules

keras = pytest.importorskip("keras")

FILES = pathlib.Path(__file__).parents[2] / "golden" / "files"
TRAINING = ok.load_keras(FILES / "k3j" / "amsgrad.keras")
TRAINED = {path: TRAINING.variables[path] for path in TRAINING.mu}
STATISTICS = {path: array for path, array in TRAINING.variables.items() if path not in TRAINED}
PARAMS, STATE = TRAINING.restore(TRAINED)
WHOLE = (PARAMS, STATE, STATISTICS)
MOMENTS = ["mu", "nu", "nu_max"]


def moved(tree, path, by=1, to=None):
    """Return the tree with another number at the end of its array at `path`, so many ULP away."""

    def moved_at(at, leaf):
        if jax.tree_util.keystr(at, simple=True, separator="/").removesuffix("/value") != path:
            return leaf
        changed = np.array(leaf)
        for _ in range(by):
            changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9)) if to is None else to
        found.append(path)
        return jnp.asarray(changed)

    found = []
    changed = jax.tree.map_with_path(moved_at, tree)
    assert found == [path]
    return changed


def apart(comparison):
    """Return the slots and paths of what is not equal."""
    return [(row.slot, row.path, row.problem or row.ulp) for row in comparison.arrays if row.ulp != 0]


def different(comparison):
    numbers = [*comparison.numbers, *(comparison.configuration or ())]
    return {n.name: (n.a, n.b) for n in numbers if n.decides and not n.is_equal}


@pytest.mark.parametrize(
    "name",
    ["k3j/amsgrad.h5", "k3j/amsgrad.weights.h5", "k3t/adam_ckpt/ck", "tfk/amsgrad.keras", "legacy/amsgrad.h5"],
)
def test_a_file_equals_what_is_restored_from_it(name):
    training = ok.load_keras(FILES / name)
    params, state = training.restore({path: training.variables[path] for path in training.mu})
    statistics = {path: array for path, array in training.variables.items() if path not in params}
    for pair in (
        (FILES / name, training),
        (FILES / name, (params, state, statistics)),
        ((params, state), (params, state)),
    ):
        comparison = ok.compare(*pair)
        assert comparison.equal and not different(comparison) and str(comparison).endswith("The trainings are equal.")
    found = ok.compare(str(FILES / name), (params, state, statistics))
    assert (
        len(found.arrays) == 9 + (2 if training.nu_max is None else 3) * 7
        and [n.name for n in found.numbers][0] == "iterations"
    )


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Dense(6, name="d1")(nn.Embed(11, 4, name="emb")(tokens).reshape(len(tokens), -1))
        return nn.Dense(3, name="d2")(nn.BatchNorm(use_running_average=True, name="bn")(x))


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.emb, self.d1 = nnx.Embed(11, 4, rngs=rngs), nnx.Linear(20, 6, rngs=rngs)
        self.bn, self.d2 = nnx.BatchNorm(6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)


class Port(eqx.Module):
    emb: eqx.nn.Embedding
    d1: eqx.nn.Linear
    bn: eqx.nn.LayerNorm
    d2: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.emb, self.d1 = eqx.nn.Embedding(11, 4, key=keys[0]), eqx.nn.Linear(20, 6, key=keys[1])
        self.bn, self.d2 = eqx.nn.LayerNorm(6), eqx.nn.Linear(6, 3, key=keys[2])


def linen():
    variables = Linen().init(jax.random.key(0), jnp.zeros((2, 5), int))
    params, state = TRAINING.restore(variables["params"])
    return (params, state, TRAINING.fill(variables["batch_stats"])), "d1/kernel"


def in_nnx():
    model = Net()
    params, state = TRAINING.restore(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, TRAINING.transformation(), wrt=nnx.Param)
    nnx.update(optimizer.opt_state, nnx.state(state))
    return (params, optimizer, TRAINING.fill(nnx.state(model, nnx.BatchStat))), "d1/kernel"


def equinox():
    return (*TRAINING.restore(eqx.filter(Port(), eqx.is_array)), STATISTICS), "d1/weight"


def flat():
    return (*TRAINING.restore(list(TRAINED.values())), STATISTICS), "1"


@pytest.mark.parametrize("make", [linen, in_nnx, equinox, flat])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_port_is_compared_with_keras(make, is_first):
    (params, state, statistics), kernel = make()

    def compare(keras_side, port):
        # A list has no names, and so cannot hold the others too.
        port, skip = (port[:2], ["bn/moving_mean", "bn/moving_variance"]) if make is flat else (port, [])
        return ok.compare(*((keras_side, port) if is_first else (port, keras_side)), skip=skip)

    assert compare(TRAINING, (params, state, statistics)).equal
    shown = "m/d1/kernel" if is_first else kernel
    changed = moved(params, kernel, by=3)
    assert apart(compare(TRAINING, (changed, state, statistics))) == [("weights", shown, 3)]
    inner = state.opt_state if make is in_nnx else state
    for slot in MOMENTS:
        if make is in_nnx:
            continue
        other = optax.tree.set(inner, **{slot: moved(optax.tree.get(inner, slot), kernel)})
        assert apart(compare(TRAINING, (params, other, statistics))) == [(slot, shown, 1)]


def test_the_state_of_nnx_is_read_in_each_of_its_forms():
    (params, optimizer, statistics), _ = in_nnx()
    for state in (optimizer, optimizer.opt_state, nnx.state(optimizer), nnx.to_pure_dict(nnx.state(optimizer))):
        assert ok.compare(TRAINING, (params, state, statistics)).equal
    model = Net()
    fresh = nnx.Optimizer(model, TRAINING.transformation(), wrt=nnx.Param)
    comparison = ok.compare(TRAINING, (params, fresh, statistics))
    assert {row.slot for row in comparison.arrays if row.ulp} == set(MOMENTS)
    assert different(comparison) == {"iterations": (20, 0)}


def test_a_restore_that_did_nothing_is_found():
    fresh = TRAINING.transformation().init(PARAMS)
    comparison = ok.compare(TRAINING, (PARAMS, fresh, STATISTICS))
    assert not comparison.equal and not comparison.within(ulp=math.inf, share=math.inf)  # The count is wrong.
    assert len(apart(comparison)) == 3 * 7 and {row.share for row in comparison.arrays} == {0.0, 1.0}
    forgotten = ok.compare(TRAINING, (jax.tree.map(jnp.zeros_like, PARAMS), STATE, STATISTICS))
    assert {slot for slot, _, _ in apart(forgotten)} == {"weights"}


def test_two_trees_are_compared_by_path():
    (params, state, statistics), kernel = linen()
    changed = (moved(params, kernel), state, statistics)
    assert ok.compare((params, state, statistics), (params, state, statistics)).equal
    assert apart(ok.compare((params, state, statistics), changed)) == [("weights", kernel, 1)]
    assert ok.compare({"params": params}, params).equal  # Linen's paths begin so, and the others' do not.
    square = {"up": {"kernel": np.arange(16.0).reshape(1, 1, 4, 4)}}  # One of Keras's could be held in two ways.
    assert ok.compare(square, square).equal
    transposed = {"up": {"kernel": square["up"]["kernel"].swapaxes(2, 3)}}
    assert not ok.compare(square, transposed).equal


def test_a_port_from_flax_to_equinox_is_compared():
    (params, state, _), _ = linen()
    port = TRAINING.restore(eqx.filter(Port(), eqx.is_array))
    assert ok.compare((params, state), port).equal
    changed = moved(port[0], "d2/weight")
    assert apart(ok.compare((params, state), (changed, port[1]))) == [("weights", "d2/kernel", 1)]


def test_rename_says_what_is_called_otherwise():
    renamed = {"norm": PARAMS["m/bn/gamma"], "other": PARAMS["m/bn/beta"]}
    keras_side = {"bn/gamma": PARAMS["m/bn/gamma"], "bn/beta": PARAMS["m/bn/beta"]}
    rename = {"bn/gamma": "norm", "bn/beta": "other"}
    assert ok.compare(keras_side, renamed, rename=rename).equal
    assert not ok.compare(keras_side, renamed, rename={"bn/gamma": "other", "bn/beta": "norm"}).equal
    (params, state, statistics), _ = linen()
    names = {"d1": "Dense_0", "d2": "Dense_1"}
    kept = [{names.get(layer, layer): leaf for layer, leaf in tree.items()} for tree in (params, statistics)]
    slots = {s: {names.get(layer, layer): leaf for layer, leaf in optax.tree.get(state, s).items()} for s in MOMENTS}
    port = kept[0], optax.tree.set(state, **slots), kept[1]
    assert ok.compare(TRAINING, port, rename=names).equal and ok.compare(port, TRAINING, rename=names).equal
    with pytest.raises(ValueError, match="`rename` must name parts of Keras's paths. Received: 'd3'"):
        ok.compare(TRAINING, port, rename={"d3": "x"})
    partly = ok.compare(TRAINING, port)
    assert ("weights", "m/d1/kernel", "in a alone") in apart(partly)
    assert ("weights", "Dense_0/kernel", "in b alone") in apart(partly)
    assert sum(row.ulp == 0 for row in partly.arrays) == 5 + 3 * 3


@keras_rules()
def test_two_models_of_keras_are_the_same_whatever_they_are_called():
    def model(name):
        layers = [keras.Input((3,)), keras.layers.Dense(4, name="one"), keras.layers.Dense(4, name="two")]
        made = keras.Sequential(layers, name=name)
        made.compile("adam", "mse")
        made.optimizer.build(made.trainable_variables)
        return made

    one, two = model("first"), model("second")
    two.set_weights(one.get_weights())
    found = ok.compare(ok.KerasTraining.from_model(one), ok.KerasTraining.from_model(two))
    assert found.equal and len(found.arrays) == 3 * 4 and found.configuration == ()
    by_generation = ok.compare(FILES / "k3j" / "adam.keras", FILES / "tfk" / "adam.keras")
    assert different(by_generation) == {"generation": ("keras3", "tf_keras")}
    assert all(row.ulp is not None for row in by_generation.arrays)


@keras_rules()
def test_a_layer_that_is_held_in_parts_is_compared():
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4, name="lstm")], name="m")
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    training = ok.KerasTraining.from_model(model)
    params = nn.OptimizedLSTMCell(4).init(jax.random.key(0), (jnp.zeros(4), jnp.zeros(4)), jnp.zeros(3))["params"]
    port = training.restore({"lstm": params})
    assert ok.compare(training, port).equal and ok.compare(port, training).equal
    changed = moved(port[0], "lstm/hf/kernel"), port[1]
    assert apart(ok.compare(training, changed)) == [("weights", "m/lstm/lstm_cell/recurrent_kernel", 1)]
    assert apart(ok.compare(changed, training)) == [("weights", "lstm/hf/kernel", 1)]
    del changed[0]["lstm"]["hf"]
    with pytest.raises(ValueError, match="no leaf 'lstm/hf/kernel'"):
        ok.compare(training, changed)


def test_what_one_side_alone_has_is_listed_and_decides():
    fewer = {path: leaf for path, leaf in PARAMS.items() if path != "m/d2/bias"}
    training = ok.compare(TRAINING, (fewer, ok.kadam(0.01, amsgrad=True).init(fewer), STATISTICS))
    assert [row[:2] for row in apart(training) if row[2] == "in a alone"] == [
        (slot, "m/d2/bias") for slot in ("weights", *MOMENTS)
    ]
    assert apart(ok.compare(PARAMS, fewer)) == [("weights", "m/d2/bias", "in a alone")]
    assert apart(ok.compare(fewer, PARAMS)) == [("weights", "m/d2/bias", "in b alone")]
    assert apart(ok.compare(TRAINING, (PARAMS, STATE))) == [
        ("weights", f"m/bn/moving_{name}", "in a alone") for name in ("mean", "variance")
    ]
    alone = ok.compare(TRAINING, {**PARAMS, **STATISTICS})
    assert apart(alone) == [(slot, "", "7 arrays in a alone") for slot in MOMENTS]
    assert different(alone) == {"iterations": (20, None)} and not alone.equal
    assert apart(ok.compare(PARAMS, (PARAMS, STATE))) == [(slot, "", "7 arrays in b alone") for slot in MOMENTS]
    more = ok.compare((PARAMS, optax.trace(0.9).init(PARAMS)), (PARAMS, optax.trace(0.9).init(PARAMS)))
    assert more.equal and sum(row.slot == "state" for row in more.arrays) == 7
    assert {row.problem for row in ok.compare(TRAINING, (PARAMS, optax.trace(0.9).init(PARAMS))).arrays} >= {
        "7 arrays in a alone",
        "7 arrays in b alone",
    }


def test_skip_leaves_out_what_it_names():
    statistics = ["bn/moving_mean", "m/bn/moving_variance"]
    assert ok.compare(TRAINING, (PARAMS, STATE), skip=statistics).equal
    assert ok.compare((PARAMS, STATE), TRAINING, skip=statistics).equal
    assert ok.compare(TRAINING, {**PARAMS, **STATISTICS}, skip=[*MOMENTS, "iterations"]).equal
    changed = moved(PARAMS, "m/d1/kernel")
    assert ok.compare(TRAINING, (changed, STATE, STATISTICS), skip=["d1"]).equal
    (params, state, batch), kernel = linen()
    assert ok.compare(TRAINING, (moved(params, kernel), state, batch), skip=[kernel]).equal
    port, _ = equinox()  # A name of either side is enough.
    assert ok.compare(TRAINING, (moved(port[0], "d1/weight"), *port[1:]), skip=["d1/weight"]).equal
    assert not ok.compare(TRAINING, (moved(port[0], "d1/weight"), *port[1:]), skip=["d1/bias"]).equal
    with pytest.raises(ValueError, match="`skip` must name paths, slots or numbers of a side. Received: 'd3'. The pa"):
        ok.compare(TRAINING, WHOLE, skip=["d3"])
    with pytest.raises(TypeError, match="`skip` must be a list of paths. Received: skip='d1'"):
        ok.compare(TRAINING, WHOLE, skip="d1")


def test_shapes_and_dtypes_must_be_the_same():
    half = {**PARAMS, "m/d1/bias": PARAMS["m/d1/bias"].astype(jnp.bfloat16)}
    assert apart(ok.compare(PARAMS, half)) == [("weights", "m/d1/bias", "float32[6] in a, bfloat16[6] in b")]
    for side in ((half, STATE, STATISTICS), ({**PARAMS, "m/d1/bias": jnp.zeros((2, 3))}, STATE, STATISTICS)):
        comparison = ok.compare(TRAINING, side)
        assert not comparison.within(ulp=math.inf, share=math.inf) and [row[:2] for row in apart(comparison)] == [
            ("weights", "m/d1/bias")
        ]
    (params, state, statistics), _ = linen()
    wrong = {**params, "d1": {**params["d1"], "kernel": params["d1"]["kernel"].T}}
    expected = [("weights", "m/d1/kernel", "float32[20, 6] in a, float32[6, 20] in b")]
    assert apart(ok.compare(TRAINING, (wrong, state, statistics))) == expected
    backwards = ok.compare((wrong, state, statistics), TRAINING)
    assert apart(backwards) == [("weights", "d1/kernel", "float32[6, 20] in a, float32[20, 6] in b")]


def test_the_worst_come_first():
    changed = moved(moved(moved(PARAMS, "m/d1/kernel", by=5), "m/d2/bias", by=900), "m/bn/beta", to=np.nan)
    del changed["m/bn/gamma"]
    assert apart(ok.compare(PARAMS, changed)) == [
        ("weights", "m/bn/gamma", "in a alone"),
        ("weights", "m/bn/beta", math.inf),
        ("weights", "m/d2/bias", 900),
        ("weights", "m/d1/kernel", 5),
    ]


def test_bounds_hold_for_each_array():
    comparison = ok.compare(PARAMS, moved(PARAMS, "m/d1/kernel", by=5))
    [row] = [row for row in comparison.arrays if row.ulp]
    assert comparison.within(ulp=5) and not comparison.within(ulp=4) and not comparison.equal
    assert comparison.within(share=row.share) and not comparison.within(share=(row.share or 0) / 2)
    assert not comparison.within(ulp=5, share=(row.share or 0) / 2) and not comparison.within(ulp=4, share=1)
    for bounds, message in (
        ({}, "`ulp` or `share` must be given. Received: neither."),
        ({"ulp": -1}, "`ulp` must be a number >= 0. Received: ulp=-1."),
        ({"share": math.nan}, "`share` must be a number >= 0. Received: share=nan."),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            comparison.within(**bounds)


def test_shares_are_of_the_movement_since_the_start():
    start = {path: leaf - 2e-3 for path, leaf in TRAINED.items()}
    changed = {path: leaf + 1e-3 for path, leaf in TRAINED.items()}
    found = ok.compare(PARAMS, changed, start=start)
    assert all(abs((row.share or 0) - 1 / 3) < 1e-3 for row in found.arrays) and found.since_start
    assert "A share is of the largest change since the start." in str(found)
    assert not any(abs((row.share or 0) - 1 / 3) < 1e-3 for row in ok.compare(PARAMS, changed).arrays)
    port, _ = equinox()  # The start may be of a third kind.
    begun = dataclasses.replace(
        TRAINING, variables={**{p: a - np.float32(2e-3) for p, a in TRAINED.items()}, **STATISTICS}
    )
    changed = jax.tree.map(lambda leaf: leaf + 1e-3, port[0]), *port[1:]
    both = [ok.compare(TRAINING, changed, start=begun), ok.compare(changed, TRAINING, start=begun)]
    shares = [row.share for found in both for row in found.arrays if row.slot == "weights" and row.ulp]
    assert len(shares) == 14 and all(abs((share or 0) - 1 / 3) < 1e-3 for share in shares)
    with pytest.raises(ValueError, match=r"`start` must have the shapes of `a`. Received: \[2\] for 'm/d1/bias'"):
        ok.compare(PARAMS, PARAMS, start={**TRAINED, "m/d1/bias": np.zeros(2)})


def test_signs_of_zeros_are_said_and_are_no_distance():
    zeros = {"w": jnp.zeros(3), "v": jnp.full(2, jnp.nan)}
    found = ok.compare(zeros, jax.tree.map(jnp.negative, zeros))
    assert found.equal and "\n3 zeros differ in their sign, which is no distance.\n" in str(found)
    assert "zeros" not in str(ok.compare(zeros, zeros))


def test_counts_and_rates_are_compared():
    for name, value in (("iterations", 21), ("learning_rate", 0.02)):
        changed = optax.tree.set(STATE, **{name: value})
        found = ok.compare(TRAINING, (PARAMS, changed, STATISTICS))
        [number] = [n for n in found.numbers if not n.is_equal]
        assert number.name == name and number.decides and not found.within(ulp=math.inf)
        assert not ok.compare((PARAMS, STATE), (PARAMS, changed)).equal
    scaled = ok.dynamic_loss_scale(ok.kadam(0.01, amsgrad=True)).init(PARAMS)
    found = different(ok.compare((PARAMS, STATE), (PARAMS, scaled)))
    of_scale = {"step_counter": (None, 0), "dynamic_scale": (None, 2.0**15), "skipped_steps": (None, 0)}
    assert found == {"iterations": (20, 0)} | of_scale


def test_states_of_other_transformations_are_compared():
    adam = ok.load_keras(FILES / "k3j" / "adam.keras")
    params = {path: adam.variables[path] for path in adam.mu}
    scheduled = optax.adam(optax.cosine_decay_schedule(0.1, 10))
    chained, injected = optax.chain(optax.clip(1.0), ok.kadam(0.01)), optax.inject_hyperparams(optax.adam)(0.01)
    statistics = {path: array for path, array in adam.variables.items() if path not in params}
    for tx in (optax.adam(0.01), scheduled, chained, injected):
        found = ok.compare(adam, (*adam.restore(params, tx=tx), statistics))
        assert not different(found) and not apart(found)
        assert {n.a for n in found.numbers if n.name.startswith("iterations")} == {20}
    params, (moments, rate) = adam.restore(params, tx=scheduled)
    for state in ((moments._replace(count=jnp.int32(7)), rate), (moments, rate._replace(count=jnp.int32(7)))):
        found = ok.compare(adam, (params, state, statistics))
        assert list(different(found).values()) == [(20, 7)] and not apart(found)
        assert list(different(ok.compare((params, state), adam.restore(params))).values()) == [(7, 20)]
    plain = adam.restore(params, tx=optax.adam(0.01))
    assert ok.compare(adam.restore(params), plain).equal  # What optax calls `count` is `iterations`.
    found = ok.compare(adam, (*adam.restore(params, tx=optax.MultiSteps(optax.adam(0.01), 2)), statistics))
    assert apart(found) == [("acc_grads", "", "7 arrays in b alone")] and not different(found)


def test_a_parameter_may_be_called_like_a_slot():
    params = {"mu": {"kernel": jnp.ones(2)}, "nu": jnp.ones(3)}
    state = ok.kadam(0.1).init(params)
    other = optax.tree.set(
        state,
        lambda path, _: len(path) < 5 and isinstance(path[-1], optax.tree_utils.NamedTupleKey),
        nu={"mu": {"kernel": jnp.ones(2)}, "nu": jnp.zeros(3)},
    )
    found = ok.compare((params, state), (params, other))
    assert apart(found) == [("nu", "mu/kernel", int(np.float32(1).view(np.int32)))] and len(found.arrays) == 6


def test_a_part_of_a_partition_may_be_called_like_a_slot():
    params = {"w": jnp.ones(2), "v": jnp.ones(3)}
    tx = optax.partition({"mu": ok.kadam(0.1), "nu": ok.kadam(0.1)}, {"w": "nu", "v": "mu"})
    found = ok.compare((params, tx.init(params)), (params, ok.kadam(0.1).init(params)))
    assert found.equal
    assert {row[:2] for row in found.arrays} == {(slot, path) for slot in ("weights", "mu", "nu") for path in "wv"}


def test_configurations_are_compared():
    def training(**arguments):
        return dataclasses.replace(TRAINING, config=ok.to_config(amsgrad=True, **arguments))

    assert (
        ok.compare(training(), training(name="other", learning_rate=0.5)).configuration == ()
    )  # The file holds a rate.
    assert ok.compare(training(), training(weight_decay=0.0)).configuration == ()
    assert different(ok.compare(training(), training(epsilon=1e-3, clipnorm=1.0))) == {
        "epsilon": (1e-7, 1e-3),
        "clipnorm": (None, 1.0),
    }
    cosine = ok.schedules.CosineDecay(0.1, 100)
    follows = ok.compare(training(), training(learning_rate=cosine))
    assert different(follows) == {"learning_rate": (float(np.float32(0.001)), cosine)} and not follows.equal
    assert ok.compare(training(learning_rate=cosine), training(learning_rate=cosine)).equal
    assert not ok.compare(
        training(learning_rate=cosine), training(learning_rate=ok.schedules.CosineDecay(0.1, 99))
    ).equal
    drifted = (PARAMS, optax.tree.set(STATE, learning_rate=0.5), STATISTICS)  # A state has the rate of its last step.
    assert ok.compare(training(learning_rate=cosine), drifted).equal and not ok.compare(training(), drifted).equal
    scaled = {"class_name": "LossScaleOptimizer", "config": {"inner_optimizer": ok.to_config(amsgrad=True)}}
    assert "loss_scale" in different(ok.compare(training(), dataclasses.replace(TRAINING, config=scaled)))


def test_orbax_checkpoints_are_compared(tmp_path):
    convert(FILES / "k3j" / "amsgrad.keras", tmp_path / "converted", hints_of(), {})
    found = ok.compare(FILES / "k3j" / "amsgrad.keras", tmp_path / "converted")
    assert found.equal and len(found.arrays) == 30 and found.configuration == ()
    (params, state, statistics), kernel = linen()
    with ocp.StandardCheckpointer() as checkpointer:
        changed = {"params": moved(params, kernel), "opt_state": state, "batch_stats": statistics}
        checkpointer.save(tmp_path / "mine", changed)
        checkpointer.save(tmp_path / "weights", params)
        checkpointer.save(tmp_path / "state", {"opt_state": state})
    assert apart(ok.compare(tmp_path / "converted", tmp_path / "mine")) == [("weights", kernel, 1)]
    assert ok.compare(params, tmp_path / "weights").equal
    (model, optimizer, _), _ = in_nnx()
    with ocp.CheckpointManager(tmp_path / "manager") as manager:
        training = {"model": nnx.to_pure_dict(model), "optimizer": nnx.to_pure_dict(nnx.state(optimizer))}
        manager.save(3, args=ocp.args.StandardSave(training))
    statistics = ["bn/moving_mean", "bn/moving_variance"]
    assert ok.compare(TRAINING, tmp_path / "manager" / "3", skip=statistics).equal
    with pytest.raises(ValueError, match="must be that of one checkpoint. Received: .*manager', which holds 3/default"):
        ok.compare(TRAINING, tmp_path / "manager")
    with pytest.raises(ValueError, match="`b` must be a checkpoint of .*, with opt_state. Restore it, and hand over"):
        ok.compare(TRAINING, tmp_path / "state")


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="The variables must be leaves, each once. Received: no variable for 'x'"):
        ok.compare(TRAINING, {"x": jnp.zeros(3)})
    with pytest.raises(
        ValueError, match="A list must hold an array for each of Keras's trainable .* Received: 2 arrays"
    ):
        ok.compare(TRAINING, [jnp.zeros(3), jnp.zeros(3)])
    for leaf, kind in ((1.0, "float"), (jax.ShapeDtypeStruct((3,), "f4"), "jax.*ShapeDtypeStruct")):
        with pytest.raises(
            TypeError, match=rf"`b` must hold arrays. Received: {kind} at .*x.*Hand over the arrays alone"
        ):
            ok.compare(PARAMS, {"x": leaf})
    with pytest.raises(TypeError, match="`a` must hold arrays. Received: str at"):
        ok.compare((PARAMS, {"mu": {"x": "s"}, "nu": {}}), PARAMS)
    with pytest.raises(
        ValueError, match="`b` must hold each variable once. Received: 'm/d1/bias' among the parameters"
    ):
        ok.compare(TRAINING, (PARAMS, STATE, {"m/d1/bias": jnp.zeros(3)}))
    with pytest.raises(ValueError, match="Say which with `rename`: "):  # It may be transposed.
        ok.compare({"a/kernel": jnp.ones((3, 3))}, {"a/weight": jnp.ones((3, 3))})
    with pytest.raises(FileNotFoundError, match="There must be a file"):
        ok.compare(TRAINING, "nothing.keras")


def test_a_pair_of_arrays_is_parameters_and_no_state():
    pair = jnp.ones(3), jnp.zeros(2)
    assert ok.compare(pair, pair).equal and len(ok.compare(pair, pair).arrays) == 2
    assert ok.compare((pair, ()), (pair, ())).equal  # With the state of `optax.identity`.
    assert len(ok.compare((pair, ok.kadam().init(pair)), (pair, ok.kadam().init(pair))).arrays) == 6


def test_the_text_is_at_most_80_columns_wide():
    deep = "layer/" * 20
    params = {f"{deep}{i}": np.ones((1000, 2), "f4") for i in range(75)}
    other = {path: leaf * 2 if i % 3 else leaf.T for i, (path, leaf) in enumerate(params.items())}
    del other[f"{deep}0"]
    schedule = ok.schedules.CosineDecay(0.1, 100, name="a schedule of a long name")
    sides = [(side, ok.kadam().init({})) for side in (params, other)]
    comparison = dataclasses.replace(
        ok.compare(*sides), a="long/" * 30, configuration=(NumberDifference("learning_rate", schedule, 0.5),)
    )
    lines = str(comparison).splitlines()
    assert max(map(len, lines)) <= 80
    assert (
        lines[0].startswith("a  ...")
        and lines[0].endswith("long/long/")
        and lines[1] == "b  parameters and the state of their optimizer"
    )
    assert sum(" in a alone" in line for line in lines) == 1
    assert sum(line.startswith("weights      ...") and line.endswith("/0: in a alone") for line in lines) == 1
    assert sum(line.endswith(": float32[1000, 2] in a, float32[2, 1000] in b") for line in lines) == 19
    measured = [line for line in lines if re.match(r"weights +8388608  5\.0e-01  \.\.\.", line)]
    assert len(measured) == 20 and lines.count("and 5 more") == 1 and lines.count("and 30 more") == 1
    assert lines[-2:] == ["50 arrays are in both, 0 of them equal.", "The trainings are not equal."]


def test_the_text_says_all_that_decides():
    found = ok.compare(TRAINING, (moved(PARAMS, "m/d1/bias", by=2), optax.tree.set(STATE, iterations=3)), skip=["bn"])
    assert str(found).splitlines() == [
        "a  a training of Keras's (keras3)",
        "b  parameters and the state of their optimizer",
        "",
        "               a     b",
        "iterations     20    3     different",
        "learning_rate  0.01  0.01",
        "",
        "configurations: not in both",
        "",
        "slot                ULP    share  array",
        f"weights               2  {[row.share for row in found.arrays if row.ulp][0]:.1e}  m/d1/bias",
        "A share is of the largest number in it.",
        "",
        "20 arrays are in both, 19 of them equal.",
        "The trainings are not equal.",
    ]
