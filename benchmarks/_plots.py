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
    """Draw the summary: a line for each ratio, with a dot for each case."""
    told = _report.told(sessions)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.3 * len(told) + 1.5), layout="constrained")
        axes = figure.subplots()
        for place, ((_, _, at_most), aims) in enumerate(told.items()):
            for aim in aims:
                _dot(axes, place, aim["ratio"], OURS)
            if at_most:
                axes.plot([at_most], [place], "|", color=AIM, markersize=14, markeredgewidth=2)
        _label(axes, [f"{question}: {what}" for question, what, _ in told])
        axes.set_title(
            "Ratios, a dot for each case with its quartiles; bars: the aims, at most", loc="left", fontsize=10
        )
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
