"""Each of Keras's layers that another library holds otherwise gives there what it gives in Keras, and goes back."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_kadam as ok
from optax_kadam.keras_files.matching import _match, _origin

from .helpers import keras_rules
from .sparing import mostly_slow

keras = pytest.importorskip("keras")
L = keras.layers
KEY = jax.random.key(0)
RNGS = nnx.Rngs(0)


def carried(layer, shape, params, rename, skip=()):
    """Return an input, what the layer makes of it, and `params` with its weights, after a way there and back."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape)).astype("f4")
    layer(x)
    arrays = {variable.path: rng.normal(size=variable.shape).astype("f4") for variable in layer.trainable_variables}
    for variable in layer.trainable_variables:
        variable.assign(arrays[variable.path])
    mu = {path: array * 2 for path, array in arrays.items()}
    training = ok.KerasTraining("keras3", None, 3, 0.1, arrays, mu=mu, nu={path: a**2 for path, a in arrays.items()})
    params, state = training.restore(params, rename=rename, skip=skip)
    for name, of in (("mu", lambda p: p * 2), ("nu", jnp.square)):  # What is skipped is zero in all three.
        jax.tree.map(np.testing.assert_array_equal, optax.tree.get(state, name), jax.tree.map(of, params))
    shapes = {path: array.shape for path, array in arrays.items()}
    origins = _match.match_leaves(params, shapes, rename, list(shapes), skip)
    pairs = list(zip(origins, map(np.asarray, jax.tree.leaves(params)), strict=True))
    for path, array in arrays.items():
        held = [(origin, leaf) for origin, leaf in pairs if origin and origin.variable == path]
        np.testing.assert_array_equal(_origin.variable_of(held, array.shape), array)
    return x, layer(x), params


def linen(module, *inputs):
    return {"params": {"a": module.init(KEY, *inputs)["params"]}}, lambda p, x: module.apply(
        {"params": p["params"]["a"]}, x
    )


def linen_cell(cell):
    return linen(nn.RNN(cell), jnp.zeros((2, 4, 3)))


def of_nnx(module):
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return {"a": params}, lambda p, x: nnx.merge(graph, p["a"], rest)(x)


def of_equinox(module):
    params, static = eqx.partition(module, eqx.is_inexact_array)
    return {"a": params}, lambda p, x: jax.vmap(eqx.combine(p["a"], static))(x)


class Scanned(eqx.Module):
    cell: eqx.Module

    def __call__(self, xs):
        zeros = jnp.zeros(self.cell.hidden_size)
        start = (zeros, zeros) if isinstance(self.cell, eqx.nn.LSTMCell) else zeros
        last, _ = jax.lax.scan(lambda state, x: (self.cell(x, state), None), start, xs)
        return last[0] if isinstance(last, tuple) else last


class Channels(eqx.Module):
    """A layer of Equinox, which has the channels first, on images that have them last."""

    layer: eqx.Module

    def __call__(self, x):
        return jnp.moveaxis(self.layer(jnp.moveaxis(x, -1, 0)), 0, -1)


def last_of(made):
    params, apply = made
    return params, lambda p, x: apply(p, x)[:, -1]


def gru(**arguments):
    return L.GRU(5, use_bias=False, **arguments)


SEQUENCE, IMAGE = (4, 3), (6, 6, 4)
transposed, Layer = ok.conversions.transposed_conv, L.Conv2DTranspose
ATTENTION = [L.MultiHeadAttention(2, 3, use_bias=bias, name="mha") for bias in (False, True)]


class Separable(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (2, 2), feature_group_count=4, padding="VALID", use_bias=False, name="depth")(x)
        return nn.Conv(3, (1, 1), name="point")(x)


SEPARABLE = {"separable_conv2d": "a/point", "pointwise_kernel": "kernel"}
SEPARABLE |= {"separable_conv2d/depthwise_kernel": "a/depth/kernel"}


class OneInput(keras.layers.Layer):
    def __init__(self, attention):
        super().__init__(name="outer")
        self.attention = attention

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return self.attention(x, x)


def attention_of_equinox(bias):
    kinds = dict.fromkeys(("use_query_bias", "use_key_bias", "use_value_bias", "use_output_bias"), bias)
    module = eqx.nn.MultiheadAttention(2, 8, qk_size=3, vo_size=3, output_size=8, key=KEY, **kinds)
    params, static = eqx.partition(module, eqx.is_inexact_array)
    return {"a": params}, lambda p, x: jax.vmap(lambda one: eqx.combine(p["a"], static)(one, one, one))(x)


