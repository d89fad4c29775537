"""What was measured: as one table, in words and as a picture, and the raw figures."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax
import matplotlib
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import _steps
from benchmarks._race import Ratio, Session

COLUMNS = "case", "time of", "beside", "ms, least", "beside, ms", "ratio of least", "ratio, median (quartiles)"
# What the picture shows: in words, the question and the pair. The table has all ratios.
HEADLINES = {
    ("dense", "kadam", "optax.adam"): "a step, beside optax.adam",
    ("dense", "kadam", "torch fused"): "a step, beside torch's fused Adam",
    ("clipped", "kadam global_clipnorm", "optax.adam clipped"): "a step with a global clip, beside optax's chain",
    ("accumulation", "kadam", "optax.MultiSteps"): "a call that accumulates, beside optax.MultiSteps",
    ("training", "kadam", "optax.adam"): "a training step of a transformer, beside optax.adam",
    ("rows", "deferred_rows", "optax.adam"): "a step of a table of 10^5 to 10^7 rows, beside optax.adam",
}
GREY, BLUE = "#808080", "#1F8FE0"  # They are read on a light page and on a dark one.
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "savefig.transparent": True,
}


def show(sessions: Sequence[Session], console: Console) -> None:
    """Print the table, and the notes."""
    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 3 else "right", no_wrap=True)
    for session in sessions:
        last = None
        for one in session.ratios:
            table.add_row(one.case if one.case != last else "", *_cells(one))
            last = one.case
        table.add_section()
    console.print(table)
    for note in (note for session in sessions for note in session.notes):
        console.print(note)


def write(sessions: Sequence[Session], folder: pathlib.Path) -> None:
    """Write figures.json with all that was measured, summary.md with the table, and summary.png."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    raw = {session.question: {"cases": session.raw, "notes": session.notes} for session in sessions}
    quick = any(session.quick for session in sessions)
    figures = {"date": date, "quick": quick, "machine": machine(), "questions": raw}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    rows = [COLUMNS, ["---"] * len(COLUMNS), *((one.case, *_cells(one)) for s in sessions for one in s.ratios)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    said = ", ".join(f"{name} {version}" for name, version in machine().items() if version)
    (folder / "summary.md").write_text("\n".join([*lines, "", f"{said}; {date[:10]}."]) + "\n")
    draw(sessions, folder / "summary.png")


def draw(sessions: Sequence[Session], path: pathlib.Path) -> None:
    """Draw the ratios of `HEADLINES`: a line for each, with a dot for each case and its quartiles."""
    measured: dict[tuple[str, str, str], list[Ratio]] = {}
    for session in sessions:
        for one in session.ratios:
            measured.setdefault((session.question, one.ours, one.peer), []).append(one)
    found = {words: measured[key] for key, words in HEADLINES.items() if key in measured}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.45 * len(found) + 1.3), layout="constrained")
        axes = figure.subplots()
        for place, cases in enumerate(found.values()):
            for case in cases:
                axes.plot([case.lower, case.upper], [place, place], color=BLUE, linewidth=2, alpha=0.6)
                axes.plot([case.median], [place], "o", color=BLUE)
            medians = sorted({_text(case.median) for case in cases}, key=float)
            text = medians[0] if len(medians) == 1 else f"{medians[0]} to {medians[-1]}"
            axes.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center")
        axes.set_xscale("log")
        axes.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(found)), list(found))
        axes.set_ylim(max(len(found), 1) - 0.5, -0.5)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("time of optax_kadam over the other's: lower is better")
        figure.savefig(path, dpi=150)


def _cells(one: Ratio) -> tuple[str, ...]:
    times = (f"{1e3 * seconds:.3g}" for seconds in (one.ours_least, one.peer_least))
    ratio = _text(one.median)
    if one.lower < one.upper:  # A single round has no quartiles.
        ratio += f" ({_text(one.lower)} to {_text(one.upper)})"
    return one.ours, one.peer, *times, _text(one.of_least), ratio


def _text(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def machine() -> dict[str, str | None]:
    """Return what the figures were measured on."""
    versions = {name: _version(name) for name in ("jax", "optax", "flax", "keras", "torch", "h5py", "numpy")}
    gpu = jax.devices()[0].device_kind if jax.default_backend() != "cpu" else None
    return {"cpu": _cpu(), "cores": str(_steps.cores()), "gpu": gpu, "python": platform.python_version(), **versions}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # It is no Linux, or no x86.
        return platform.processor() or platform.machine()
