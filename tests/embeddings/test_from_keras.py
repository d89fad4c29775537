"""A table goes on from a file of each generation as Keras itself does, and back into a file of Keras's."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optax_kadam as ok

from ..helpers import keras_rules, share

FILES = pathlib.Path(__file__).parents[1] / "golden/files"
TABLE = {
    "k3j/adam.keras": "m/emb/embeddings",
    "tfk/adam.keras": "emb/embeddings:0",
    "legacy/adam.h5": "emb/embeddings:0",
}
K3 = FILES / "k3j/adam.keras"


def rest_of(training, path, **options):
    """Return the parameters and the state of all variables but the table's."""
    structs = {p: jax.ShapeDtypeStruct(mu.shape, mu.dtype) for p, mu in training.mu.items() if p != path}
    return training.restore(structs, skip=[path], **options)


def batches(rows, width):
    random = np.random.default_rng(0)
    for _ in range(20):
        yield random.integers(0, rows, 3).astype(np.int32), random.normal(size=(3, width)).astype(np.float32)


@pytest.mark.parametrize("name", [*TABLE, "k3j/amsgrad.keras", "tfk/amsgrad.h5", "legacy/amsgrad.h5"])
def test_a_table_goes_on_as_the_dense_training_does(name):
    """`kadam` goes on as Keras itself does, to the bit: the tests of `load_keras` hold it."""
    training = ok.load_keras(FILES / name)
    path = next(path for path in training.mu if "embeddings" in path)
    values = training.variables[path]
    of = ok.deferred_rows(0.5, amsgrad="amsgrad" in name)
    table, tx = of.from_keras(training, path), training.transformation()
    np.testing.assert_allclose(table.learning_rate, training.learning_rate)
    every = {p: jax.ShapeDtypeStruct(mu.shape, mu.dtype) for p, mu in training.mu.items()}
    params, state = training.restore(every)
    update, read = jax.jit(of.update), jax.jit(of.read)
    for ids, gradients in batches(*values.shape):
        dense = {p: jnp.zeros(leaf.shape) for p, leaf in every.items()} | {path: ok.RowUpdates(ids, gradients)}
        np.testing.assert_allclose(read(table, ids), params[path][ids], rtol=2e-5, atol=2e-6)
        updates, state = tx.update(dense, state, params)
        params, table = optax.apply_updates(params, updates), update(table, ids, gradients)
    found, _ = of.flush(table)
    movement = np.abs(params[path] - values).max()
    assert share(np.asarray(found), np.asarray(params[path]), movement) <= 3e-5
    assert table.iterations == 40


@pytest.mark.parametrize("run", ["tf_keras/amsgrad", "tf_keras/clipnorm", "legacy/amsgrad", "legacy/clipnorm"])
def test_a_table_goes_on_as_the_recorded_keras_did(run):
    """Keras went on from its file with the recorded gradients, which are dense: each row has one."""
    folder = FILES.parent / "training" / run
    training = ok.load_keras(folder / "saved_ckpt/ck")
    with np.load(folder / "run.npz") as recorded:
        (i, name), *_ = [pair for pair in enumerate(recorded["names"]) if "emb" in str(pair[1])]
        gradients, wanted = recorded[f"grad/{i}"], recorded[f"weight40/{i}"]
        moments = {"mu": recorded[f"m40/{i}"], "nu": recorded[f"v40/{i}"]}
    path = next(path for path in training.mu if "emb" in path)
    of, clip = ok.deferred_rows(amsgrad="amsgrad" in run), ok.clip_by_norm(0.5 if "clipnorm" in run else 1e9)
    start = table = of.from_keras(training, path)
    for gradient in gradients:
        rows = ok.RowUpdates(np.arange(len(gradient)), gradient)
        clipped, _ = clip.update({name: rows}, clip.init({name: table.values}), {name: table.values})
        table = of.update(table, clipped[name])
    movement = np.abs(wanted - start.values).max()
    assert share(np.asarray(of.flush(table)[0]), wanted, movement) <= 3e-5
    for slot, moment in moments.items():
        np.testing.assert_allclose(getattr(table, slot), moment, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", TABLE)
def test_a_table_returns_into_a_file_of_keras(name, tmp_path):
    path, template = TABLE[name], FILES / name
    training, of = ok.load_keras(template), ok.deferred_rows(0.01)
    table = of.from_keras(training, path)
    params, state = rest_of(training, path, tx=ok.kadam(0.01))
    for ids, gradients in batches(*table.values.shape):
        table = of.update(table, ids, gradients)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = ok.kadam(0.01).update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    written = tmp_path / template.name
    stale, (values, table) = table, of.flush(table)
    with pytest.raises(ValueError, match="`tables` must be up to date. Received: .* Call `flush` before"):
        ok.save_keras(written, params, state, template=template, tables={path: stale})
    with pytest.raises(ValueError, match="`tables` must have taken the steps of `opt_state`.*40. Received: 41"):
        later = of.flush(of.update(table, jnp.array([0]), jnp.ones((1, table.values.shape[1]))))[1]
        ok.save_keras(written, params, state, template=template, tables={path: later})
    with pytest.raises(ValueError, match="`tables` must be named by Keras's paths. Received: 'emb'. It has"):
        ok.save_keras(written, params, state, template=template, tables={"emb": table})
    with pytest.raises(TypeError, match="`tables` must hold tables of `deferred_rows`. Received: ArrayImpl"):
        ok.save_keras(written, params, state, template=template, tables={path: values})
    ok.save_keras(written, params, state, template=template, tables={path: table})
    saved = ok.load_keras(written)
    assert saved.iterations == 40
    for slot, array in (("variables", values), ("mu", table.mu), ("nu", table.nu)):
        np.testing.assert_array_equal(getattr(saved, slot)[path], array)
        for other, leaf in params.items():
            if slot == "variables":
                np.testing.assert_array_equal(saved.variables[other], leaf)


@keras_rules()
def test_a_table_goes_on_as_the_live_keras_does():
    """Model, loss and batches are the same; the dense parameters go on under `kadam`."""
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    layers = [keras.Input((2,), dtype="int32"), keras.layers.Embedding(30, 4), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(1, name="out")], name="net")
    model.compile(keras.optimizers.Adam(0.01), "mse")
    random = np.random.default_rng(0)
    ids, targets = random.integers(0, 30, (40, 8, 2)).astype(np.int32), random.normal(size=(40, 8, 1)).astype("float32")
    for i in range(20):
        model.train_on_batch(ids[i], targets[i])
    training = ok.KerasTraining.from_model(model)
    path = next(path for path in training.mu if "embeddings" in path)
    of, tx = ok.deferred_rows(), training.transformation()
    table, (params, state) = of.from_keras(training, path), rest_of(training, path, tx=tx)

    def loss_of(rows, params, targets):
        kernel, bias = (params[f"net/out/{name}"] for name in ("kernel", "bias"))
        return jnp.mean((rows.reshape(8, 8) @ kernel + bias - targets) ** 2)

    @jax.jit
    def step(table, params, state, ids, targets):
        of_rows, of_params = jax.grad(loss_of, (0, 1))(of.read(table, ids), params, targets)
        updates, state = tx.update(of_params, state, params)
        return of.update(table, ids, of_rows), optax.apply_updates(params, updates), state

    for i in range(20, 40):
        model.train_on_batch(ids[i], targets[i])
        table, params, state = step(table, params, state, ids[i], targets[i])
    found, wanted = of.flush(table)[0], np.asarray(model.layers[0].embeddings.value)
    movement = np.abs(wanted - training.variables[path]).max()
    assert share(np.asarray(found), wanted, movement) <= 3e-5
    assert table.iterations == int(model.optimizer.iterations.value) == 40

    # Back into the live model, which then goes on by itself.
    ok.update_model(model, params, state, tables={path: of.flush(table)[1]})
    again = ok.KerasTraining.from_model(model)
    np.testing.assert_array_equal(again.variables[path], found)
    np.testing.assert_array_equal(again.mu[path], of.flush(table)[1].mu)
    with pytest.raises(ValueError, match="`tables` must be up to date"):
        ok.update_model(model, params, state, tables={path: table._replace(last_visit=table.last_visit - 1)})
    model.train_on_batch(ids[0], targets[0])
    assert int(model.optimizer.iterations.value) == 41


