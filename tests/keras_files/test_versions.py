"""Files of Keras 3.0 to 3.15 and of TensorFlow 2.1 to 2.15: what each wrote is read, or refused with a remedy."""

import functools
import json
import pathlib
import re
import shutil
import tarfile

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

VERSIONS = pathlib.Path(__file__).parents[1] / "golden" / "files" / "versions"
SLOTS = {"mu": "m", "nu": "v", "nu_max": "vhat", "average": "average", "accumulator": "accum"}
# Keras raised an error while it wrote this file, and left the layers after a Bidirectional out.
REFUSED = {
    ("keras3.0", f"{variant}.h5"): "must hold each layer that it lists. .* save it as `.keras`"
    for variant in ("named", "plain", "all", "scaled", "policy")
}
ASKS = {
    "config": r"Hand (over its configuration|it over): `load_keras\(path, config=optimizer.get_config\(\)\)`",
    "trainable": r"hand over the variables: `load_keras\(path, trainable=model.trainable_variables\)`",
}


def samples():
    """Yield the version and the name of each file that was recorded."""
    for path in sorted(VERSIONS.glob("*.tar.xz")):
        version = path.name.removesuffix(".tar.xz")
        with tarfile.open(path) as archive:
            names = sorted({name.partition("/")[0] for name in archive.getnames()})
        for name in names:
            if not name.endswith(".expected.npz"):
                yield pytest.param(version, name, id=f"{version}-{name}")


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """Return a function from a version to the folder in which its files are."""

    @functools.cache
    def unpacked(version):
        folder = tmp_path_factory.mktemp(version)
        with tarfile.open(VERSIONS / f"{version}.tar.xz") as archive:
            # Pythons before 3.11.4 have no filters; a Python 3.12 warns of none.
            archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        return folder

    return unpacked


def expectations(path):
    """Return what was recorded of the model that was saved at `path`, by name."""
    variant = re.split("[._]", path.name)[0]
    with np.load(path.with_name(f"{variant}.expected.npz")) as arrays:
        return {name: arrays[name] for name in arrays.files}


def assert_equal(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


def loaded(path, expected):
    """Return the training in a file. What an error asks for is handed over."""
    told = {
        "config": json.loads(str(expected["config"])),
        "trainable": [
            expected[f"weight/{expected['weight_names'].tolist().index(n)}"] for n in expected["trainable_names"]
        ],
    }
    arguments = {}
    while True:
        try:
            training = ok.load_keras(path, **arguments)
            if training.mu is not None:
                training.transformation()
            return training
        except ValueError as error:
            asked = next((name for name, message in ASKS.items() if re.search(message, str(error))), None)
            if asked is None or asked in arguments:
                raise
            arguments[asked] = told[asked]


def test_all_versions_are_there():
    versions = {parameter.values[0] for parameter in samples()}
    keras3, tensorflow = (0, 3, 6, 9, 15), (1, 4, 8, 12, 13, 15)
    assert versions == {f"keras3.{n}" for n in keras3} | {f"tf2.{n}" for n in tensorflow}


@pytest.mark.filterwarnings("ignore:.* holds weights alone")
@pytest.mark.parametrize(("version", "name"), list(samples()))
def test_every_version_gives_its_arrays(version, name, recorded):
    path = recorded(version) / name
    expected = expectations(path)
    names, all_names = (expected[key].tolist() for key in ("trainable_names", "weight_names"))
    weights = {name: expected[f"weight/{i}"] for i, name in enumerate(all_names)}
    if (version, name) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[version, name]):
            loaded(path, expected)
        return
    training = loaded(path, expected)
    if name.endswith("_export"):
        assert training.mu is None and training.order is None and set(training.variables) == set(all_names)
        assert_equal([training.variables[name] for name in all_names], weights.values())
        return
    if not name.endswith(".weights.h5"):  # Only the newest versions write names there.
        wanted = names
        if (version, path.suffix) == ("tf2.12", ".keras"):  # It numbers the cells, and does not write their names.
            wanted = [re.sub(r"lstm_cell_\d", "lstm_cell", name) for name in names]
        assert list(training.variables)[: len(names)] == wanted
    assert_equal(training.variables.values(), [weights[n] for n in [*names, *(n for n in all_names if n not in names)]])
    for slot, key in SLOTS.items():
        found = getattr(training, slot)
        assert (found is not None) == (f"{key}/0" in expected)
        if found is not None:
            assert list(found) == list(training.variables)[: len(names)]
            assert_equal(found.values(), [expected[f"{key}/{i}"] for i in range(len(names))])
    assert training.iterations == int(expected["iterations"])
    has_scale = (
        version.startswith("keras3") or not path.suffix
    )  # The files of TensorFlow that are no checkpoints do not.
    for scalar in ("step_counter", "dynamic_scale"):
        wanted = float(expected[scalar]) if has_scale and scalar in expected else None
        assert getattr(training, scalar) == wanted
    assert training.config["class_name"].startswith("LossScaleOptimizer") == ("dynamic_scale" in expected)
    assert np.float32(training.learning_rate) == expected["learning_rate"]
    training.restore({name: training.variables[name] for name in training.mu}, tx=training.transformation())


