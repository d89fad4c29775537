"""Whose moments are these: read from the file, proven by the shapes, or told. A live Keras knows the answer."""

import collections
import json

import h5py
import numpy as np
import pytest

import optax_kadam as ok
from optax_kadam.keras_files.layouts import _layers

from ...helpers import keras_rules
from ...stress import orders

keras = pytest.importorskip("keras")
L = keras.layers
DENSE = L.Dense


class Towers(keras.Model):
    """Two layers that are not made in the order of their names."""

    def __init__(self):
        super().__init__()
        self.b, self.a = DENSE(4), DENSE(4)

    def call(self, x):
        return self.a(self.b(x))


class Holder(L.Layer):
    """A layer with a layer of its own, and one that was handed in."""

    def __init__(self, inner, width=4, **arguments):
        super().__init__(**arguments)
        self.z, self.m = DENSE(width, use_bias=False), inner

    def call(self, x):
        return self.z(self.m(x))


class Shared(keras.Model):
    """The first layer stands in the file below the last one, which holds it too; by its shape it could be another."""

    def __init__(self):
        super().__init__()
        self.z, self.mid = DENSE(4, use_bias=False), DENSE(4, use_bias=False)
        self.block = Holder(self.z, 6)

    def call(self, x):
        return self.block(self.mid(self.z(x)))


class Listed(keras.Model):
    """A list that is another when it is saved than when its layers were noticed."""

    def __init__(self, change):
        super().__init__()
        self.attribute = DENSE(4) if change == "attribute" else None
        self.all = [DENSE(4), DENSE(4)]
        if change == "insert":
            self.all.insert(0, DENSE(4))
        elif change == "reverse":
            self.all.reverse()
        else:
            self.all.append(self.attribute)

    def call(self, x):
        for layer in self.all:
            x = layer(x)
        return x


class FunctionalSubclass(keras.Model):
    """Its layers are attributes before they are its layers, as in every model of keras_hub."""

    def __init__(self):
        self.b, self.a = DENSE(4), DENSE(4)
        inputs = keras.Input((4,))
        super().__init__(inputs, self.b(self.a(inputs)))


class TwoWeights(L.Layer):
    """Two variables of one shape, of which the first is frozen."""

    def build(self, shape):
        self.first = self.add_weight(shape=(4,), name="first")
        self.second = self.add_weight(shape=(4,), name="second")
        self.first.trainable = False

    def call(self, x):
        return x * self.first + self.second


class OwnKernel(L.Layer):
    """One variable, of the shape of a kernel."""

    def build(self, shape):
        self.k = self.add_weight(shape=(4, 4), name="k")

    def call(self, x):
        return x @ self.k


class LayerNormalization(L.Layer):
    """A layer that is called like one of Keras's, and makes its variables in another order."""

    def build(self, shape):
        self.beta, self.gamma = self.add_weight(shape=(4,), name="beta"), self.add_weight(shape=(4,), name="gamma")

    def call(self, x):
        return x * self.gamma + self.beta


class Normalized(L.Layer):
    """Its attribute `normalization` is no Normalization."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.normalization, self.dense = L.BatchNormalization(scale=False), DENSE(4)

    def call(self, x):
        return self.dense(self.normalization(x))


class MLP(keras.Model):
    """An argument called `layers` that lists no layers, and an attribute that ends like a metric."""

    def __init__(self, layers=(4, 5)):
        super().__init__()
        self.sizes, self.geometric = list(layers), [DENSE(size) for size in layers]

    def call(self, x):
        for layer in self.geometric:
            x = layer(x)
        return x

    def get_config(self):
        return {"layers": self.sizes}


class AutoEncoder(keras.Model):
    """Two models, whose biases have the same shape."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = (keras.Sequential([DENSE(8), DENSE(size)]) for size in (3, 4))

    def call(self, x):
        return self.decoder(self.encoder(x))


def built(model):
    model(np.zeros((1, 4), np.float32))
    return model