def test_several_tables_come_from_one_file_onto_a_mesh():
    training = ok.load_keras(K3)
    embeddings = ok.Embeddings(ok.deferred_rows(), {"a": "x", "b": "y"})
    mesh = jax.make_mesh((2,), ("data",))
    tables = embeddings.from_keras(
        training, {"x": "m/d2/kernel", "y": "m/d1/kernel"}, sharding=NamedSharding(mesh, P("data"))
    )
    assert tables.iterations == 20 and set(tables.mu) == {"x", "y"}
    np.testing.assert_array_equal(tables.mu["y"], training.mu["m/d1/kernel"])
    assert {len(field["y"].sharding.device_set) for field in (tables.values, tables.mu, tables.last_visit)} == {2}


def test_a_schedule_keeps_the_rate():
    schedule = ok.schedules.ExponentialDecay(0.1, 10, 0.5)
    table = ok.deferred_rows(schedule).from_keras(ok.load_keras(K3), "m/emb/embeddings")
    np.testing.assert_allclose(table.learning_rate, 0.1)


def replaced(**fields):
    return dataclasses.replace(ok.load_keras(K3), **fields)


@pytest.mark.parametrize(
    ("arguments", "training", "message"),
    [
        ({}, lambda: replaced(mu=None), "`training` must hold the state of an optimizer. Received: mu=None"),
        ({}, lambda: replaced(average={}), "Received: one with use_ema, whose average a table does not keep"),
        ({}, lambda: replaced(accumulator={}), "one with gradient_accumulation_steps"),
        ({"beta_1": 0.8}, replaced, "the same `beta_1` as the table's, 0.8. Received: 0.9. Call `deferred_rows` with"),
        ({"beta_2": 0.99}, replaced, "the same `beta_2`"),
        ({"epsilon": 1e-8}, replaced, "the same `epsilon` as the table's, 1e-08. Received: 1e-07"),
        ({"amsgrad": True}, replaced, "the same `amsgrad` as the table's, True. Received: False"),
        ({"weight_decay": 0.1}, replaced, "the same `weight_decay` as the table's, 0.1. Received: 0.0"),
    ],
)
def test_a_training_of_another_algorithm_is_refused(arguments, training, message):
    with pytest.raises(ValueError, match=message):
        ok.deferred_rows(**arguments).from_keras(training(), "m/emb/embeddings")


def test_a_path_that_is_not_there_is_answered_with_a_near_one():
    with pytest.raises(ValueError, match="`path` must be that of a variable.*path='emb/embedding', near 'm/emb/embedd"):
        ok.deferred_rows().from_keras(replaced(), "emb/embedding")