CASES = {
    "LSTM, Linen": (L.LSTM(5), SEQUENCE, lambda: last_of(linen_cell(nn.LSTMCell(5))), "a/cell"),
    "LSTM, Linen's optimized": (
        L.LSTM(5),
        SEQUENCE,
        lambda: last_of(linen_cell(nn.OptimizedLSTMCell(5))),
        "a/cell",
    ),
    "LSTM, NNX": (
        L.LSTM(5),
        SEQUENCE,
        lambda: last_of(of_nnx(nnx.RNN(nnx.LSTMCell(3, 5, rngs=RNGS)))),
        "a/cell",
    ),
    "LSTM, NNX's optimized": (
        L.LSTM(5),
        SEQUENCE,
        lambda: last_of(of_nnx(nnx.RNN(nnx.OptimizedLSTMCell(3, 5, rngs=RNGS)))),
        "a/cell",
    ),
    "LSTM, Equinox": (
        L.LSTM(5),
        SEQUENCE,
        lambda: of_equinox(Scanned(eqx.nn.LSTMCell(3, 5, key=KEY))),
        "a/cell",
    ),
    "SimpleRNN, Linen": (
        L.SimpleRNN(5),
        SEQUENCE,
        lambda: last_of(linen_cell(nn.SimpleCell(5))),
        "a/cell",
    ),
    "SimpleRNN, NNX": (
        L.SimpleRNN(5),
        SEQUENCE,
        lambda: last_of(of_nnx(nnx.RNN(nnx.SimpleCell(3, 5, rngs=RNGS)))),
        "a/cell",
    ),
    "GRU, Equinox": (
        gru(),
        SEQUENCE,
        lambda: of_equinox(Scanned(eqx.nn.GRUCell(3, 5, use_bias=False, key=KEY))),
        "a/cell",
    ),
    "GRU, Linen": (gru(), SEQUENCE, lambda: last_of(linen_cell(nn.GRUCell(5))), "a/cell"),
    "GRU, NNX": (gru(), SEQUENCE, lambda: last_of(of_nnx(nnx.RNN(nnx.GRUCell(3, 5, rngs=RNGS)))), "a/cell"),
    "SeparableConv2D, Linen": (
        L.SeparableConv2D(3, 2, depth_multiplier=2, name="separable_conv2d"),
        IMAGE,
        lambda: linen(Separable(), jnp.zeros((1, *IMAGE))),
        SEPARABLE,
    ),
    "Dense, Equinox": (L.Dense(3), (3,), lambda: of_equinox(eqx.nn.Linear(3, 3, key=KEY)), "a"),
    "Conv2D, Equinox": (
        L.Conv2D(4, 3),
        IMAGE,
        lambda: of_equinox(Channels(eqx.nn.Conv2d(4, 4, 3, key=KEY))),
        "a/layer",
    ),
    "DepthwiseConv2D, Equinox": (
        L.DepthwiseConv2D(3),
        IMAGE,
        lambda: of_equinox(Channels(eqx.nn.Conv2d(4, 4, 3, groups=4, key=KEY))),
        "a/layer",
    ),
    "DepthwiseConv2D, Linen": (
        L.DepthwiseConv2D(3, depth_multiplier=2),
        IMAGE,
        lambda: linen(nn.Conv(8, (3, 3), feature_group_count=4, padding="VALID"), jnp.zeros((1, *IMAGE))),
        "a",
    ),
    "Conv2DTranspose, Equinox": (
        Layer(4, 3),
        IMAGE,
        lambda: of_equinox(Channels(eqx.nn.ConvTranspose2d(4, 4, 3, key=KEY))),
        "a/layer",
    ),
    "Conv2DTranspose, Linen": (
        Layer(5, 3),
        IMAGE,
        lambda: linen(nn.ConvTranspose(5, (3, 3), padding="VALID"), jnp.zeros((1, *IMAGE))),
        "a",
    ),
    "square Conv2DTranspose, Linen": (
        Layer(4, 3),
        IMAGE,
        lambda: linen(nn.ConvTranspose(4, (3, 3), padding="VALID"), jnp.zeros((1, *IMAGE))),
        {"a": transposed},
    ),
    "square Conv2DTranspose, Linen's transpose_kernel": (
        Layer(4, 3),
        IMAGE,
        lambda: linen(nn.ConvTranspose(4, (3, 3), padding="VALID", transpose_kernel=True), jnp.zeros((1, *IMAGE))),
        {"a": ok.conversions.unchanged},
    ),
    "MultiHeadAttention, Equinox": (OneInput(ATTENTION[0]), (5, 8), lambda: attention_of_equinox(False), "a"),
    "MultiHeadAttention with biases, Equinox": (
        OneInput(ATTENTION[1]),
        (5, 8),
        lambda: attention_of_equinox(True),
        "a",
    ),
}


FLAX_BIASES = {"GRU, Linen": ("ir", "iz", "in", "hn"), "GRU, NNX": ("dense_i",)}
DAILY = ("LSTM, Linen's optimized", "GRU, Equinox", "DepthwiseConv2D, Linen", "square Conv2DTranspose, Linen")


@pytest.mark.parametrize("name", mostly_slow([(name,) for name in CASES], DAILY.__contains__))
@keras_rules()
def test_a_layer_gives_in_another_library_what_it_gives_in_keras(name):
    layer, shape, make, value = CASES[name]
    params, apply = make()
    rename = value if isinstance(value, dict) and "a" not in value else {getattr(layer, "attention", layer).name: value}
    skip = [f"a/cell/{leaf}/bias" for leaf in FLAX_BIASES.get(name, ())]
    x, wanted, params = carried(layer, shape, params, rename, skip)
    np.testing.assert_allclose(apply(params, jnp.asarray(x)), wanted, rtol=2e-5, atol=2e-6)


def test_a_conversion_leaves_an_array_of_one_axis_as_it_is():
    """So that it can be given for a layer, with its bias."""
    bias = np.arange(3.0)
    for conversion in (ok.conversions.unchanged, ok.conversions.out_first, ok.conversions.depthwise, transposed):
        assert conversion(bias) is bias
