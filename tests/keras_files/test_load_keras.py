"""Files that Keras saved: the recorded ones of every format, those of a live Keras 3, and damaged ones."""

import io
import json
import pathlib
import random
import shutil

import h5py
import numpy as np
import optax
import pytest

import optax_kadam as ok
from optax_kadam.keras_files import _training

from ..helpers import keras_rules
from ..sparing import mostly_slow

keras = pytest.importorskip("keras")

FILES = pathlib.Path(__file__).parents[1] / "golden" / "files"
SLOTS = {"mu": "m", "nu": "v", "nu_max": "vhat", "average": "average", "accumulator": "accum"}
ENDINGS = (".keras", ".weights.h5", ".h5", ".weights.json", "_ckpt/ck", "_tfweights/ckpt", "_savedmodel", "_export")


def samples():
    for expected in sorted(FILES.glob("*/*.expected.npz")):
        stem = expected.name.removesuffix(".expected.npz")
        for ending in ENDINGS:
            path = expected.parent / f"{stem}{ending}"
            if path.exists() or path.with_name(f"{path.name}.index").exists():
                yield pytest.param(path, expected, id=f"{expected.parent.name}/{path.relative_to(expected.parent)}")


@pytest.mark.filterwarnings("ignore:.* holds weights alone")
@pytest.mark.parametrize(("path", "expected"), list(samples()))
def test_every_recorded_file_gives_its_arrays(path, expected):
    training = ok.load_keras(path)
    with np.load(expected) as arrays:
        names = arrays["trainable_names"].tolist()
        weights = {name: arrays[f"weight/{i}"] for i, name in enumerate(arrays["weight_names"].tolist())}
        slots = {
            slot: [arrays[f"{key}/{i}"] for i in range(len(names))]
            for slot, key in SLOTS.items()
            if f"{key}/0" in arrays
        }
        iterations = int(arrays["iterations"])
    # tf_keras's .weights.h5 has no names; its legacy optimizer and Keras 3's export save no optimizer state.
    is_nameless = path.name.endswith(".weights.h5") and path.parent.name != "k3j" and path.parent.name != "k3t"
    has_state = not path.name.endswith("_export") and (path.parent.name, path.suffix) != ("legacy", ".keras")
    has_state &= not (path.parent.name == "legacy" and is_nameless)
    assert is_nameless or list(training.variables)[: len(names)] == names
    ordered = [weights[name] for name in [*names, *(name for name in weights if name not in names)]]
    if training.order is None:
        ordered.sort(key=np.ndarray.tobytes)
        assert sorted(map(np.ndarray.tobytes, training.variables.values())) == list(map(np.ndarray.tobytes, ordered))
        return
    for found, wanted in zip(training.variables.values(), ordered, strict=True):
        assert found.dtype == wanted.dtype and np.array_equal(found, wanted)
    for slot in SLOTS:
        found = getattr(training, slot)
        assert (found is not None) == (has_state and slot in slots)
        if found is not None:
            assert list(found) == list(training.variables)[: len(names)]
            assert all(np.array_equal(a, b) for a, b in zip(found.values(), slots[slot], strict=True))
    assert training.iterations == (iterations if has_state else 0)
    if has_state and training.config is not None:
        assert training.learning_rate == float(np.float32(0.01))
        assert training.transformation()


def _functional_made_otherwise():
    last, first = keras.layers.Dense(4), keras.layers.Dense(4)
    inputs = keras.Input((4,))
    return keras.Model(inputs, last(keras.layers.BatchNormalization()(first(inputs))))


def _nested():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="z"), keras.layers.Dense(4, name="a")])
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(4, name="m")(inner(keras.layers.Dense(4, name="y")(inputs))))


def _sequence_layers():
    x = inputs = keras.Input((3, 4))
    x = keras.layers.Bidirectional(keras.layers.LSTM(2))(x)
    x = keras.layers.RepeatVector(3)(x)
    x = keras.layers.MultiHeadAttention(2, 2)(x, x)
    x = keras.layers.RNN([keras.layers.GRUCell(4), keras.layers.LSTMCell(4)])(x)
    return keras.Model(inputs, keras.layers.Dense(4, trainable=False)(x))


