"""Plots, on a transparent ground and in colours that are read on a light page and on a dark one."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import _report
from benchmarks._race import Race, spread
from benchmarks._side_by_side import Session

GREY = "#808080"
OURS, THEIRS, AIM = "#1F8FE0", GREY, "#E0701F"
COLOURS = (OURS, AIM, "#2BA36F", "#B86FC6", GREY, "#C0A000", "#D05060")
# The ratios that the summary draws, by question and contenders, in words. `summary.md` has all of them.
HEADLINES = {
    ("dense", "kadam / optax.adam"): "a step, beside optax.adam",
    ("dense", "kadam / torch fused"): "a step, beside torch's fused Adam",
    ("clipped", "kadam global_clipnorm / optax.adam clipped"): "a step with a global clip, beside optax's chain",
    ("accumulation", "kadam / optax.MultiSteps"): "a call that accumulates, beside optax.MultiSteps",
    ("training", "kadam / optax.adam"): "a training step of a transformer, beside optax.adam",
    ("rows", "deferred_rows / optax.adam"): "a step of a table of 10^7 rows, beside optax.adam",
}
STYLE: Any = {
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "savefig.transparent": True,
}


def draw(session: Session, path: pathlib.Path) -> None:
    """Draw a question: against the size, if its cases differ in one, else the ratios of each case."""
    with matplotlib.rc_context(STYLE):
        sized = [race for race in session.races if race.size]
        figure = _sweep(sized) if len({race.size for race in sized}) > 1 else _ratios(session.races)
        figure.savefig(path, dpi=150)


def _ratios(races: list[Race]) -> Figure:
    races = [race for race in races if race.references]
    heights = [len(race.names) + 1.5 for race in races]
    figure = Figure(figsize=(8, 0.3 * sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(races), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, race in zip(panels[:, 0], races, strict=True):
        reference = race.references[0]
        names = [name for name in race.names if race.ratio(name, reference)]
        for place, name in enumerate(names):
            _dot(axes, place, race.ratio(name, reference), OURS if name.startswith("kadam") else THEIRS)
        _label(axes, names)
        axes.set_title(f"{race.title}: ratio to {reference}", loc="left", fontsize=10)
    return figure


def _sweep(races: list[Race]) -> Figure:
    units = list(dict.fromkeys(race.unit for race in races))
    figure = Figure(figsize=(8, 3.5 * len(units)), layout="constrained")
    names = list(dict.fromkeys(name for race in races for name in race.names))
    panels = figure.subplots(len(units), 1, squeeze=False)[:, 0]
    for axes, unit in zip(panels, units, strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            having = [race for race in races if race.unit == unit and name in race.names]
            medians = [_report.SCALES.get(unit, 1.0) * spread(race.figures(name)).median for race in having]
            axes.loglog([race.size for race in having], medians, "o-", color=colour, label=name)
        axes.set_title(next(race.title for race in races if race.unit == unit).partition(": ")[2], loc="left")
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_formatter("{x:g}")
    panels[-1].set_xlabel(races[0].title.partition(":")[0].partition(" ")[2])
    panels[0].legend(frameon=False, labelcolor=GREY)
    return figure


def draw_summary(sessions: Mapping[str, Session], path: pathlib.Path) -> None:
    """Draw the ratios that have words in `HEADLINES`: a line for each, with a dot for each case and its quartiles."""
    measured = {(question, what): found for (question, what, _), found in _report.told(sessions).items()}
    told = {words: measured[key] for key, words in HEADLINES.items() if key in measured}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.45 * len(told) + 1.3), layout="constrained")
        axes = figure.subplots()
        for place, cases in enumerate(told.values()):
            for case in cases:
                _dot(axes, place, case["ratio"], OURS)
            medians = sorted({f"{case['ratio'].median:.2g}" for case in cases}, key=float)
            furthest = max(case["ratio"].upper for case in cases)
            text = medians[0] if len(medians) == 1 else f"{medians[0]} to {medians[-1]}"
            axes.annotate(text, (furthest, place), (8, 0), textcoords="offset points", va="center")
        _label(axes, list(told))
        axes.set_xlabel("time of optax_kadam over the time of the other: lower is better (log scale)")
        axes.margins(x=0.15)
        figure.savefig(path, dpi=150)


def _dot(axes: Axes, place: int, ratio: Any, colour: str) -> None:
    axes.plot([ratio.lower, ratio.upper], [place, place], color=colour, linewidth=2, alpha=0.6)
    axes.plot([ratio.median], [place], "o", color=colour)


def _label(axes: Axes, names: list[str]) -> None:
    axes.set_xscale("log")
    axes.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