def sequential(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


def functional(*layers):
    x = inputs = keras.Input((4,))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def with_lora(count):
    model = sequential(*(DENSE(4) for _ in range(3)))
    for layer in model.layers[count:]:
        layer.trainable = False
    for layer in model.layers[:count]:
        layer.enable_lora(4)
    return model


def partly_frozen():
    model = sequential(DENSE(5), DENSE(3))
    model.layers[0].kernel.trainable = False
    return model


def with_attributes():
    model = functional(DENSE(4), DENSE(4))
    model.again, model.more, model.another = model.layers[1], DENSE(4), DENSE(4)
    for layer in (model.more, model.another):
        layer.build((4,))
    return model


def around_a_compiled_model():
    inner = sequential(DENSE(4), DENSE(5))
    inner.compile("adam", "mse")
    inner.optimizer.build(inner.trainable_variables)
    return functional(inner, DENSE(3))


def layers_of_layers():
    """Every layer of Keras's that makes layers. Most of these have the shapes of another, so that the order matters."""
    x = inputs = keras.Input((4,))
    x = L.RepeatVector(3)(x)
    x = L.MultiHeadAttention(2, 2)(x, x)
    x = L.GroupQueryAttention(2, 2, 2)(x, x)
    x = L.Bidirectional(L.LSTM(2, return_sequences=True))(x)
    x = L.Bidirectional(
        L.GRU(2, return_sequences=True), backward_layer=L.GRU(2, return_sequences=True, go_backwards=True)
    )(x)
    x = L.RNN([L.LSTMCell(4), L.GRUCell(4), L.LSTMCell(4), L.SimpleRNNCell(4)], return_sequences=True)(x)
    x = L.SimpleRNN(4, return_sequences=True)(x)
    x = L.TimeDistributed(L.Dense(4))(x)
    x = L.SpectralNormalization(L.Dense(4))(x)
    x = L.Reshape((3, 2, 2, 1))(x)
    x = L.ConvLSTM2D(1, 1, return_sequences=True)(x)
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


def kinds_of_variables():
    """Every layer of Keras's that makes variables, and their names."""
    x = L.Reshape((4, 1))(inputs := keras.Input((4,)))
    for layer in (L.Conv1D, L.Conv1DTranspose, L.SeparableConv1D):
        x = layer(1, 1)(x)
    x = L.Reshape((2, 2, 1))(L.DepthwiseConv1D(1)(x))
    for layer in (L.Conv2D, L.Conv2DTranspose, L.SeparableConv2D):
        x = layer(1, 1, use_bias=False)(x)
    x = L.Reshape((2, 2, 1, 1))(L.PReLU()(L.DepthwiseConv2D(1)(x)))
    for layer in (L.Conv3D, L.Conv3DTranspose):
        x = layer(1, 1)(x)
    x = L.Reshape((4, 1))(x)
    x = L.Attention(use_scale=True)([x, x])
    x = L.AdditiveAttention()([x, x])
    x = L.GroupNormalization(1)(L.LayerNormalization(center=False)(x))
    x = L.BatchNormalization(center=False)(L.RMSNormalization()(L.EinsumDense("abc,cd->abd", (4, 1), bias_axes="d")(x)))
    x = L.Normalization()(L.Flatten()(x))
    return keras.Model(inputs, L.Embedding(3, 2)(L.Lambda(lambda x: 0 * x)(x)))


def in_between():
    layers = [(DENSE(4), L.LayerNormalization(), L.BatchNormalization()) for _ in range(3)]
    return functional(*(layer for some in layers for layer in some))


# What is known of the order in a `.keras` and in a `.weights.h5`: "" where the file does not tell, None where Keras
# does not save the model so.
MODELS = {
    "many layers": (lambda: sequential(*(L.BatchNormalization() for _ in range(200))), "listed", "listed"),
    "classes in between": (in_between, "listed", ""),
    "layers of layers": (layers_of_layers, "listed", ""),
    "kinds of variables": (kinds_of_variables, "listed", ""),
    "no scale": (lambda: sequential(DENSE(5), L.BatchNormalization(scale=False), DENSE(3)), "listed", "shapes"),
    "towers": (lambda: built(Towers()), "", ""),
    "a shared layer": (lambda: built(Shared()), "", ""),
    "insert": (lambda: built(Listed("insert")), None, ""),
    "reverse": (lambda: built(Listed("reverse")), None, ""),
    "attribute": (lambda: built(Listed("attribute")), None, ""),
    "subclass of Functional": (FunctionalSubclass, "", ""),
    "the first is frozen": (lambda: functional(TwoWeights(), DENSE(3)), "", ""),
    "frozen beside an own layer": (lambda: functional(DENSE(4, use_bias=False, trainable=False), OwnKernel()), "", ""),
    "an own layer normalization": (lambda: functional(LayerNormalization(), DENSE(4)), "listed", "shapes"),
    "an attribute called normalization": (lambda: functional(Normalized(), DENSE(3)), "shapes", "shapes"),
    "an argument called layers": (lambda: built(MLP()), "shapes", "shapes"),
    "an auto-encoder": (lambda: built(AutoEncoder()), "shapes", "shapes"),
    "partly frozen": (partly_frozen, "shapes", ""),
    "attributes that are set later": (with_attributes, "", ""),
    "around a compiled model": (around_a_compiled_model, "listed", "shapes"),
}
CASES = [
    (name, ending)
    for name, (_, *orders) in MODELS.items()
    for ending, order in zip(("keras", "weights.h5"), orders, strict=True)
    if order is not None
]


def with_numbers(model, optimizer=None):
    """Compile and build `model`; give every variable numbers of its own; return the variables and their moments."""
    model.compile(optimizer=optimizer or keras.optimizers.Adam(), loss="mse")
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    for variable in [*model.weights, *optimizer.variables]:
        if variable.shape:
            variable.assign(rng.normal(size=variable.shape))
    return optimizer


def check(training, optimizer):
    """Check that a training has the variables and moments of an optimizer, in its order."""
    slots = {"mu": optimizer._momentums, "nu": optimizer._velocities}
    for name, wanted in slots.items():
        found = getattr(training, name)
        assert list(found) == list(training.variables)[: len(found)]
        for array, variable in zip(found.values(), wanted, strict=True):
            assert np.array_equal(array, variable)
    for path, variable in zip(training.mu, optimizer._trainable_variables, strict=True):
        assert np.array_equal(training.variables[path], variable)


@keras_rules()
@pytest.mark.parametrize(("name", "ending"), CASES)
def test_an_order_is_right_or_asked_for_and_the_answer_works(name, ending, tmp_path):
    make, *orders = MODELS[name]
    order = orders[ending == "weights.h5"]
    model, path = make(), tmp_path / f"x.{ending}"
    optimizer = with_numbers(model)
    names = [variable.path for variable in model.trainable_variables]
    model.save(path) if ending == "keras" else model.save_weights(path)
    if order:
        training = ok.load_keras(path)
        assert training.order == order
        check(training, optimizer)
        if order == "listed" and ending == "keras" and "own" not in name:
            assert list(training.variables) == [*names, *(v.path for v in model.non_trainable_weights)]
    else:
        with pytest.raises(ValueError, match=r"must follow from the file.*`load_keras\(path, trainable=model\.train"):
            ok.load_keras(path)
    for trainable in (model.trainable_variables, [np.asarray(variable) for variable in model.trainable_variables]):
        training = ok.load_keras(path, trainable=trainable)
        assert training.order == "given"
        check(training, optimizer)
        assert list(training.mu) == names or isinstance(trainable[0], np.ndarray)


@keras_rules()
@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_flags_that_changed_after_the_optimizer_was_built_are_not_believed(ending, tmp_path):
    model, path = sequential(DENSE(4), DENSE(4)), tmp_path / f"x.{ending}"
    model.layers[0].trainable = False
    optimizer = with_numbers(model)
    trained = model.trainable_variables
    model.layers[0].trainable, model.layers[1].trainable = True, False
    model.save(path) if ending == "keras" else model.save_weights(path)
    known = "could be those of 'sequential.*/kernel' or those of 'sequential.*/kernel'"
    with pytest.raises(
        ValueError, match=known if ending == "keras" else "moments for 2 of 4 variables, and layers whose"
    ):
        ok.load_keras(path)
    check(ok.load_keras(path, trainable=trained), optimizer)


@keras_rules()
@pytest.mark.parametrize("count", [1, 3])
def test_lora_trains_what_the_file_does_not_hold(count, tmp_path):
    model = with_lora(count)
    with_numbers(model)
    model.save(tmp_path / "x.keras")
    model.save_weights(tmp_path / "x.weights.h5")
    with pytest.raises(
        ValueError, match="Received: a layer with `lora_rank`.* Save a checkpoint or a whole-model `.h5"
    ):
        ok.load_keras(tmp_path / "x.keras")
    with pytest.raises(ValueError, match="(moments for 3 of 6 variables|other model's optimizer, or .*LoRA)"):
        ok.load_keras(tmp_path / "x.weights.h5")
    with pytest.raises(ValueError, match=r"as it was saved. Received: trainable\[1\], float32\[4, 4\], whose .*LoRA"):
        ok.load_keras(tmp_path / "x.weights.h5", trainable=model.trainable_variables)


class TwoOptimizers(keras.Model):
    """A GAN, without its losses."""

    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = sequential(DENSE(4)), sequential(DENSE(1))
        self.g_optimizer, self.d_optimizer = keras.optimizers.Adam(), keras.optimizers.Adam()
        self.g_optimizer.build(self.generator.trainable_variables)
        self.d_optimizer.build(self.discriminator.trainable_variables)

    def call(self, x):
        return self.discriminator(self.generator(x))


@keras_rules()
def test_one_of_two_optimizers_is_read(tmp_path):
    model, path = built(TwoOptimizers()), tmp_path / "x.weights.h5"
    rng = np.random.default_rng(0)
    for variable in [*model.weights, *model.g_optimizer.variables, *model.d_optimizer.variables]:
        if variable.shape:
            variable.assign(rng.normal(size=variable.shape))
    model.save_weights(path)
    with pytest.raises(
        ValueError, match=r"'d_optimizer' and 'g_optimizer'. Say which: `load_keras\(path, optimizer='d"
    ):
        ok.load_keras(path)
    for part in ("generator", "discriminator"):
        trainable, name = getattr(model, part).trainable_variables, f"{part[0]}_optimizer"
        check(ok.load_keras(path, optimizer=name, trainable=trainable), getattr(model, name))
    with pytest.raises(TypeError, match="`optimizer` must be the name of an attribute .* Received: optimizer=1."):
        ok.load_keras(path, optimizer=1)


@keras_rules()
def test_paths_name_the_variables_of_keras_s_layers_and_of_own_ones(tmp_path):
    model, path = functional(OwnKernel(name="own"), TwoWeights(name="two"), DENSE(3, name="d")), tmp_path / "x.keras"
    model.get_layer("two").first.trainable = True
    optimizer = with_numbers(model)
    model.save(path)
    names = [variable.path for variable in model.trainable_variables]
    training = ok.load_keras(path, trainable=names)
    assert list(training.mu) == names == ["own/k", "two/first", "two/second", "d/kernel", "d/bias"]
    check(training, optimizer)
    kernel = np.asarray(model.get_layer("own").k)
    check(ok.load_keras(path, trainable=[kernel, *names[1:]]), optimizer)
    for wrong, message in {
        "own/k/k": "must name variables of the file. Received: 'own/k/k' in it. The variables of the file are own/vars",
        "two/first": "must name variables of the file. Received: 'two/first' in it",
        "d/kernel": "must name each variable once. Received: 'd/kernel' twice",
    }.items():
        with pytest.raises(ValueError, match=message):
            ok.load_keras(path, trainable=[wrong, *names[1:]])
    with pytest.raises(ValueError, match="in the order of the optimizer's moments. Received: 5 of shapes .4,., .4, 4."):
        ok.load_keras(path, trainable=[names[1], names[0], *names[2:]])
    with pytest.raises(ValueError, match="must name variables of the file. Received: 'two/second' in it"):
        ok.load_keras(path, trainable=[names[0], names[2], *names[3:]])


@keras_rules()
def test_arrays_that_hold_the_same_numbers_are_told_apart_by_their_moments_or_by_paths(tmp_path):
    model, path = built(Towers()), tmp_path / "x.keras"
    optimizer = with_numbers(model)
    for layer in model.layers:
        layer.bias.assign(np.zeros(4))
    model.save(path)
    with pytest.raises(ValueError, match=r"Received: trainable\[1\], whose numbers are those of towers.*bias and of"):
        ok.load_keras(path, trainable=[np.asarray(v) for v in model.trainable_variables])
    check(ok.load_keras(path, trainable=model.trainable_variables), optimizer)
    mixed = [v.path if "bias" in v.path else v for v in model.trainable_variables]
    check(ok.load_keras(path, trainable=mixed), optimizer)
    for variable in [*optimizer._momentums, *optimizer._velocities]:
        if variable.shape == (4,):
            variable.assign(np.zeros(4))
    model.save(path)
    check(ok.load_keras(path, trainable=[np.asarray(v) for v in model.trainable_variables]), optimizer)


@keras_rules()
def test_arrays_that_hold_the_same_numbers_are_in_the_order_of_the_configuration(tmp_path):
    model = sequential(DENSE(4), DENSE(4))
    optimizer = with_numbers(model)
    for layer in model.layers:
        layer.bias.assign(np.zeros(4))
    model.save(tmp_path / "x.keras")
    numbers = [np.asarray(variable) for variable in model.trainable_variables]
    check(ok.load_keras(tmp_path / "x.keras", trainable=numbers), optimizer)


@keras_rules()
def test_random_models_are_right_or_asked_for(tmp_path):
    counts = collections.Counter(kind for seed in range(12) for kind, _ in orders.outcome(seed, tmp_path))
    assert not [kind for kind in counts if "WRONG" in kind or kind.endswith("told: refused")]
    assert counts[".keras told: given"] > 5 and counts[".weights.h5 alone: refused"] > 2


def written(path, optimizer_type, layers):
    """Write a `.weights.h5` with these arrays, and moments that count them in their order."""
    with h5py.File(path, "w") as file:
        for name, array in layers.items():
            file[name] = array.astype(np.float32)
        file["optimizer/vars/0"] = optimizer_type(1)
        moments = [np.full(array.shape, float(i), np.float32) for i, array in enumerate(layers.values()) for _ in "mv"]
        for i, moment in enumerate(moments):
            file[f"optimizer/vars/{i + 1}"] = moment


def test_a_model_of_tf_keras_has_its_own_variables_last(tmp_path):
    one, two = np.ones((4, 4)), 2 * np.ones((4, 4))
    written(tmp_path / "x.weights.h5", np.int64, {"layers/dense/vars/0": one, "vars/0": two})
    training = ok.load_keras(tmp_path / "x.weights.h5")
    assert training.generation == "tf_keras" and list(training.mu) == ["dense/kernel:0", "vars/0:0"]
    assert [array.flat[0] for array in training.mu.values()] == [0, 1]


def test_layers_that_are_alike_are_named_at_once(tmp_path):
    written(tmp_path / "x.weights.h5", np.int64, {f"x{i}/vars/0": np.ones(4) for i in range(40)})
    with pytest.raises(ValueError, match="could be those of 'x0/vars/0:0' or those of 'x1/vars/0:0'"):
        ok.load_keras(tmp_path / "x.weights.h5")


def test_models_inside_models_are_read_once(tmp_path, monkeypatch):
    """Of each, the file has another layer than the configuration: what it lists is not read before that is known."""
    depth, config = 40, {"module": "keras.layers", "class_name": "Dense", "config": {}}
    for _ in range(depth):
        config = {"module": "keras", "class_name": "Sequential", "config": {"layers": [config]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metadata.json").write_text(json.dumps({"keras_version": "3.15.1"}))
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        place = file
        for _ in range(depth):
            place = place.create_group("layers")
            place["other/vars/0"] = np.zeros(3, np.float32)
            place = place.create_group("sequential")
            place.create_group("vars")
        place["layers/dense/vars/0"] = np.zeros((2, 2), np.float32)
    read, numbered = [], _layers.numbered
    monkeypatch.setattr(_layers, "numbered", lambda group: read.append(group) or numbered(group))
    with pytest.warns(UserWarning, match="weights alone"):
        assert len(ok.load_keras(tmp_path).variables) == depth + 1
    assert len(read) == 2 * depth + 2  # The models, the layers beside them, and the innermost layer.


def test_a_long_search_ends(tmp_path):
    """Of layers whose shapes are alike but for the last one, each order must be tried."""
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        count = 18
        for i in range(count):
            for j in range(i + 1):
                file[f"x{i}/vars/{j}"] = np.zeros(2, np.float32)
        size = count * (count + 1) // 2
        file["optimizer/vars/0"] = np.int32(0)
        file["optimizer/vars/1"] = np.float32(0)
        for i in range(2 * size):
            file[f"optimizer/vars/{i + 2}"] = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="must follow from the file"):
        ok.load_keras(tmp_path / "x.weights.h5")
