"""The commands on Keras's files, `inspect` and `convert`: what they print, what Orbax restores, what they refuse."""

import json
import pathlib
import re
import subprocess
import sys
import types
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import optax_kadam as ok
from optax_kadam.__main__ import main
from optax_kadam.commands._recipe import RECIPE

from ..helpers import keras_rules
from ..sparing import mostly_slow

keras = pytest.importorskip("keras")

FILES = pathlib.Path(__file__).parents[1] / "golden" / "files"
ADAM = FILES / "k3j" / "adam.keras"
WITH_STATE = [
    *("k3j/adam.keras", "k3j/amsgrad.h5", "k3j/adam.weights.json", "k3t/adam_ckpt/ck", "tfk/amsgrad.keras"),
    *("tfk/adam.h5", "tfk/adam.weights.h5", "tfk/adam_savedmodel", "tfk/adam_tfweights", "legacy/decay_clip.h5"),
    *("legacy/amsgrad_savedmodel", "legacy/adam_ckpt/ck"),
]
# These come out of a reader that another file of the list goes through too.
ALIKE = ["amsgrad.h5", "amsgrad.keras", "adam.h5", "adam_savedmodel", "decay_clip.h5", "adam_ckpt"]
# tf_keras's `.weights.h5` names layers by their classes, whatever names they were given.
STANDARD = {"embedding": "emb", "dense": "d1", "batch_normalization": "bn", "dense_1": "d2"}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Dense(6, name="d1")(nn.Embed(11, 4, name="emb")(tokens).reshape(len(tokens), -1))
        return nn.Dense(3, name="d2")(nn.BatchNorm(use_running_average=True, name="bn")(x))


def run(capsys, *arguments):
    main(list(map(str, arguments)))
    output, error = capsys.readouterr()
    assert not error
    return output


def refusal(capsys, arguments):
    """Return the one line that says why a command is refused."""
    with pytest.raises(SystemExit) as refused:
        main(arguments.split())
    output, error = capsys.readouterr()
    assert refused.value.code == 2 and not output
    assert re.fullmatch(r"python -m optax_kadam \w+: error: .+\n", error)
    return error


def compiled(model, optimizer):
    model.compile(optimizer)
    model.optimizer.build(model.trainable_variables)
    return model


def restored(out, params, statistics):
    """Return the transformation and the training, read as `convert --help` says."""
    checkpointer = ocp.StandardCheckpointer()
    tx = ok.from_config(checkpointer.metadata(out).custom_metadata["optimizer"])
    target = {"params": params, "opt_state": tx.init(params), "non_trainable": statistics}
    return tx, checkpointer.restore(out, target)


def step(tx, params, state):
    updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
    return optax.apply_updates(params, updates), state


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", [*WITH_STATE, "legacy/adam.keras", "k3t/adam_export"])
@pytest.mark.filterwarnings("ignore:.* holds weights alone")
def test_inspect_shows_what_the_file_holds(capsys, monkeypatch, name):
    training = ok.load_keras(FILES / name)
    monkeypatch.setenv("COLUMNS", "80")
    heading, table, totals = run(capsys, "inspect", FILES / name).split("\n\n")
    heading = heading.replace("\n ", " ")
    told = dict(re.split(r" {2,}", line, maxsplit=1) for line in heading.splitlines())
    slots = {s: getattr(training, s) for s in ("mu", "nu", "nu_max") if getattr(training, s)}
    assert ("order" in told) == bool(slots)
    assert told["generation"] == training.generation and told.get("iterations") == ("20" if slots else None)
    assert told.get("learning rate", "0.01") == ("0.01" if training.learning_rate or not slots else "not in the file")
    expected = [["variable", "shape", "weights", *slots]]
    trained = [path for path in training.variables if "moving" not in path]
    for path in [*trained, "not trainable:", *(path for path in training.variables if path not in trained)]:
        arrays = [array.get(path) for array in (training.variables, *slots.values())]
        norms = ["-" if a is None else f"{np.sqrt(np.sum(np.square(a, dtype=np.float64))):.4g}" for a in arrays]
        is_title = path == "not trainable:"
        expected.append(path.split() if is_title else [path, "x".join(map(str, arrays[0].shape)), *norms])
    title, *lines = table.splitlines()
    assert title == f"Norms of the weights{' and of their moments' if slots else ''}, in float64:"
    assert [line.split() for line in lines] == expected
    assert totals.startswith("variables  9 of float32, 215 parameters, of which 203 are trainable\n")
    assert totals.endswith(f", {812 * len(slots):,} of the optimizer's state\n" if slots else "860 of the weights\n")