def test_an_optimizer_that_compile_was_given_by_its_name_has_keras_defaults(recorded, tmp_path):
    """Keras 3.0 and 3.3, and TensorFlow 2.12 to 2.15, save `"adam"` in the place of a configuration."""
    shutil.unpack_archive(recorded("keras3.0") / "named.keras", tmp_path, "zip")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["compile_config"]["optimizer"] == "adam"

    def named(name, version):
        path.write_text(json.dumps(config | {"compile_config": {"optimizer": name}}))
        (tmp_path / "metadata.json").write_text(json.dumps({"keras_version": version}))
        return ok.load_keras(tmp_path)

    assert named("adam", "3.0.5").generation == "keras3" and named("adam", "3.0.5").learning_rate == np.float32(0.001)
    parameter = {"x": np.ones(1, np.float32)}
    decayed, plain = (named(name, "3.0.5").transformation() for name in ("AdamW", "adam"))
    zero = {"x": np.zeros(1, np.float32)}
    assert decayed.update(zero, decayed.init(parameter), parameter)[0]["x"] == pytest.approx(-0.004 * 0.001, rel=0.01)
    assert plain.update(zero, plain.init(parameter), parameter)[0]["x"] == 0.0
    with pytest.raises(ValueError, match="`class_name` must be Keras's own Adam or AdamW, .* class_name='rmsprop'"):
        named("rmsprop", "3.0.5")


@pytest.mark.parametrize(("version", "is_kept"), [("keras3.3", True), ("tf2.15", False)])
def test_a_learning_rate_that_a_name_cannot_hold_is_not_lost(version, is_kept, recorded, tmp_path):
    template, path = recorded(version) / "named.keras", tmp_path / "x.keras"
    training = ok.load_keras(template)
    params, state = training.restore({name: training.variables[name] for name in training.mu})
    ok.save_keras(path, params, state, template=template)
    assert ok.load_keras(path).learning_rate == training.learning_rate
    state = optax.tree.set(state, learning_rate=jnp.float32(3e-4))
    if is_kept:
        ok.save_keras(path, params, state, template=template)
        assert ok.load_keras(path).learning_rate == np.float32(3e-4)
    else:
        with pytest.raises(ValueError, match="`template` must hold the learning rate, .* the name 'adam'. Compile its"):
            ok.save_keras(path, params, state, template=template)


def test_a_slot_whose_variable_keras_3_0_does_not_name_is_refused(recorded, tmp_path):
    """There, `kernel` of the cell in a layer `lstm` is `lstm/kernel`, and its slot `lstm_lstm_cell_kernel_momentum`."""
    path = tmp_path / "x.h5"
    content = (recorded("keras3.0") / "flat.h5").read_bytes()
    assert content.count(b"sequential_dense_kernel_") == 4
    path.write_bytes(content.replace(b"sequential_dense_kernel_", b"sequential_dense_kernem_"))
    message = "must be the slot of one of the model's variables. .*kernem_momentum'. .* save the model as `.keras`"
    with pytest.raises(ValueError, match=message):
        ok.load_keras(path)
