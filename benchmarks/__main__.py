"""Measure what a step costs, ours and the peers', side by side in one run.

Each question prints its tables, and writes its figures and a plot of them; summary.md and summary.png compare the
ratios with what was aimed at. benchmarks/README.md says how to read them.
"""

import argparse
import gc
import importlib
import pathlib
import subprocess
import sys
import traceback

import jax
from rich.console import Console

from benchmarks import _plots, _report
from benchmarks._side_by_side import LEAST_ROUNDS, Session

QUESTIONS = {
    "rows": "a few rows of a large table",  # First, as it needs most memory, and not all that is freed comes back.
    "dense": "a step of Adam and of AMSGrad, against the peers and the memory's own limit",
    "clipped": "what each clip adds to a step",
    "leaves": "many small leaves: the compilation, its memory, and the step",
    "accumulation": "a call that accumulates a gradient",
    "training": "the share of the optimizer in a training step",
}


def main(arguments: list[str] | None = None) -> int:
    """Measure, and return the exit status."""
    given = _parse(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    sessions, failed = {}, []
    for number, question in enumerate(given.questions, 1):
        label = f"[{number}/{len(given.questions)}] {question}"
        sessions[question] = Session(label, given.rounds, given.seconds, given.quick)
        try:
            _answer(question, sessions[question], given.out, console)
        except Exception:  # The other questions can still be measured.
            traceback.print_exc()
            failed.append(question)
        jax.clear_caches()
        gc.collect()
    (given.out / "summary.md").write_text(_report.summary(sessions))
    _plots.draw_summary(sessions, given.out / "summary.png")
    console.print(f"Written to {given.out}: summary.md, summary.png, and a .json and .png for each question.")
    if given.all:
        small = ["--megabytes", "1", "--rounds", "1"] if given.quick else []
        program = [sys.executable, "-m", "benchmarks.restore", "--json", str(given.out / "restore.json"), *small]
        failed += ["restore"] if subprocess.run(program).returncode else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _answer(question: str, session: Session, out: pathlib.Path, console: Console) -> None:
    before = _report.load()
    try:
        importlib.import_module(f"benchmarks.{question}").run(session)
    finally:
        console.rule(f"{question}: {QUESTIONS[question]}")
        _report.show(session, console)
        _report.write_json(session, out / f"{question}.json", before)
    _plots.draw(session, out / f"{question}.png")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    listed = "\n".join(f"  {name:<14}{about}" for name, about in QUESTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\nquestions:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="which to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=21, help="the most to a table (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="after which a table gets no more rounds (default: %(default)g)"
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/benchmarks"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="sizes that mean nothing, to see that all runs")
    parser.add_argument("--all", action="store_true", help="also benchmarks.restore: Keras's files")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.questions if name not in QUESTIONS]:
        parser.error(f"a question must be one of {', '.join(QUESTIONS)}. Received: {unknown[0]!r}.")
    if given.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds must be >= {LEAST_ROUNDS}. Received: {given.rounds}.")
    if not given.seconds > 0:
        parser.error(f"--seconds must be > 0. Received: {given.seconds:g}.")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out must be a folder that can be written: {error.strerror}. Received: {str(given.out)!r}.")
    given.questions = list(dict.fromkeys(given.questions)) or list(QUESTIONS)
    if given.quick:
        given.rounds = LEAST_ROUNDS
    return given


if __name__ == "__main__":
    sys.exit(main())
