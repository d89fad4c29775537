"""The demo trains a digits classifier with Keras's `fit`, and in Flax NNX with `kadam` and with optax's own Adam.

All runs start from the same weights and see the same batches in the same order: they differ in the optimizer only. What
is shown is measured on the weights: the loss over all images, and the distance of the weights from Keras's. Without
Keras, the weights of `kadam` are the reference.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits

from optax_kadam._kadam import kadam
from optax_kadam.commands._demo_report import Run, report, short

Array = jax.Array | np.ndarray
Weights = list[np.ndarray]  # Kernel and bias of the hidden layer, then of the output layer, as Keras orders them.
_LAYERS = ((64, 64), (64, 10))


class _Problem(NamedTuple):
    """The images, the start and the batches, which all runs share."""

    images: np.ndarray
    labels: np.ndarray
    start: Weights
    epochs: np.ndarray  # Indices of images, shape=(epochs, batches, batch_size).


class _Classifier(nnx.Module):
    """A classifier, 64 pixels -> 64 relu -> 10 digits, with the operations of two Keras `Dense` layers."""

    def __init__(self, weights: Weights) -> None:
        self.params = nnx.List([nnx.Param(jnp.asarray(array)) for array in weights])

    def __call__(self, images: Array) -> jax.Array:
        """Return the logits."""
        kernel, bias, output_kernel, output_bias = (param[...] for param in self.params)
        return nnx.relu(images @ kernel + bias) @ output_kernel + output_bias

    def weights(self) -> Weights:
        """Return a copy of the weights."""
        return [np.array(param[...]) for param in self.params]


def run(hyperparameters: dict[str, Any], epochs: int, batch_size: int, seed: int, out: Path) -> None:
    """Train, print what came of it and draw the plot.

    Args:
      hyperparameters: the arguments of `kadam` and of `keras.optimizers.Adam`, whose names agree.
      epochs: how many epochs to train.
      batch_size: how many images a step sees; images that do not fill a batch are left out of the epoch.
      seed: the seed of the initial weights and of the shuffling.
      out: the path of the plot.
    """
    console = Console(highlight=False)
    problem = _problem(epochs, batch_size, seed)
    optax_name, optax_adam = _optax_recipe(**hyperparameters)
    trainings = {"kadam": _train_flax(problem, kadam(**hyperparameters)), optax_name: _train_flax(problem, optax_adam)}
    try:
        trainings = {"Keras": _train_keras(problem, _import_keras(), hyperparameters)} | trainings
    except (ImportError, ValueError) as error:  # An unknown backend is a ValueError in Keras.
        console.print(f"Keras is left out, kadam is the reference: {error}", soft_wrap=True)

    runs = _measure(problem, _train_all(trainings, epochs))
    report(console, runs, hyperparameters, out)


def _problem(epochs: int, batch_size: int, seed: int) -> _Problem:
    rng = np.random.default_rng(seed)
    pixels, digits = load_digits(return_X_y=True)
    start: Weights = []
    for inputs, outputs in _LAYERS:
        limit = np.sqrt(6 / (inputs + outputs))  # Glorot's limit is Keras's default.
        start += [rng.uniform(-limit, limit, (inputs, outputs)).astype(np.float32), np.zeros(outputs, np.float32)]
    images, labels = (pixels / 16).astype(np.float32), digits.astype(np.int32)
    batches = len(images) // batch_size
    order = [rng.permutation(len(images))[: batches * batch_size] for _ in range(epochs)]
    return _Problem(images, labels, start, np.reshape(order, (epochs, batches, batch_size)))


def _optax_recipe(
    learning_rate: float,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    amsgrad: bool,
    weight_decay: float | None,
    clipnorm: float | None,
    clipvalue: float | None,
    global_clipnorm: float | None,
) -> tuple[str, optax.GradientTransformation]:
    """Return the name and the transformation that a user of optax alone would write."""
    moments: dict[str, Any] = {"b1": beta_1, "b2": beta_2, "eps": epsilon}
    stages: dict[str, optax.GradientTransformation] = {}
    if norm := clipnorm or global_clipnorm:
        stages["clip_by_global_norm"] = optax.clip_by_global_norm(norm)
    if clipvalue:
        stages["clip"] = optax.clip(clipvalue)
    if amsgrad:
        stages["amsgrad"] = optax.amsgrad(learning_rate, **moments)
        if weight_decay:
            stages["add_decayed_weights"] = optax.add_decayed_weights(-learning_rate * weight_decay)
    elif weight_decay:
        stages["adamw"] = optax.adamw(learning_rate, **moments, weight_decay=weight_decay)
    else:
        stages["adam"] = optax.adam(learning_rate, **moments)
    name = "optax.chain({})" if len(stages) > 1 else "optax.{}"
    return name.format(", ".join(stages)), optax.chain(*stages.values())


def _import_keras() -> ModuleType:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    if keras.backend.backend() != "jax":
        raise ImportError(f"Keras's backend must be jax. Received: {keras.backend.backend()}. Set KERAS_BACKEND=jax.")
    return keras


def _train_keras(problem: _Problem, keras: ModuleType, hyperparameters: dict[str, Any]) -> Iterator[Weights]:
    """Yield the weights after each epoch of Keras's `fit`."""
    (pixels, hidden), (_, classes) = _LAYERS
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((pixels,)), dense(hidden, activation="relu"), dense(classes)])
    model.set_weights(problem.start)
    model.compile(
        optimizer=keras.optimizers.Adam(**hyperparameters),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for epoch in problem.epochs:
        order = epoch.ravel()
        model.fit(problem.images[order], problem.labels[order], batch_size=epoch.shape[1], shuffle=False, verbose=0)
        yield model.get_weights()


def _train_flax(problem: _Problem, tx: optax.GradientTransformation) -> Iterator[Weights]:
    """Yield the weights after each epoch of training in Flax NNX with `tx`."""
    model = _Classifier(problem.start)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: _Classifier, optimizer: nnx.Optimizer, images: Array, labels: Array) -> None:
        optimizer.update(model, nnx.grad(_loss)(model, images, labels))

    for epoch in problem.epochs:
        for batch in epoch:
            step(model, optimizer, problem.images[batch], problem.labels[batch])
        yield model.weights()


