"""Measure what a step costs, ours and the peers', side by side in one run.

One table shows the ratio of each pair. It is written, with the raw figures and a picture, as summary.md, figures.json
and summary.png. benchmarks/README.md says how to read it.
"""

import argparse
import gc
import importlib
import pathlib
import sys
import traceback

import jax
from rich.console import Console

from benchmarks import _report
from benchmarks._race import Session

QUESTIONS = {
    "rows": "a few rows of a large table",  # First, as it needs most memory, and not all that is freed comes back.
    "dense": "a step of Adam and of AMSGrad",
    "clipped": "a step that clips",
    "accumulation": "a call that accumulates a gradient",
    "training": "a whole training step of a transformer",
    "leaves": "2,000 small leaves: to compile a step, and to take it",
    "files": "1 GB out of Keras's files",
}


def main(arguments: list[str] | None = None) -> int:
    """Measure, and return the exit status."""
    given = _parse(arguments)
    sessions = [Session(question, given.rounds, given.quick) for question in given.questions]
    failed = []
    try:
        for session in sessions:
            try:
                importlib.import_module(f"benchmarks.{session.question}").run(session)
            except Exception:  # The other questions can still be measured.
                traceback.print_exc()
                failed.append(session.question)
            jax.clear_caches()
            gc.collect()
    finally:  # After Ctrl-C, too, what was measured is shown.
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
        _report.show(sessions, console)
        _report.write(sessions, given.out)
        console.print(f"Written to {given.out}: summary.md, summary.png, figures.json.")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    listed = "\n".join(f"  {name:<14}{about}" for name, about in QUESTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\nquestions:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="which to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="of each case, at most (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/benchmarks"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="two rounds of sizes that mean nothing: does all run?")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.questions if name not in QUESTIONS]:
        parser.error(f"a question must be one of {', '.join(QUESTIONS)}. Received: {unknown[0]!r}.")
    if given.rounds < 1:
        parser.error(f"--rounds must be >= 1. Received: {given.rounds}.")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out must be a folder that can be written: {error.strerror}. Received: {str(given.out)!r}.")
    given.questions = list(dict.fromkeys(given.questions)) or list(QUESTIONS)
    given.rounds = 2 if given.quick else given.rounds
    return given


if __name__ == "__main__":
    sys.exit(main())
