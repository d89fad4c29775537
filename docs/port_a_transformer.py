"""A Transformer moves from Keras to Flax NNX in the middle of a training, and goes on as it would have in Keras.

Frozen embeddings, no decay of biases or norms, a schedule, evaluation of the average, a checkpoint and the return to
it; then tuning at a rate that is halved on a plateau. Keras does it too: `python docs/port_a_transformer.py` compares.
"""

import os
import tempfile

os.environ["KERAS_BACKEND"] = "jax"
import jax
import keras
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

import optax_kadam as ok

TOKENS = np.random.default_rng(0).integers(0, 50, (512, 12)).astype("int32")
LABELS = np.stack([(TOKENS % 4 == i).sum(1) for i in range(4)]).argmax(0).astype("int32")
FOLDER = tempfile.TemporaryDirectory()
FILE, CHECKPOINTS = f"{FOLDER.name}/epoch_{{epoch}}.keras", f"{FOLDER.name}/checkpoints"
TRAINED = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("table")))


def train_in_keras():
    keras.utils.set_random_seed(0)
    tokens = keras.Input((12,), dtype="int32")
    x = keras.layers.Embedding(50, 16, name="table", trainable=False)(tokens)
    for i in range(2):
        attended = keras.layers.MultiHeadAttention(2, 8, name=f"attention_{i}")(x, x)
        x = keras.layers.LayerNormalization(name=f"attention_norm_{i}")(x + attended)
        hidden = keras.layers.Dense(16, name=f"down_{i}")(keras.layers.Dense(32, "tanh", name=f"up_{i}")(x))
        x = keras.layers.LayerNormalization(name=f"mlp_norm_{i}")(x + hidden)
    model = keras.Model(tokens, keras.layers.Dense(4, name="head")(keras.layers.GlobalAveragePooling1D()(x)))
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 64, warmup_target=1e-2, warmup_steps=16)
    adam = keras.optimizers.AdamW(schedule, weight_decay=0.05, global_clipnorm=1.0, use_ema=True, ema_momentum=0.9)
    adam.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(adam, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    options = {"batch_size": 32, "shuffle": False, "verbose": 0}
    fit = model.fit(TOKENS, LABELS, epochs=4, callbacks=[keras.callbacks.ModelCheckpoint(FILE)], **options)
    average = model.evaluate(TOKENS, LABELS, verbose=0)  # `fit` ends by overwriting the weights with their average.
    model.compile(keras.optimizers.Adam(0.002), model.loss)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=0.06)
    tuned = model.fit(TOKENS, LABELS, epochs=5, callbacks=[plateau], **options)
    return fit.history["loss"][2:], average, tuned.history["loss"], float(model.optimizer.learning_rate.value)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.attention_norm, self.mlp_norm = (nnx.LayerNorm(16, epsilon=1e-3, rngs=rngs) for _ in range(2))
        self.up, self.down = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x):
        x = self.attention_norm(x + self.attention(x))
        return self.mlp_norm(x + self.down(nnx.tanh(self.up(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.table, self.head = nnx.Embed(50, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)
        self.blocks = nnx.Sequential(*[Block(rngs) for _ in range(2)])

    def __call__(self, tokens):
        return self.head(self.blocks(self.table(tokens)).mean(1))

    def loss(self, tokens, labels):
        return optax.softmax_cross_entropy_with_integer_labels(self(tokens), labels).mean()


@nnx.jit
def step(model, optimizer, tokens, labels):
    loss, gradients = nnx.value_and_grad(Transformer.loss, argnums=nnx.DiffState(0, TRAINED))(model, tokens, labels)
    optimizer.update(model, gradients)
    return loss


def epoch(model, optimizer):
    batches = zip(np.split(TOKENS, 16), np.split(LABELS, 16), strict=True)
    return float(np.mean([step(model, optimizer, *batch) for batch in batches]))


def begin():
    """Return the model and its optimizer as Keras left them after two epochs."""
    model, training = Transformer(nnx.Rngs(0)), ok.load_keras(FILE.format(epoch=2))
    rename = ok.suggest_rename(training, nnx.state(model))
    tx = training.transformation(weight_decay_mask=ok.except_names("bias", "norm"))  # Keras's file does not say it.
    params, opt_state = training.restore(nnx.state(model, TRAINED), rename=rename, tx=tx)
    optimizer = nnx.Optimizer(model, tx, wrt=TRAINED)
    nnx.update(model, params, training.fill(nnx.state(model, nnx.PathContains("table")), rename=rename))
    nnx.update(optimizer.opt_state, nnx.state(opt_state))
    return model, optimizer


def train_in_flax():
    model, optimizer = begin()
    third = epoch(model, optimizer)
    with ocp.CheckpointManager(CHECKPOINTS) as manager:
        manager.save(3, args=ocp.args.StandardSave(nnx.state((model, optimizer))))
        manager.wait_until_finished()
        model, optimizer = begin()  # As a new process does, which finds the checkpoint.
        nnx.update((model, optimizer), manager.restore(3, args=ocp.args.StandardRestore(nnx.state((model, optimizer)))))
    fourth = epoch(model, optimizer)
    nnx.update(model, ok.averaged_params(optimizer.opt_state))
    average = float(model.loss(TOKENS, LABELS))
    rate, best, tuned, optimizer = 0.002, np.inf, [], nnx.Optimizer(model, ok.kadam(0.002), wrt=TRAINED)
    for _ in range(5):
        tuned.append(epoch(model, optimizer))
        best, rate = (tuned[-1], rate) if tuned[-1] < best - 0.06 else (best, rate / 2)
        optimizer.opt_state = optax.tree.set(optimizer.opt_state, learning_rate=rate)
    return third, fourth, average, tuned, rate


if __name__ == "__main__":
    keras_says, flax_says = jax.tree.leaves(train_in_keras()), jax.tree.leaves(train_in_flax())
    names = ["epoch 3", "epoch 4", "average", *(f"tuning {i}" for i in range(1, 6)), "rate at the end"]
    print(*map("{:16} Keras {:.7f}   here {:.7f}".format, names, keras_says, flax_says), sep="\n")
    np.testing.assert_allclose(flax_says, keras_says, rtol=1e-5)