def _loss(model: _Classifier, images: Array, labels: Array) -> jax.Array:
    """Return the sparse categorical crossentropy, in Keras's operations, so that the gradients agree."""
    log_probabilities = jax.nn.log_softmax(model(images))
    return jnp.mean(-jnp.sum(jax.nn.one_hot(labels, 10) * log_probabilities, axis=-1))


def _train_all(trainings: dict[str, Iterator[Weights]], epochs: int) -> dict[str, list[Weights]]:
    """Run the trainings one after the other, each with a progress bar; return the weights after each epoch."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {name: progress.add_task(short(name), total=epochs, start=False) for name in trainings}
        trained: dict[str, list[Weights]] = {name: [] for name in trainings}
        for name, training in trainings.items():
            progress.start_task(tasks[name])
            for weights in training:
                trained[name].append(weights)
                progress.advance(tasks[name])
    return trained


def _measure(problem: _Problem, trained: dict[str, list[Weights]]) -> list[Run]:
    evaluate = nnx.jit(_loss)
    histories = {name: [problem.start, *weights] for name, weights in trained.items()}
    reference = next(iter(histories.values()))
    runs = []
    for name, history in histories.items():
        losses = [float(evaluate(_Classifier(weights), problem.images, problem.labels)) for weights in history]
        distances = [_distance(*pair, problem.start) for pair in zip(history, reference, strict=True)]
        runs.append(Run(name, losses, distances))
    return runs


def _distance(weights: Weights, reference: Weights, start: Weights) -> float:
    """Return the largest difference of a weight as a share of the largest movement of a weight of the reference."""
    difference, movement = _largest_difference(weights, reference), _largest_difference(reference, start)
    if not difference:
        return 0.0
    return difference / movement if movement else math.inf


def _largest_difference(weights: Weights, others: Weights) -> float:
    with np.errstate(invalid="ignore"):  # The difference of infinite weights is nan.
        return float(np.max([np.max(np.abs(array - other)) for array, other in zip(weights, others, strict=True)]))