def _twelve():
    return keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4, use_bias=i % 2 == 0) for i in range(12))])


class Subclass(keras.Model):
    """Attributes that are not in the order of the alphabet, one in a list, a custom layer, and automatic names."""

    def __init__(self, first=None, second=None, width=4):
        super().__init__()
        self.zeta, self.alpha = keras.layers.Dense(4, name=first), keras.layers.Dense(width, name=second)
        self.more = [keras.layers.LayerNormalization(), keras.layers.Dense(4)]

    def call(self, x):
        for layer in (self.alpha, *self.more, self.zeta):
            x = layer(x)
        return x


def _subclass(*names):
    model = Subclass(*names)
    model(np.zeros((1, 4)))
    return model


MODELS = {f.__name__: f for f in (_functional_made_otherwise, _nested, _sequence_layers, _twelve, _subclass)}
OPTIMIZERS = {
    "adam": {},
    "amsgrad": {"amsgrad": True},
    "all": {"amsgrad": True, "use_ema": True, "gradient_accumulation_steps": 3, "weight_decay": 0.1},
    "schedule": {"learning_rate": lambda: keras.optimizers.schedules.CosineDecay(0.1, 100)},
}


def live(model, arguments, seed=0):
    """Compile and build the model, with random numbers in every variable of its optimizer."""
    arguments = {name: value() if callable(value) else value for name, value in arguments.items()}
    model.compile(optimizer=keras.optimizers.Adam(**arguments), loss="mse")
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(seed)
    for variable in [*model.weights, *model.optimizer.variables]:
        if variable.shape:
            variable.assign(rng.normal(size=variable.shape))
    model.optimizer._iterations.assign(7)


