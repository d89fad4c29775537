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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits

from optax_kadam._kadam import kadam

Array = jax.Array | np.ndarray
Weights = list[np.ndarray]  # Kernel and bias of the hidden layer, then of the output layer, as Keras orders them.
_LAYERS = ((64, 64), (64, 10))
_STYLES: dict[str, dict[str, Any]] = {  # Okabe and Ito's colours: the colour-blind can tell them apart.
    "Keras": {"color": "#B8B8B8", "linewidth": 11},
    "optax": {"color": "#D55E00", "linewidth": 4},
    "kadam": {"color": "#0072B2", "linewidth": 2.5, "linestyle": (0, (4, 3)), "zorder": 3},
}
_GREY = "#555555"


class _Problem(NamedTuple):
    """The images, the start and the batches, which all runs share."""

    images: np.ndarray
    labels: np.ndarray
    start: Weights
    epochs: np.ndarray  # Indices of images, shape=(epochs, batches, batch_size).


class _Run(NamedTuple):
    """The measured run of one optimizer. Its lists have an entry for the start and one for each epoch."""

    name: str
    losses: list[float]
    distances: list[float]  # From the weights of the reference, which is the first run.


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
    """Train, print the table and draw the plot.

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
    given = {name: value for name, value in hyperparameters.items() if value is not None and value is not False}
    settings = ", ".join(f"{name}={value}" for name, value in given.items())
    console.print(_table(runs, settings))
    _plot(runs, settings).savefig(out, format="png")
    console.print(f"{', '.join(_findings(runs))}. The plot is in {out}.", soft_wrap=True)
    if hyperparameters["epsilon"] < 1e-3:
        console.print("The distance grows with epsilon: try --epsilon 1e-3.", soft_wrap=True)


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
        tasks = {name: progress.add_task(_short(name), total=epochs, start=False) for name in trainings}
        trained: dict[str, list[Weights]] = {name: [] for name in trainings}
        for name, training in trainings.items():
            progress.start_task(tasks[name])
            for weights in training:
                trained[name].append(weights)
                progress.advance(tasks[name])
    return trained


def _measure(problem: _Problem, trained: dict[str, list[Weights]]) -> list[_Run]:
    evaluate = nnx.jit(_loss)
    histories = {name: [problem.start, *weights] for name, weights in trained.items()}
    reference = next(iter(histories.values()))
    runs = []
    for name, history in histories.items():
        losses = [float(evaluate(_Classifier(weights), problem.images, problem.labels)) for weights in history]
        distances = [_distance(*pair, problem.start) for pair in zip(history, reference, strict=True)]
        runs.append(_Run(name, losses, distances))
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


def _table(runs: list[_Run], settings: str) -> Table:
    reference, *others = runs
    table = Table(
        title=f"{' and '.join(run.name for run in others)} beside {reference.name}\n{settings}",
        caption=f"loss gap: the loss minus {reference.name}'s\n"
        f"distance: the largest difference of a weight from {reference.name}'s,\n"
        f"as a share of the largest movement of a weight of {reference.name}",
    )
    table.add_column("epoch", justify="right")
    for run in runs:
        table.add_column(f"loss\n{_family(run.name)}", justify="right")
    for quantity in ("loss gap", "distance"):
        for run in others:
            table.add_column(f"{quantity}\n{_family(run.name)}", justify="right")
    for epoch, loss in enumerate(reference.losses):
        cells = [f"{run.losses[epoch]:.4f}" for run in runs]
        cells += [f"{run.losses[epoch] - loss:.1e}" if run.losses[epoch] != loss else "0" for run in others]
        cells += [_percent(run.distances[epoch]) for run in others]
        table.add_row(str(epoch), *cells)
    return table


def _plot(runs: list[_Run], settings: str) -> Figure:
    figure = Figure(figsize=(12, 6.4), dpi=150, layout="constrained")
    figure.suptitle("\n".join(_findings(runs)), fontsize=18, fontweight="bold")
    losses, distances = figure.subplots(1, 2)
    _plot_losses(losses, runs)
    _plot_distances(distances, runs)
    for axes in (losses, distances):
        axes.set_xlabel("epoch", fontsize=12)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    names = ", ".join(run.name for run in runs)
    footer = f"Digits classifier, trained from the same start on the same batches with {names}\n{settings}"
    figure.supxlabel(footer, fontsize=11, color=_GREY)
    return figure


def _plot_losses(axes: Axes, runs: list[_Run]) -> None:
    for run in runs:
        axes.plot(run.losses, label=_short(run.name), **_STYLES[_family(run.name)])
    axes.set_title("Training loss", fontsize=14)
    axes.set_ylabel("cross-entropy over all images", fontsize=12)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=13, handlelength=3)


def _plot_distances(axes: Axes, runs: list[_Run]) -> None:
    """Plot the distances on a log scale, where those of 0 are drawn at a floor."""
    reference, *others = runs
    measured = [distance for run in others for distance in run.distances if 0 < distance < math.inf]
    floor, top = min([1e-8, *measured]) / 10, max([1, *measured])
    for run in others:
        style, heights = _STYLES[_family(run.name)], np.maximum(run.distances, floor)
        axes.semilogy(heights, **style)
        end = (len(heights) - 1, heights[-1])
        label = {"xytext": (0, 9), "textcoords": "offset points", "ha": "right", "fontsize": 13}
        axes.annotate(f"{_short(run.name)}: {_percent(run.distances[-1])}", end, color=style["color"], **label)
    axes.set_title(f"Distance to {reference.name}'s weights (log scale)", fontsize=14)
    axes.set_ylabel("largest difference of a weight,\nas a share of the largest movement", fontsize=12)
    axes.set_ylim(floor / 3, 10 * top)
    decades = 10.0 ** np.arange(2 * math.floor(math.log10(top) / 2), math.log10(floor) + 1, -2)
    axes.set_yticks([floor, *decades], ["0 (bitwise\nequal)", *(f"{100 * decade:g}%" for decade in decades)])
    axes.set_yticks([], minor=True)
    axes.grid(axis="y", alpha=0.3)


def _findings(runs: list[_Run]) -> list[str]:
    """Return a sentence for each run that says how far from the reference it ends."""
    reference, *others = runs
    places = [f"{_percent(run.distances[-1])} off" if run.distances[-1] else "exactly on" for run in others]
    return [
        f"{_short(run.name)} ends {place} {reference.name}'s weights" for run, place in zip(others, places, strict=True)
    ]


def _short(name: str) -> str:
    """Return the name of a transformation without its arguments."""
    return name.partition("(")[0]


def _family(name: str) -> str:
    """Return the first part of a name: `optax` for `optax.adam`."""
    return name.partition(".")[0]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"