def sample_files():
    """The paths of all that Keras saved in the folder of samples."""
    for folder in sorted(FILES.iterdir()):
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                yield path / "ck" if (path / "ck.index").exists() else path
            elif path.suffix in (".keras", ".h5") or path.name.endswith(".weights.json"):
                yield path


@pytest.mark.filterwarnings("ignore:.* holds weights alone")
def test_inspect_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(FILES)
    shown = 0
    for path in sample_files():
        try:
            main(["inspect", str(path.relative_to(FILES))])
        except SystemExit:  # A shard is no file of its own, and is refused.
            capsys.readouterr()
            continue
        widths = [len(line) for line in capsys.readouterr().out.splitlines()]
        assert max(widths) <= 80, path
        shown += 1
    assert shown >= 40


def test_inspect_gives_a_variable_two_lines_where_one_is_too_wide(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    output = run(capsys, "inspect", ADAM)
    assert "\nvariable\n  shape  weights " in output and "\nm/d1/kernel\n  20x6 " in output
    assert max(len(line) for line in output.splitlines() if not line.startswith("file")) <= 60


def test_inspect_tells_dtypes_apart_where_they_differ(capsys, tmp_path):
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1, name="a"), keras.layers.Dense(1, name="b", dtype="bfloat16")]
    )
    model.save(tmp_path / "m.keras")
    output = run(capsys, "inspect", tmp_path / "m.keras")
    assert re.search(r"a/kernel +2x1 +float32 ", output) and re.search(r"b/kernel +1x1 +bfloat16 ", output)
    assert "4 of bfloat16 and float32, " in output


@keras_rules()
def test_inspect_shows_the_optimizer(capsys, tmp_path, monkeypatch):
    model, path = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")], name="m"), tmp_path / "m.keras"
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(use_ema=True, epsilon=1e-3))
    compiled(model, optimizer).save(path)
    monkeypatch.setenv("COLUMNS", "200")
    output = run(capsys, "inspect", path)
    shown = "LossScaleOptimizer(Adam(use_ema=True, epsilon=0.001), initial_scale=32768.0, dynamic_growth_steps=2000)"
    assert f"\noptimizer      {shown}\n" in output and " average\n" in output
    assert "\nloss scale     32768.0, of 0 finite steps since it changed\n" in output
    (tmp_path / "config.json").write_text(json.dumps({"learning_rate": 0.5, "amsgrad": True, "decay": 0.0}))
    output = run(capsys, "inspect", FILES / "legacy" / "amsgrad_ckpt" / "ck", "--config", tmp_path / "config.json")
    assert "\noptimizer      Adam(learning_rate=0.5, amsgrad=True)\n" in output
    assert "hand it over with --config\n" in run(capsys, "inspect", FILES / "k3j" / "adam.weights.h5")


@keras_rules()
@pytest.mark.parametrize("decay", [None, 0.01])
def test_what_no_file_tells_of_weight_decay_is_said(capsys, tmp_path, monkeypatch, decay):
    monkeypatch.setenv("COLUMNS", "200")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")], name="m")
    compiled(model, keras.optimizers.Adam(weight_decay=decay)).save(tmp_path / "m.keras")
    untold = "what `exclude_from_weight_decay` excluded is in no file"
    assert (untold in run(capsys, "inspect", tmp_path / "m.keras")) == (decay is not None)
    assert (f", weight_decay=0.01: {untold})" in repr(ok.load_keras(tmp_path / "m.keras"))) == (decay is not None)


def test_the_command_runs_in_a_process_of_its_own():
    command = [sys.executable, "-m", "optax_kadam", "inspect", str(ADAM)]
    here = pathlib.Path(__file__).parents[2]
    result = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300, check=True)
    assert "\nm/d1/kernel " in result.stdout and not result.stderr


