"""What the demo prints and draws of its runs: how far the weights are from Keras's, and the losses."""

import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from optax_kadam._kadam import kadam

_ROWS = 7  # How many epochs the table shows.
_REPRODUCED = 1e-3  # A distance up to which a training counts as reproduced.
_STYLES: dict[str, dict[str, Any]] = {  # Okabe and Ito's colours: the colour-blind can tell them apart.
    "Keras": {"color": "#B8B8B8", "linewidth": 11},
    "optax": {"color": "#D55E00", "linewidth": 4},
    "kadam": {"color": "#0072B2", "linewidth": 2.5, "linestyle": (0, (4, 3)), "zorder": 3},
}
_GREY = "#555555"


class Run(NamedTuple):
    """The measured run of one optimizer. Its lists have an entry for the start and one for each epoch."""

    name: str
    losses: list[float]
    distances: list[float]  # From the weights of the reference, which is the first run.


def report(console: Console, runs: list[Run], hyperparameters: Mapping[str, Any], out: Path) -> None:
    """Print the settings, the table, what was found and what it comes from, and draw the plot.

    Args:
      console: where to print.
      runs: the runs, the reference first.
      hyperparameters: the arguments of `kadam` and of `keras.optimizers.Adam`.
      out: the path of the plot.
    """
    calls = _calls(runs, hyperparameters)
    for family, call in calls.items():
        console.print(f"{family}  {call}", soft_wrap=True)
    console.print(_table(runs))
    reference, *others = runs
    console.print(
        f"Distance: the largest difference of a weight from {reference.name}'s, in percent of the farthest that "
        f"{reference.name} has moved one.\n"
    )
    for run in others:
        console.print(f"{_finding(run, reference)}{_loss_beside(run, reference)}.")
    causes = list(_causes(**hyperparameters))
    if causes:
        console.print("\nTo optax, the same numbers mean something else:")
    for cause in causes:
        console.print(Padding(cause, (0, 0, 0, 2)))
    _plot(runs, list(calls.values())).savefig(out, format="png")
    console.print(f"\nThe plot is in {out}.", soft_wrap=True)


def short(name: str) -> str:
    """Return the name of a transformation without its arguments."""
    return name.partition("(")[0]


def _calls(runs: list[Run], hyperparameters: Mapping[str, Any]) -> dict[str, str]:
    """Return what each run's optimizer is called with, as a user would write it."""
    defaults = inspect.signature(kadam).parameters
    given = {name: value for name, value in hyperparameters.items() if value != defaults[name].default}
    arguments = ", ".join(f"{name}={value}" for name, value in given.items())
    calls = {"Keras": f"keras.optimizers.Adam({arguments})", "kadam": f"optax_kadam.kadam({arguments})"}
    return {_family(run.name): calls.get(run.name, f"{run.name}, with the same numbers") for run in runs}


def _table(runs: list[Run]) -> Table:
    reference, *others = runs
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("\nepoch", justify="right")
    for run in others:
        table.add_column(f"distance\n{_family(run.name)}", justify="right")
    for run in runs:
        table.add_column(f"loss\n{_family(run.name)}", justify="right")
    for epoch in sorted({round(epoch) for epoch in np.linspace(0, len(reference.losses) - 1, _ROWS)}):
        distances = [_percent(run.distances[epoch]) for run in others]
        table.add_row(str(epoch), *distances, *(f"{run.losses[epoch]:.4f}" for run in runs))
    return table


def _finding(run: Run, reference: Run) -> str:
    """Return the sentence that says how far from the reference a run ends, without its full stop."""
    distance = run.distances[-1]
    if not distance:
        return f"{short(run.name)} reproduces {reference.name}'s weights bit for bit"
    if distance <= _REPRODUCED:
        return f"{short(run.name)} reproduces {reference.name}'s weights within {_percent(distance)}"
    return f"{short(run.name)} ends {_percent(distance)} away from {reference.name}'s weights"


def _loss_beside(run: Run, reference: Run) -> str:
    """Return what follows the finding if the losses differ as the table shows them."""
    loss, expected = (f"{each.losses[-1]:.4f}" for each in (run, reference))
    return "" if loss == expected else f", with a loss of {loss} where {reference.name} has {expected}"


def _causes(
    beta_2: float, epsilon: float, amsgrad: bool, clipnorm: float | None, **same: float | None
) -> Iterator[str]:
    """Yield a sentence for each argument that means something else to optax; `same` mean the same."""
    if amsgrad:
        yield (
            "amsgrad: optax keeps the maximum of the bias-corrected second moment, and with it the noise of the first "
            "batches; Keras keeps the maximum of the raw one."
        )
    if clipnorm:
        yield "clipnorm: Keras takes the norm of each variable; optax.clip_by_global_norm takes that of all together."
    if epsilon:
        weight = 1 / math.sqrt(1 - beta_2)
        yield (
            "epsilon: optax adds it to the bias-corrected root, Keras to the raw one, where it weighs "
            f"{weight:.0f} times as much at the first step, and then less and less."
        )


def _plot(runs: list[Run], calls: list[str]) -> Figure:
    reference, *others = runs
    figure = Figure(figsize=(12, 6.8), dpi=150, layout="constrained")
    figure.suptitle("\n".join(_finding(run, reference) for run in others), fontsize=18, fontweight="bold")
    distances, losses = figure.subplots(1, 2)
    _plot_distances(distances, runs)
    _plot_losses(losses, runs)
    for axes in (distances, losses):
        axes.set_xlabel("epoch", fontsize=12)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    footer = "A digits classifier, trained from the same weights on the same batches with\n" + "\n".join(calls)
    figure.supxlabel(footer, fontsize=11, color=_GREY)
    return figure


def _plot_losses(axes: Axes, runs: list[Run]) -> None:
    for run in runs:
        axes.semilogy(run.losses, label=short(run.name), **_STYLES[_family(run.name)])
    axes.set_title("Training loss (log scale)", fontsize=14)
    axes.set_ylabel("cross-entropy over all images", fontsize=12)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_yticks([], minor=True)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=13, handlelength=3)


def _plot_distances(axes: Axes, runs: list[Run]) -> None:
    """Plot the distances on a log scale, where those of 0 are drawn at a floor."""
    reference, *others = runs
    measured = [distance for run in others for distance in run.distances if 0 < distance < math.inf]
    floor, top = min([1e-8, *measured]) / 10, max([1, *measured])
    for run in others:
        style, heights = _STYLES[_family(run.name)], np.maximum(run.distances, floor)
        axes.semilogy(heights, **style)
        end = (len(heights) - 1, max(heights[len(heights) // 2 :]))  # Above the line, where the label lies along it.
        label = {"xytext": (0, 9), "textcoords": "offset points", "ha": "right", "fontsize": 13}
        axes.annotate(f"{short(run.name)}: {_percent(run.distances[-1])}", end, color=style["color"], **label)
    axes.set_title(f"Distance to {reference.name}'s weights (log scale)", fontsize=14)
    axes.set_ylabel("largest difference of a weight,\nas a share of the largest movement", fontsize=12)
    axes.set_ylim(floor / 3, 10 * top)
    decades = 10.0 ** np.arange(2 * math.floor(math.log10(top) / 2), math.log10(floor) + 1, -2)
    axes.set_yticks([floor, *decades], ["0 (bitwise\nequal)", *(f"{100 * decade:g}%" for decade in decades)])
    axes.set_yticks([], minor=True)
    axes.grid(axis="y", alpha=0.3)


def _family(name: str) -> str:
    """Return the first part of a name: `optax` for `optax.adam`."""
    return name.partition(".")[0]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"
