"""Models ported from Keras to other libraries: a training goes on there as in Keras alone, and then in Keras again."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_kadam as ok

from ..helpers import keras_rules
from ..sparing import mostly_slow

keras = pytest.importorskip("keras")
L = keras.layers
STEPS = 3


class Block(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.attention_norm = nnx.LayerNorm(8, epsilon=1e-3, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(8, epsilon=1e-3, rngs=rngs)

    def __call__(self, x):
        x = self.attention_norm(x + self.attention(x))
        return self.mlp_norm(x + self.down(nnx.relu(self.up(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Embed(11, 8, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, tokens):
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def keras_transformer():
    tokens = keras.Input((6,), dtype="int32")
    x = L.Embedding(11, 8, name="embedding")(tokens)
    for i in range(2):
        x = L.LayerNormalization(name=f"attention_norm_{i}")(
            x + L.MultiHeadAttention(2, 4, name=f"attention_{i}")(x, x)
        )
        up = L.Dense(16, "relu", name=f"up_{i}")(x)
        x = L.LayerNormalization(name=f"mlp_norm_{i}")(x + L.Dense(8, name=f"down_{i}")(up))
    return keras.Model(tokens, L.Dense(3, name="head")(L.GlobalAveragePooling1D()(x)))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, image):
        x = nn.relu(nn.Conv(4, (3, 3), name="enter")(image))
        low = nn.Conv(8, (3, 3), (2, 2), feature_group_count=4, name="depthwise")(x)
        low = nn.relu(nn.GroupNorm(4, epsilon=1e-3, name="norm")(nn.Conv(4, (3, 3), name="deep")(low)))
        up = nn.ConvTranspose(4, (2, 2), (2, 2), name="up")(low)
        up = nn.ConvTranspose(4, (3, 3), name="wide_transpose", transpose_kernel=True)(jnp.concatenate([x, up], -1))
        return nn.Conv(3, (1, 1), name="leave")(up)


def keras_u_net():
    image = keras.Input((8, 8, 2))
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="enter")(image)
    low = L.DepthwiseConv2D(3, 2, depth_multiplier=2, padding="same", name="depthwise_conv2d")(x)
    low = L.ReLU()(L.GroupNormalization(4, name="norm")(L.Conv2D(4, 3, padding="same", name="deep")(low)))
    up = L.Conv2DTranspose(4, 2, 2, padding="same", name="up")(low)
    up = L.Conv2DTranspose(4, 3, padding="same", name="wide_transpose")(L.Concatenate()([x, up]))
    return keras.Model(image, L.Conv2D(3, 1, name="leave")(up))


class Recurrent(eqx.Module):
    table: eqx.nn.Embedding
    cell: eqx.nn.LSTMCell
    mix: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key):
        self.table, self.cell = eqx.nn.Embedding(11, 4, key=key), eqx.nn.LSTMCell(4, 5, key=key)
        self.mix, self.out = eqx.nn.Linear(5, 5, key=key), eqx.nn.Linear(5, 3, key=key)

    def __call__(self, tokens):
        def read(state, token):
            return self.cell(self.table(token), state), None

        (hidden, _), _ = jax.lax.scan(read, (jnp.zeros(5), jnp.zeros(5)), tokens)
        return self.out(jnp.tanh(self.mix(hidden)))


def keras_recurrent():
    tokens = keras.Input((6,), dtype="int32")
    x = L.LSTM(5, name="lstm")(L.Embedding(11, 4, name="embedding")(tokens))
    return keras.Model(tokens, L.Dense(3, name="dense")(L.Dense(5, "tanh", name="mix")(x)))


def nnx_port():
    graph, params = nnx.split(Transformer(nnx.Rngs(0)))
    return params, lambda params, x: nnx.merge(graph, params)(x)


def linen_port():
    model = UNet()
    return model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 2))), model.apply


def equinox_port():
    params, static = eqx.partition(Recurrent(jax.random.key(0)), eqx.is_inexact_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, static))(x)


PORTS = {
    "a Transformer to NNX": (keras_transformer, nnx_port, ok.suggest_rename),
    "a U-Net to Linen": (
        keras_u_net,
        linen_port,
        {"depthwise_conv2d": "depthwise", "up": {"up": ok.conversions.transposed_conv}},
    ),
    "an LSTM to Equinox": (keras_recurrent, equinox_port, {"embedding": "table", "lstm": "cell", "dense": "out"}),
}


def batches(model):
    rng = np.random.default_rng(0)
    shape = (8, *model.input_shape[1:])
    for _ in range(2 * STEPS + 1):
        x = rng.integers(0, 11, shape).astype("i4") if len(shape) == 2 else rng.normal(size=shape).astype("f4")
        yield x, rng.normal(size=(8, *model.output_shape[1:])).astype("f4")


def trained_by_keras(model, data):
    losses = []
    for x, y in data:
        model.reset_metrics()
        losses.append(float(model.train_on_batch(x, y)))
    return losses


@pytest.mark.parametrize("name", mostly_slow([(name,) for name in PORTS], lambda name: "LSTM" in name))
@keras_rules()
def test_a_port_trains_on_as_keras_does_and_comes_back(name, tmp_path):
    make, port, rename = PORTS[name]
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(optimizer=keras.optimizers.Adam(0.01, amsgrad=True), loss="mse")
    data = list(batches(model))
    trained_by_keras(model, data[:STEPS])
    model.save(tmp_path / "old.keras")
    wanted = trained_by_keras(model, data[STEPS:])

    training = ok.load_keras(tmp_path / "old.keras")
    params, apply = port()
    rename = rename(training, params) if callable(rename) else rename
    params, state = training.restore(params, rename=rename)
    tx = training.transformation()

    @jax.jit
    def step(params, state, x, y):
        loss, gradients = jax.value_and_grad(lambda params: jnp.mean((apply(params, x) - y) ** 2))(params)
        updates, state = tx.update(gradients, state, params)
        return loss, optax.apply_updates(params, updates), state

    losses = []
    for x, y in data[STEPS : 2 * STEPS]:
        loss, params, state = step(params, state, x, y)
        losses.append(float(loss))
    np.testing.assert_allclose(losses, wanted[:STEPS], rtol=1e-6)

    ok.save_keras(tmp_path / "new.keras", params, state, template=tmp_path / "old.keras", rename=rename)
    again = keras.models.load_model(tmp_path / "new.keras")
    assert int(again.optimizer.iterations) == 2 * STEPS
    np.testing.assert_allclose(trained_by_keras(again, data[2 * STEPS :]), wanted[STEPS:], rtol=1e-6)  # At most 1.4e-7.
    twice, same_state = ok.load_keras(tmp_path / "new.keras").restore(params, rename=rename)
    assert jax.tree.all(jax.tree.map(np.array_equal, (params, state), (twice, same_state)))