@pytest.mark.parametrize("name", mostly_slow(zip(WITH_STATE), lambda name: name.split("/")[1] not in ALIKE))
def test_a_linen_model_goes_on_from_the_checkpoint(capsys, tmp_path, name):
    training, out, options = ok.load_keras(FILES / name), tmp_path / "out", []
    rename = STANDARD if name == "tfk/adam.weights.h5" else {}
    if training.config is None:
        recorded = json.loads((FILES / name.partition("/")[0] / "adam.optconfig.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(recorded["get_config"]))
        options = ["--config", tmp_path / "config.json"]
    options += ["--rename", *(f"{there}={here}" for there, here in rename.items())] if rename else []
    before = set(tmp_path.iterdir())
    run(capsys, "convert", FILES / name, out, *options)
    assert set(tmp_path.iterdir()) == before | {out}
    model = Linen().init(jax.random.key(0), jnp.zeros((2, 5), int))
    tx, found = restored(out, model["params"], model["batch_stats"])
    expected = training.restore(model["params"], tx=tx, rename=rename)
    assert_same((found["params"], found["opt_state"]), expected)
    assert_same(found["non_trainable"], training.fill(model["batch_stats"], rename=rename))
    assert_same(step(tx, found["params"], found["opt_state"]), step(tx, *expected))


def test_an_nnx_model_goes_on_by_the_lines_of_the_help(capsys, tmp_path):
    run(capsys, "convert", ADAM, tmp_path / "out")
    rngs = nnx.Rngs(0)
    layers = {"emb": nnx.Embed(11, 4, rngs=rngs), "d1": nnx.Linear(20, 6, rngs=rngs)}
    model = nnx.Dict(layers, bn=nnx.BatchNorm(6, rngs=rngs), d2=nnx.Linear(6, 3, rngs=rngs))
    params, statistics = (nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat))
    code = "\n".join(line[2:] for line in RECIPE.splitlines() if line.startswith("  "))
    names = {"model": model, "OUT": tmp_path / "out"}
    exec(code, names)
    optimizer, tx = names["optimizer"], names["tx"]
    training = ok.load_keras(ADAM)
    expected = training.restore(params, tx=tx)
    assert_same(nnx.to_pure_dict(nnx.as_pure(nnx.state(model, nnx.Param))), expected[0])
    for name in ("mu", "nu", "iterations", "learning_rate"):
        state, other = (optax.tree.get(each, name) for each in (nnx.as_pure(optimizer.opt_state), expected[1]))
        assert_same(*(jax.tree.leaves(each) for each in (state, other)))
    optimizer.update(model, jax.tree.map(jnp.cos, nnx.state(model, nnx.Param)))
    assert_same(nnx.to_pure_dict(nnx.state(model, nnx.Param)), step(tx, *expected)[0])
    assert_same(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), training.fill(statistics))


