"""What was measured, as tables, as JSON, and as the summary."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import _steps
from benchmarks._race import Race, Spread, spread
from benchmarks._side_by_side import Session

SCALES = {"ms": 1e3, "MB": 1e-6}  # Seconds and bytes are shown in these units.
_RAW = {"ms": "s", "MB": "B"}


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    versions = {name: _version(name) for name in ("jax", "jaxlib", "optax", "flax", "keras", "torch", "numpy")}
    accelerator = jax.devices()[0].device_kind if jax.default_backend() != "cpu" else None
    return {
        "cpu": _cpu(),
        "cores": _steps.cores(),
        "gpu": accelerator,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
    }


def load() -> list[float]:
    """Return the load averages of the last 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def show(session: Session, console: Console) -> None:
    """Print the tables of a question."""
    sized = [race for race in session.races if race.size and session.one_table]
    if sized:
        console.print(by_size(sized))
    for race in session.races:
        if race not in sized:
            console.print(table(race))
        for aim in aims(race):
            goal = f", aim: at most {_number(aim['at_most'])}" if aim["at_most"] else ""
            console.print(f"  {aim['case']}: {aim['what']}: {aim['text']}{goal}", highlight=False)
    console.print()
    for note in session.notes:
        console.print(note, highlight=False)


def table(race: Race) -> Table:
    """Return the figures of a case."""
    rounds = f" ({len(race.rounds)} rounds)" if race.rounds[1:] else ""
    shown = Table(title=race.title + rounds, title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column("", no_wrap=True)
    columns = [f"{race.unit}\nmedian", "\nleast", "\nspread", *(f"ratio to\n{name}" for name in race.references)]
    columns += ["\nGB/s"] if race.moves else []
    columns += ["\nkernels", "bytes /\nneeded"] if race.moves and race.work else []
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows(race):
        median, least = (f"{row[key] * SCALES.get(race.unit, 1.0):.4g}" for key in ("median", "least"))
        ratios = [row["ratios"].get(reference) for reference in race.references]
        cells = [
            median,
            least,
            f"{100 * row['spread']:.0f} %",
            *(f"{ratio[0]:.3f}" if ratio else "" for ratio in ratios),
        ]
        if race.moves:
            cells.append(f"{race.moves / row['median'] / 1e9:.3g}")
            cells += [str(row["kernels"]), f"{row['bytes'] / race.moves:.2f}"] if row["kernels"] is not None else []
        shown.add_row(row["name"], *cells)
    return shown


def by_size(races: list[Race]) -> Table:
    """Return the cases of a question in one table: the first contender of each, over each of the others."""
    ours = races[0].names[0]
    shown = Table(box=box.SIMPLE_HEAD)
    for column in ("", "beside"):
        shown.add_column(column, no_wrap=True)
    unit = f"{races[0].unit}, least"
    for column in (f"{ours}\n{unit}", f"the peer\n{unit}", "ratio\nof the least", "ratio, median\n(quartiles)"):
        shown.add_column(column, justify="right", no_wrap=True)
    for race in races:
        for name in race.names[1:]:
            ratio, of_least = race.ratio(ours, name), race.ratio_of_least(ours, name)
            assert ratio and of_least  # Each of these takes turns with ours.
            theirs = min(race.figures(name)) * SCALES[race.unit]
            cells = f"{theirs * of_least:.3g}", f"{theirs:.3g}", f"{of_least:.2g}", _text(ratio, 2)
            shown.add_row(race.title if name == race.names[1] else "", name, *cells)
        shown.add_section()
    return shown


def rows(race: Race) -> list[dict[str, Any]]:
    """Return the figures of each contender."""
    return [_row(race, name) for name in race.names]


def _row(race: Race, name: str) -> dict[str, Any]:
    seconds, work = spread(race.figures(name)), race.work.get(name)
    return {
        "name": name,
        "median": seconds.median,
        "least": min(race.figures(name)),
        "spread": (seconds.upper - seconds.lower) / seconds.median,
        "ratios": {reference: ratio for reference in race.references if (ratio := race.ratio(name, reference))},
        "kernels": work and len(work.kernels),
        "copies": work and work.copies,
        "bytes": work and work.bytes,
    }


def aims(race: Race) -> list[dict[str, Any]]:
    """Return what was aimed at, and what was measured."""
    found = []
    for name, reference, at_most in race.aims:
        ratio = race.ratio(name, reference)
        assert ratio  # Otherwise the race would not have kept the aim.
        what = f"{name} / {reference}"
        found.append({"case": race.title, "what": what, "ratio": ratio, "text": _text(ratio), "at_most": at_most})
    return found


def _text(ratio: Spread, digits: int = 3) -> str:
    quartiles = f" ({ratio.lower:.{digits}g} to {ratio.upper:.{digits}g})" if ratio.upper > ratio.lower else ""
    return f"{ratio.median:.{digits}g}{quartiles}"


def write_json(session: Session, path: pathlib.Path, load_before: list[float]) -> None:
    """Write all figures, the raw ones too."""
    races = [
        {"title": race.title, "unit": _RAW.get(race.unit, race.unit), "size": race.size, "moves": race.moves}
        | {"rows": rows(race), "aims": aims(race), "rounds": race.rounds}
        for race in session.races
    ]
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    contents = {
        "date": date,
        "quick": session.quick,
        "machine": machine(),
        "load_before": load_before,
        "load_after": load(),
        "notes": session.notes,
        "races": races,
    }
    path.write_text(json.dumps(contents, indent=1) + "\n")


def _number(number: float | None) -> str:
    return f"{number:.3g}" if number else ""


def told(sessions: Mapping[str, Session]) -> dict[tuple[str, str, float | None], list[dict[str, Any]]]:
    """Return what the summary tells: for each question, ratio and aim, the cases."""
    found: dict[tuple[str, str, float | None], list[dict[str, Any]]] = {}
    for question, session in sessions.items():
        for aim in (aim for race in session.races for aim in aims(race)):
            found.setdefault((question, aim["what"], aim["at_most"]), []).append(aim)
    return found


def summary(sessions: Mapping[str, Session]) -> str:
    """Return the ratios as a table in Markdown."""
    lines = ["| question | ratio of | measured | aim: at most |", "|---|---|---|---|"]
    for (question, what, at_most), cases in told(sessions).items():
        measured = "<br>".join(f"{aim['case']}: {aim['text']}" for aim in cases)
        lines.append(f"| {question} | {what} | {measured} | {_number(at_most)} |")
    on = machine()
    versions = ", ".join(f"{name} {on[name]}" for name in ("python", "jax", "optax", "keras", "torch") if name in on)
    place = " and ".join(filter(None, [f"{on['cpu']}, {on['cores']} cores", on["gpu"]]))
    text = "Median of the ratios within a round, and the quartiles about it"
    return "\n".join([*lines, "", f"{text}. {place}; {versions}; {datetime.date.today()}."]) + "\n"


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