def slots_of(optimizer):
    found = {
        "mu": optimizer._momentums,
        "nu": optimizer._velocities,
        "nu_max": optimizer._velocity_hats if optimizer.amsgrad else None,
        "average": optimizer._model_variables_moving_average if optimizer.use_ema else None,
        "accumulator": optimizer._accumulated_gradients if optimizer.gradient_accumulation_steps else None,
    }
    return {name: kept and [np.asarray(variable) for variable in kept] for name, kept in found.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", mostly_slow(zip(MODELS), lambda model: model != "_sequence_layers"))
@keras_rules()
def test_what_a_live_keras_saves_is_what_is_read(model, optimizer, tmp_path):
    built = MODELS[model]()
    live(built, OPTIMIZERS[optimizer])
    paths = [tmp_path / f"model{ending}" for ending in (".keras", ".weights.h5", ".weights.json", ".h5")]
    built.save(paths[0])
    built.save_weights(paths[1])
    built.save_weights(paths[2], max_shard_size=1e-6)
    if model == "_subclass":
        paths.pop()  # Keras refuses it.
    else:
        built.save(paths[3])
    config = keras.optimizers.serialize(built.optimizer)
    for path in paths:
        arguments = {"config": config}
        if model == "_subclass" or (model in ("_nested", "_sequence_layers") and ".weights" in path.name):
            with pytest.raises(ValueError, match=r"must follow from the file. .*`load_keras\(path, trainable="):
                ok.load_keras(path, **arguments)
            arguments["trainable"] = [np.asarray(variable) for variable in built.trainable_variables]
        training = ok.load_keras(path, **arguments)
        for name, wanted in slots_of(built.optimizer).items():
            found = getattr(training, name)
            assert (found is None) == (wanted is None)
            assert wanted is None or all(map(np.array_equal, found.values(), wanted))
        trained = [np.asarray(variable) for variable in built.trainable_variables]
        assert all(map(np.array_equal, training.variables.values(), trained))
        assert len(training.variables) == len(built.weights) and training.iterations == 7
        if path.suffix == ".h5" and ".weights" not in path.name:
            assert list(training.mu) == [variable.path for variable in built.trainable_variables]


@keras_rules()
def test_an_order_that_the_file_does_not_tell_is_asked_for(tmp_path):
    model = _subclass("b", "a")
    live(model, {})
    model.save_weights(tmp_path / "x.weights.h5")
    with pytest.raises(ValueError, match=r"must follow from the file. .*`load_keras\(path, trainable="):
        ok.load_keras(tmp_path / "x.weights.h5")
    paths = [variable.path for variable in model.trainable_variables]
    training = ok.load_keras(tmp_path / "x.weights.h5", trainable=paths)
    assert list(training.mu) == paths
    assert all(map(np.array_equal, training.mu.values(), slots_of(model.optimizer)["mu"]))
    with pytest.raises(ValueError, match="`trainable` must name variables of the file"):
        ok.load_keras(tmp_path / "x.weights.h5", trainable=["nothing"])
    with pytest.raises(ValueError, match="in the order of the optimizer's moments"):
        ok.load_keras(tmp_path / "x.weights.h5", trainable=paths[::-1])


@keras_rules()
def test_automatic_names_need_not_be_in_the_order_of_the_layers(tmp_path):
    """A layer called `dense_1001` may be made before `dense_1000`: the shapes of the moments tell the order then."""
    model = Subclass("dense_1001", "dense_1000", width=5)
    model(np.zeros((1, 4)))
    live(model, {})
    model.save_weights(tmp_path / "x.weights.h5")
    training = ok.load_keras(tmp_path / "x.weights.h5")
    assert list(training.mu) == [variable.path for variable in model.trainable_variables]
    assert all(map(np.array_equal, training.mu.values(), slots_of(model.optimizer)["mu"]))


def test_the_numbers_of_tensorflow_2_13_are_those_of_the_layers(tmp_path):
    """It calls the layers of one class `dense`, `dense_2`, `dense_3`, and the list otherwise."""
    whole = ok.load_keras(FILES / "tfk/adam.keras")
    shutil.unpack_archive(FILES / "tfk/adam.keras", tmp_path / "x", "zip")
    changed = tmp_path / "x/model.weights.h5"
    with h5py.File(changed, "r+") as old, h5py.File(tmp_path / "new", "w") as new:
        old.move("layers/dense_1", "layers/dense_2")
        old.move("layers", "_layer_checkpoint_dependencies")
        for key in old:
            old.copy(key, new)
    (tmp_path / "new").replace(changed)
    found = ok.load_keras(tmp_path / "x")
    assert found.order == "listed" and list(found.variables) == list(whole.variables)
    assert all(map(np.array_equal, found.nu.values(), whole.nu.values()))


@keras_rules()
@pytest.mark.parametrize(("version", "by_turns"), [("3.9.2", True), ("3.10.0", False), ("4.1.0", False)])
def test_averages_and_accumulators_that_older_versions_wrote_by_turns_are_told_apart(version, by_turns, tmp_path):
    """Before 3.10, Keras wrote the average and the accumulator of a variable before those of the next one."""
    layers = [keras.layers.Dense(4, use_bias=False) for _ in range(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    live(model, OPTIMIZERS["all"])
    model.save(tmp_path / "x.keras")
    shutil.unpack_archive(tmp_path / "x.keras", tmp_path / "x", "zip")
    with h5py.File(tmp_path / "x/model.weights.h5", "r+") as file:
        variables = file["optimizer/vars"]  # The step count, the rate, two averages, two accumulators.
        if by_turns:
            (variables["3"][...], variables["4"][...]) = variables["4"][...], variables["3"][...]
    metadata = json.loads((tmp_path / "x/metadata.json").read_text())
    (tmp_path / "x/metadata.json").write_text(json.dumps(metadata | {"keras_version": version}))
    training = ok.load_keras(tmp_path / "x")
    for name in ("average", "accumulator"):
        assert all(map(np.array_equal, getattr(training, name).values(), slots_of(model.optimizer)[name]))


@keras_rules()
def test_bfloat16_and_a_loss_scale_are_read(tmp_path):
    layers = [keras.Input((4,)), keras.layers.Dense(3, dtype="bfloat16"), keras.layers.Dense(2, dtype="float16")]
    model = keras.Sequential(layers)
    inner = keras.optimizers.Adam()
    model.compile(optimizer=keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0), loss="mse")
    model.optimizer.build(model.trainable_variables)
    for path in (tmp_path / "x.keras", tmp_path / "x.h5"):
        model.save(path)
        training = ok.load_keras(path)
        assert [array.dtype.name for array in training.mu.values()] == ["bfloat16"] * 2 + ["float16"] * 2
        assert training.dynamic_scale == 8.0 and training.step_counter == 0


@keras_rules()
@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_the_scale_that_a_policy_puts_around_is_there(ending, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="mixed_float16")])
    model.compile("adam", "mse", auto_scale_loss=True)
    model.dtype_policy = keras.DTypePolicy("mixed_float16")
    model.compile("adam", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.fit(np.ones((8, 4), np.float32), np.ones((8, 3), np.float32), verbose=0)
    path = tmp_path / f"x.{ending}"
    model.save(path) if ending == "keras" else model.save_weights(path)
    inner = keras.optimizers.serialize(model.optimizer.inner_optimizer)
    training = ok.load_keras(path, config=None if ending == "keras" else inner)
    scale = float(model.optimizer.dynamic_scale)
    assert training.config["class_name"] == "LossScaleOptimizer" and training.dynamic_scale == scale
    _, state = training.restore({path: training.variables[path] for path in training.mu})
    assert optax.tree.get(state, "dynamic_scale") == scale


@pytest.mark.parametrize("group", ["model_weights/d1", "model_weights", "optimizer_weights"])
def test_names_that_keras_wrote_in_pieces_are_read(group, tmp_path):
    """A list that is too long for an attribute of HDF5 stands in `weight_names0`, `weight_names1` and so on."""
    shutil.copy(FILES / "k3j/adam.h5", tmp_path / "x.h5")
    attribute = "layer_names" if group == "model_weights" else "weight_names"
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        names = file[group].attrs[attribute]
        del file[group].attrs[attribute]
        for i, piece in enumerate(np.array_split(names, 2)):
            file[group].attrs[f"{attribute}{i}"] = piece
    whole, found = ok.load_keras(FILES / "k3j/adam.h5"), ok.load_keras(tmp_path / "x.h5")
    for name in ("variables", "mu", "nu"):
        arrays = getattr(whole, name)
        assert list(getattr(found, name)) == list(arrays)
        assert all(map(np.array_equal, getattr(found, name).values(), arrays.values()))
    assert found.iterations == 20


SUBSET = ["k3j/adam.keras", "k3j/adam.h5", "tfk/amsgrad.weights.h5", "k3j/adam.weights.json", "tfk/adam_savedmodel"]


@pytest.mark.parametrize("name", SUBSET)
def test_a_damaged_file_gives_its_arrays_or_an_error(name, tmp_path):
    source = FILES / name
    if source.is_dir():
        shutil.copytree(source, tmp_path / source.name)
    else:
        stem = source.name.split(".")[0]
        for path in [source, *(source.parent.glob(f"{stem}_0*.h5") if name.endswith("json") else ())]:
            shutil.copy(path, tmp_path)
    path = tmp_path / source.name
    whole = ok.load_keras(path)
    has_checksum = source.suffix == ".keras"
    damaged = [
        p for p in sorted(tmp_path.rglob("*")) if p.is_file() and p.name not in ("saved_model.pb", "fingerprint.pb")
    ]
    rng, refused = random.Random(name), 0
    for i in range(120):
        target = rng.choice(damaged)
        content = target.read_bytes()
        place = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        target.write_bytes(flipped if i % 6 else content[: place // 8])
        try:
            found = ok.load_keras(path)
            if has_checksum:
                for name in ("variables", "mu", "nu"):
                    assert all(map(np.array_equal, getattr(found, name).values(), getattr(whole, name).values()))
                assert found.config == whole.config
        except ValueError:
            refused += 1
        target.write_bytes(content)
    assert refused > 20


@keras_rules()
def test_what_is_no_training_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path`. Received: path='nowhere'"):
        ok.load_keras("nowhere")
    (tmp_path / "x.keras").write_text("hello")
    with pytest.raises(ValueError, match="must be a file that Keras saved"):
        ok.load_keras(tmp_path / "x.keras")
    with pytest.raises(TypeError, match="`config` must be a mapping"):
        ok.load_keras(FILES / "k3j/adam.keras", config=1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "sgd.keras")
    with pytest.raises(ValueError, match="must be Keras's own Adam or AdamW"):
        ok.load_keras(tmp_path / "sgd.keras")
    model.compile(optimizer="adamax", loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "adamax.weights.h5")
    with pytest.raises(ValueError, match="must be an Adam. Received: one that is called 'adamax"):
        ok.load_keras(tmp_path / "adamax.weights.h5")
    model.compile(optimizer=keras.optimizers.Adam(use_ema=True), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "ema.weights.h5")
    with pytest.raises(ValueError, match=r"`load_keras\(path, config=optimizer.get_config\(\)\)`"):
        ok.load_keras(tmp_path / "ema.weights.h5")
    training = ok.load_keras(FILES / "k3j/adam.weights.h5")
    with pytest.raises(ValueError, match="must hold the optimizer's configuration"):
        training.transformation()
    model.compile(optimizer="adam", loss="mse")
    model.save(tmp_path / "new.keras")
    with pytest.warns(UserWarning, match="new.keras' holds weights alone, and no state of an optimizer"):
        assert ok.load_keras(tmp_path / "new.keras").mu is None


@pytest.mark.parametrize("name", ["adam.keras", "adam.weights.h5", "adam.h5"])
def test_a_file_that_is_open_is_read(name):
    path = FILES / "k3j" / name
    whole = ok.load_keras(path)
    with open(path, "rb") as file:
        for opened in (file, io.BytesIO(path.read_bytes())):
            opened.seek(7)
            found = ok.load_keras(opened)
            assert not opened.closed and list(found.variables) == list(whole.variables)
            assert all(map(np.array_equal, found.nu.values(), whole.nu.values()))
    with pytest.raises(
        TypeError, match="`path` must be a path, or a file that is open .* Received: path=b'content'. Hand"
    ):
        ok.load_keras(b"content")
    with pytest.raises(ValueError, match="must be a file that Keras saved. Received: path='BytesIO', which has none"):
        ok.load_keras(io.BytesIO(b"content"))


def test_what_was_read_cannot_be_written_to():
    training = ok.load_keras(FILES / "k3j/adam.keras")  # Its memory may be JAX's too.
    with pytest.raises(ValueError, match="read-only"):
        training.variables["m/d1/bias"][0] = 1.0


@pytest.mark.parametrize("name", SUBSET)
def test_arrays_begin_where_jax_takes_them_without_a_copy(name):
    """On a CPU, JAX copies an array that does not begin at a multiple of 64 bytes."""
    training = ok.load_keras(FILES / name)
    arrays = [*training.variables.values(), *training.mu.values(), *training.nu.values()]
    assert not any(array.ctypes.data % 64 for array in arrays)


def changed(name, change, path):
    """Write to `path` the recorded file `name` after a change, as if h5py had never written another."""
    shutil.copy(FILES / name, path.with_name("changed"))
    with h5py.File(path.with_name("changed"), "r+") as file, h5py.File(path, "w") as packed:
        change(file)
        for key in file:
            file.copy(key, packed)
        packed.attrs.update(file.attrs)


def _renamed(old, new):
    return lambda file: file.move(old, new)


def _renamed_attribute(old, new):
    return lambda file: file.attrs.create(new, file.attrs.pop(old))


UNCLAIMED = {
    ("k3j/adam.weights.h5", "must stand in a group `optimizer`. Received: them in 'optimizes'"): _renamed(
        "optimizer", "optimizes"
    ),
    ("k3j/adam.weights.h5", "Received: the array /layers/dense/wars/0"): _renamed(
        "layers/dense/vars", "layers/dense/wars"
    ),
    ("k3j/adam.weights.h5", "Received: the array /layers/x"): lambda file: file.create_dataset("layers/x", data=0.0),
    ("k3j/adam.weights.h5", r"Received: the attribute 'x' of /"): lambda file: file.attrs.update(x="y"),
    ("k3j/adam.h5", "Received: the attribute 'training_confhg' of /"): _renamed_attribute(
        "training_config", "training_confhg"
    ),
    ("k3j/adam.h5", "must hold each layer that it lists. Received: none for 'bn'"): _renamed(
        "model_weights/bn", "model_weigxts/bn"
    ),
    ("k3j/adam.h5", "Received: the array /optimizes_weights"): _renamed("optimizer_weights", "optimizes_weights"),
}


@pytest.mark.parametrize(("name", "message"), UNCLAIMED)
def test_what_neither_a_layer_nor_the_optimizer_claims_is_refused(name, message, tmp_path):
    path = tmp_path / pathlib.Path(name).name
    changed(name, UNCLAIMED[name, message], path)
    with pytest.raises(ValueError, match=message):
        ok.load_keras(path)


SIGNED, UNSIGNED = b"\x10\x08\0\0\x04\0\0\0\0\0\x20\0", b"\x10\0\0\0\x04\0\0\0\0\0\x20\0"


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, -5, "`iterations` must be a number of steps, as a signed integer. Received: iterations=-5 of dtype int32"),
        (0, None, "`iterations` must be .* Received: iterations=20 of dtype uint32"),
        (1, np.nan, "`learning_rate` must be a number of at least 0. Received: learning_rate=nan of dtype float32"),
        (1, -0.1, "`learning_rate` must be a number of at least 0. Received: learning_rate=-0.1"),
    ],
)
def test_numbers_that_no_training_has_are_refused(index, value, message, tmp_path):
    path = tmp_path / "x.weights.h5"
    content = (FILES / "k3j/adam.weights.h5").read_bytes()
    path.write_bytes(content if value is not None else content.replace(SIGNED, UNSIGNED))
    with h5py.File(path, "r+") as file:
        if value is not None:
            file[f"optimizer/vars/{index}"][...] = value
    with pytest.raises(ValueError, match=message):
        ok.load_keras(path)


def test_an_hdf5_file_without_a_model_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w"):
        pass
    with pytest.raises(ValueError, match="must hold the variables of a model. Received: .*x.h5', which holds none"):
        ok.load_keras(tmp_path / "x.h5")


@pytest.mark.parametrize("trainable", [5, "m/d1/kernel", [1], pathlib.Path("none.json")])
def test_a_wrong_order_is_named(trainable):
    with pytest.raises(TypeError, match="`trainable` must be a list of variables, .* Received: trainable="):
        ok.load_keras(FILES / "k3j/adam.keras", trainable=trainable)


def test_an_error_of_our_own_is_no_damage(monkeypatch):
    monkeypatch.setattr("optax_kadam.keras_files._open.numbered_contents", lambda *_: {}["a fault of ours"])
    with pytest.raises(KeyError, match="a fault of ours"):
        ok.load_keras(FILES / "k3j/adam.keras")


@pytest.mark.parametrize("name", ["k3j/adam.keras", "k3j/adam.weights.h5", "k3j/adam.h5"])
def test_a_file_that_is_replaced_while_it_is_read_gives_the_old_one(name, tmp_path, monkeypatch):
    path, other = tmp_path / pathlib.Path(name).name, FILES / name.replace("adam", "amsgrad")
    shutil.copy(FILES / name, path)
    whole = ok.load_keras(path)
    read = _training.read

    def replaced(contents):
        shutil.copy(other, tmp_path / "new")
        (tmp_path / "new").replace(path)
        return read(contents)

    monkeypatch.setattr(_training, "read", replaced)
    found = ok.load_keras(path)
    assert found.nu_max is None and all(map(np.array_equal, found.nu.values(), whole.nu.values()))


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.weights.h5"
    shutil.copy(FILES / "k3j/adam.weights.h5", path)
    read = _training.read
    monkeypatch.setattr(_training, "read", lambda contents: (read(contents), path.write_bytes(b""))[0])
    with pytest.raises(ValueError, match="must not change while it is read. Received: .*x.weights.h5"):
        ok.load_keras(path)