@keras_rules()
def test_bad_input_is_refused_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ADAM.read_bytes()
    pathlib.Path("cut.keras").write_bytes(data[:4000])
    pathlib.Path("flipped.keras").write_bytes(data.replace(data[4000:4008], bytes(8)))
    pathlib.Path("notes.txt").write_text("not Keras's")
    with zipfile.ZipFile(ADAM) as old, zipfile.ZipFile("sgd.keras", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"class_name": "Adam"', b'"class_name": "SGD"'))
    model = type("M", (keras.Model,), {"call": lambda self, x: self.a(self.b(x))})()
    model.b, model.a = keras.layers.Dense(2, name="q"), keras.layers.Dense(2, name="p")
    model(np.zeros((1, 2)))
    compiled(model, keras.optimizers.Adam()).save_weights("order.weights.h5")
    before = sorted(tmp_path.iterdir())
    convert = f"convert {ADAM} out"
    files = {
        "none.keras": "There must be a file",
        "cut.keras": "'cut.keras'",
        "flipped.keras": "Received: 'flipped.keras",
        "notes.txt": "must be a file that Keras saved",
        "sgd.keras": "class_name='SGD'",
        "order.weights.h5": "must follow from the file",
    }
    for arguments, message in {
        **{f"inspect {file}": message for file, message in files.items()},
        **{f"convert {file} out": message for file, message in files.items()},
        f"inspect {ADAM} --config none.json": "--config: cannot be read: No such file or directory. Received: 'none",
        f"inspect {ADAM} --config notes.txt": "--config: must be a JSON file of an optimizer's get_config(). ",
        f"convert {ADAM} notes.txt": "`OUT` must not exist. Received: ",
        f"convert {ADAM} none/out": "`OUT` must be in a folder that exists. Received: ",
        f"{convert} --rename d1": "--rename: must be KERAS=HERE. Received: 'd1'.",
        f"{convert} --rename d1=a d1=b": "--rename: must name each part of Keras's paths once",
        f"{convert} --rename d3=a": "must name parts of Keras's paths. Received: 'd3'. The paths are m/emb/emb",
        f"{convert} --rename d1=d2": "Received: 'd2/kernel' for 'm/d1/kernel' and for 'm/d2/kernel'.",
        f"{convert} --rename m/d1/kernel=d2": "must not be a folder of another. Received: 'd2'",
        f"convert {FILES}/legacy/adam.keras out": "Received: mu=None, for a file of weights alone.",
    }.items():
        assert message in refusal(capsys, arguments)
        assert sorted(tmp_path.iterdir()) == before


@keras_rules()
def test_an_order_that_was_written_where_keras_is_is_read_where_it_is_not(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    pathlib.Path("towers.py").write_text(
        "import keras\n@keras.saving.register_keras_serializable()\nclass Towers(keras.Model):\n"
        "    def __init__(self, **arguments):\n        super().__init__(**arguments)\n"
        "        self.b, self.a = keras.layers.Dense(2), keras.layers.Dense(2)\n"
        "    def call(self, x):\n        return self.a(self.b(x))\n"
    )
    import towers  # pyright: ignore[reportMissingImports]

    model = towers.Towers()
    model(np.zeros((1, 2)))
    compiled(model, keras.optimizers.Adam())
    model.optimizer.build(model.trainable_variables)
    for i, variable in enumerate(model.optimizer._momentums):
        variable.assign(np.full(variable.shape, i))
        model.trainable_variables[i].assign(np.full(variable.shape, i))
    model.save("x.keras")
    assert "must follow from the file" in refusal(capsys, "inspect x.keras")
    assert "Wrote x.keras.order.json: 4 variables." in run(capsys, "order", "x.keras", "--import", "towers")
    training = ok.load_keras("x.keras", trainable="x.keras.order.json")
    for arrays in (training.mu, training.variables):
        assert [array.flat[0] for array in arrays.values()] == [0, 1, 2, 3]
    assert "as it was given" in run(capsys, "inspect", "x.keras", "--trainable", "x.keras.order.json")
    run(capsys, "convert", "x.keras", "out", "--trainable", "x.keras.order.json")
    assert "optimizer='other', where the file has 'optimizer'" in refusal(capsys, "inspect x.keras --optimizer other")
    for content in (
        "{}",
        '{"trainable": []}',
        json.dumps(json.loads(pathlib.Path("x.keras.order.json").read_text()) | {"trainable": [{}]}),
    ):
        pathlib.Path("y.json").write_text(content)
        assert "must be an order file. Received: 'y.json'" in refusal(capsys, "inspect x.keras --trainable y.json")
    assert "No module named 'nothing'" in refusal(capsys, "order x.keras --import nothing")
    model.compile("adam", "mse")
    monkeypatch.setattr(keras.models, "load_model", lambda path: model)
    assert "must have an optimizer that was built. Received: 'x.keras'" in refusal(capsys, "order x.keras")


@pytest.mark.parametrize(
    ("missing", "command"),
    [("orbax.checkpoint", "pip install -e '.[convert]'"), ("google_crc32c", "pip install google-crc32c")],
)
def test_missing_extras_are_named(capsys, tmp_path, monkeypatch, missing, command):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "optax_kadam.commands._convert", raising=False)
    monkeypatch.delattr("optax_kadam.commands._convert", raising=False)
    assert command in refusal(capsys, f"convert {FILES}/tfk/adam_ckpt/ck {tmp_path}/out")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_beforehand(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: types.SimpleNamespace(free=2483))
    assert "2,483 bytes free" in refusal(capsys, f"convert {ADAM} {tmp_path}/out") and not list(tmp_path.iterdir())
