"""The benchmarks run and say what they should; their figures depend on the machine, and are not looked at."""

import json
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import _report
from benchmarks.__main__ import QUESTIONS, main
from benchmarks._race import SHORTEST, WARM_UP, Ratio, Session, ratio

from .helpers import keras_rules
from .sparing import mostly_slow

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PAIRS = {
    "rows": {"lazy Adam", "kadam RowUpdates", "optax.adam", "Keras", "deferred_rows, 100 rows"},
    "dense": {"optax.adam", "optax.amsgrad", "Keras", "the limit", "itself again"},
    "clipped": {"kadam", "optax.adam clipped"},
    "accumulation": {"optax.MultiSteps", "the limit"},
    "training": {"optax.adam", "optax.adam clipped", "forward and backward"},
    "leaves": {"optax.adam", "optax.adam clipped", "the limit"},
    "files": {"h5py .weights.h5", "h5py .keras"},
}


# The steps of "rows" and "training" take long to compile; "files" starts a process for each contender.
@pytest.mark.parametrize("question", mostly_slow(zip(QUESTIONS), lambda question: question == "dense"))
@keras_rules()
def test_every_question_is_measured_without_torch(
    question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "torch.py").write_text("raise ImportError('not installed')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # The other tests of this process go on with what is cached.
    assert main([question, "--quick", "--out", str(tmp_path / "figures")]) == 0
    output, errors = capsys.readouterr()

    figures = json.loads((tmp_path / "figures" / "figures.json").read_text())
    assert figures["quick"] and figures["date"]
    assert {"cpu", "cores", "gpu", "python", "jax", "optax"} <= figures["machine"].keys()
    found = figures["questions"][question]
    assert ("torch is left out: not installed" in found["notes"]) == (question in ("dense", "rows"))
    assert ("torch is left out: not installed" in output) == (question in ("dense", "rows"))
    ratios = [Ratio(**one) for case in found["cases"] for one in case["ratios"]]
    assert {one.peer for one in ratios} == PAIRS[question]
    assert all(len(case["rounds"]) == 2 for case in found["cases"] if "compiling 5" not in case["case"])
    summary = (tmp_path / "figures" / "summary.md").read_text()
    for one in ratios:
        assert one.ours_least > 0 and one.lower <= one.median <= one.upper
        assert one.case in output and one.case in errors and f"| {one.case} | {one.ours} | {one.peer} |" in summary
    assert (tmp_path / "figures" / "summary.png").read_bytes().startswith(PNG_SIGNATURE)


def test_a_ratio_is_the_median_of_those_within_the_rounds():
    rounds = [{"ours": 1.0, "theirs": 2.0}, {"ours": 30.0, "theirs": 30.0}, {"ours": 3.0, "theirs": 2.0}]
    found = ratio("a case", rounds, "ours", "theirs")
    assert found == Ratio("a case", "ours", "theirs", 1.0, 2.0, median=1.0, lower=0.75, upper=1.25)
    assert found.of_least == 0.5
    one = ratio("a case", rounds[:1], "ours", "theirs")
    assert (one.lower, one.median, one.upper) == (0.5, 0.5, 0.5)


def test_the_table_says_what_was_measured(tmp_path: Path):
    """Times are in milliseconds; a ratio has two digits, and more where it is small."""
    session = Session("dense")
    session.ratios = [
        Ratio("a case", "kadam", "optax.adam", 2e-3, 4e-3, 0.625, 0.5, 1.0),
        Ratio("a case", "kadam", "Keras", 2e-3, 1.0, 0.00213, 0.002, 0.0034),
    ]
    _report.write([session], tmp_path)
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert lines[2:4] == [
        "| a case | kadam | optax.adam | 2 | 4 | 0.50 | 0.62 (0.50 to 1.00) |",
        "| a case | kadam | Keras | 2 | 1e+03 | 0.002 | 0.0021 (0.002 to 0.0034) |",
    ]


def test_each_round_has_an_order_of_its_own():
    session, called = Session("rows", rounds=40), []

    def builder(name: str, seconds: float):
        return lambda: lambda: called.append(name) or seconds

    builders = {"a": builder("a", 1.0), "b": builder("b", 2.0), "missing": lambda: None, "c": builder("c", 3.0)}
    session.race("a case", builders, [("a", "b"), ("a", "missing"), ("missing", "b")])
    assert session.raw[0]["rounds"] == [{"a": 1.0, "b": 2.0, "c": 3.0}] * 40
    assert [(one.case, one.ours, one.peer, one.median) for one in session.ratios] == [("rows: a case", "a", "b", 0.5)]
    rounds = ["".join(called[start : start + 3]) for start in range(0, len(called), 3)]
    assert len(rounds) == WARM_UP + 40 and set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_a_short_step_is_repeated_until_it_can_be_timed():
    steps = []
    assert Session("").timed(lambda: steps.append(0))() < SHORTEST
    assert len(steps) > 100
    steps.clear()
    Session("", quick=True).timed(lambda: steps.append(0))()
    assert len(steps) == 1


def test_the_first_rounds_are_not_counted():
    session, turns = Session("rows", rounds=3), iter([9.0, 9.0, 1.0, 2.0, 3.0])
    session.race("a case", {"a": lambda: lambda: next(turns), "b": lambda: lambda: 1.0}, [("a", "b")])
    assert [measured["a"] for measured in session.raw[0]["rounds"]] == [1.0, 2.0, 3.0]
    assert session.ratios[0].median == 2.0 and session.ratios[0].upper == 2.5


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks._race._free_memory", lambda: 10**9)
    session = Session("", rounds=1)
    session.race("a case", {"a": lambda: pytest.fail("built")}, (), needs=10**9 + 1)
    assert not session.ratios and not session.raw
    assert session.notes == ["a case: left out, needs 1.0 GB of memory where 1.0 are free"]
    session.race("a case", {"a": lambda: lambda: 1.0}, (), needs=10**9)
    assert len(session.raw) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dens"], f"a question must be one of {', '.join(QUESTIONS)}. Received: 'dens'."),
        (["--rounds", "0"], "--rounds must be >= 1. Received: 0."),
        (["--rounds", "many"], "argument --rounds: invalid int value: 'many'"),
        (["--out", "file"], "--out must be a folder that can be written: File exists. Received: 'file'."),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as refusal:
        main(arguments)
    assert refusal.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_question_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(session: Session) -> None:
        raise RuntimeError("no luck")

    def succeed(session: Session) -> None:
        session.race("a case", {"kadam": lambda: lambda: 1.0, "peer": lambda: lambda: 2.0}, [("kadam", "peer")])

    monkeypatch.setattr("benchmarks.dense.run", fail)
    monkeypatch.setattr("benchmarks.clipped.run", succeed)
    assert main(["dense", "clipped", "--out", str(tmp_path)]) == 1
    output, error = capsys.readouterr()
    assert "clipped: a case" in output and "no luck" in error and "failed: dense" in error
    assert json.loads((tmp_path / "figures.json").read_text())["questions"]["clipped"]["cases"]
