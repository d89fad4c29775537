"""The benchmarks run and say what they should; their figures depend on the machine, and are not looked at."""

import io
import json
import sys
from pathlib import Path

import jax
import pytest
from rich.console import Console
from rich.table import Table

from benchmarks import _report
from benchmarks.__main__ import QUESTIONS, main
from benchmarks._hlo import aliased, collectives, copies_to_hbm, hbm_bytes, shapes, work
from benchmarks._race import Aim, Race, Spread
from benchmarks._side_by_side import WARM_UP, Contender, Session

from .helpers import keras_rules
from .sparing import mostly_slow

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CONTENDERS = {
    "dense": {"kadam", "optax.adam", "Keras", "limit"},
    "clipped": {"kadam", "kadam clipnorm", "kadam global_clipnorm", "kadam clipvalue", "optax.adam clipped"},
    "leaves": {"kadam", "optax.adam", "kadam global_clipnorm", "optax.adam clipped", "limit"},
    "accumulation": {"kadam", "optax.MultiSteps", "limit"},
    "rows": {"deferred_rows", "lazy Adam", "kadam RowUpdates", "optax.adam", "Keras"},
    "training": {"forward and backward", "kadam", "optax.adam"},
}


# "leaves" starts a process for each contender; the steps of "rows" and "training" take long to compile.
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
    assert f"[1/1] {question}: " in errors

    figures = json.loads((tmp_path / "figures" / f"{question}.json").read_text())
    assert figures["quick"] and figures["date"] and figures["load_before"] and figures["load_after"]
    assert {"cpu", "cores", "gpu", "python", "jax", "jaxlib", "optax"} <= figures["machine"].keys()
    assert ("torch is left out: not installed" in figures["notes"]) == (question in ("dense", "rows"))
    race = figures["races"][0]
    assert {row["name"] for row in race["rows"]} >= CONTENDERS[question]
    assert all(row["least"] > 0 for row in race["rows"]) and len(race["rounds"]) >= 3
    for name in CONTENDERS[question]:
        assert f"  {name} " in output
    for race in figures["races"]:
        assert race["title"] in output

    assert (tmp_path / "figures" / f"{question}.png").read_bytes().startswith(PNG_SIGNATURE)
    assert (tmp_path / "figures" / "summary.png").read_bytes().startswith(PNG_SIGNATURE)
    summary = (tmp_path / "figures" / "summary.md").read_text()
    for aim in (aim for race in figures["races"] for aim in race["aims"]):
        assert f"{aim['case']}: {aim['text']}" in summary and f"| {question} | {aim['what']} |" in summary


def test_a_ratio_is_the_median_of_those_within_the_rounds():
    rounds = [{"ours": 1.0, "theirs": 2.0}, {"ours": 30.0, "theirs": 30.0}, {"ours": 3.0, "theirs": 2.0}, {"ours": 9.0}]
    race = Race("a case", rounds, ("theirs",))
    assert race.ratio("ours", "theirs") == Spread(1.0, 0.75, 1.25)
    assert race.ratio("ours", "another") is None
    assert race.ratio_of_least("ours", "theirs") == 0.5 and race.ratio_of_least("ours", "another") is None
    assert race.figures("ours") == [1.0, 30.0, 3.0, 9.0]
    (ours, theirs) = _report.rows(race)
    assert (ours["median"], ours["least"]) == (6.0, 1.0) and theirs["spread"] == 14.0 / 2.0


def test_the_cases_of_all_sizes_are_one_table():
    """Each row has the figures of the rounds with its peer alone: ours at its least, the peer's, and the ratios."""
    rounds = [{"ours": 2e-3, "a": 4e-3}, {"ours": 3e-3, "a": 4e-3}, {"ours": 1e-3, "b": 5e-3}]
    cases = [Race(f"{size} rows", rounds, ("ours",), size=size) for size in (10, 20)]
    lines = _printed(_report.by_size(cases))
    assert [line.split() for line in lines if " a " in line or " b " in line] == [
        ["10", "rows", "a", "2", "4", "0.5", "0.62", "(0.56", "to", "0.69)"],
        ["b", "1", "5", "0.2", "0.2"],
        ["20", "rows", "a", "2", "4", "0.5", "0.62", "(0.56", "to", "0.69)"],
        ["b", "1", "5", "0.2", "0.2"],
    ]


def _printed(table: Table) -> list[str]:
    console = Console(width=140, file=io.StringIO(), highlight=False)
    console.print(table)
    return console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]: it is a StringIO.


def test_each_round_has_an_order_of_its_own():
    session, called = Session("", rounds=40), []

    def builder(name: str, seconds: float):
        return lambda: Contender(lambda: called.append(name) or seconds)

    builders = {"a": builder("a", 1.0), "b": builder("b", 2.0), "missing": lambda: None, "c": builder("c", 3.0)}
    session.race("a case", builders, ("b", "missing"), (Aim("a", "b", 1.0), Aim("a", "missing", 1.0)))
    (race,) = session.races
    assert race.rounds == [{"a": 1.0, "b": 2.0, "c": 3.0}] * 40
    assert race.references == ("b",) and race.aims == (Aim("a", "b", 1.0),)
    rounds = ["".join(called[start : start + 3]) for start in range(0, len(called), 3)]
    assert len(rounds) == WARM_UP + 40 and set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_what_does_not_fit_is_left_out():
    session = Session("")
    session.race("a case", {"a": lambda: pytest.fail("built")}, (), needs=10**18)
    assert not session.races
    assert session.notes[0].startswith("a case: left out, needs 1000000000.0 GB of memory where ")


def test_work_is_counted_where_it_is_done():
    """Kernels of scalars and what is inside a kernel do not count; what is called and the branch that is taken do."""
    work_of = work(HLO), work(HLO, branch=1)
    assert [sum(kernels) for kernels, _, _ in work_of] == [404 + 400 + 800, 404 + 400 + 500]
    assert [copies for _, copies, _ in work_of] == [1, 0]
    assert "sqrt" in work_of[1].operations and "sqrt" not in work_of[0].operations


HLO = """HloModule jit_step

%fused (p.0: f32[50], p.1: f32[]) -> f32[50] {
  %p.0 = f32[50]{0} parameter(0)
  %p.1 = f32[] parameter(1)
  %b = f32[50]{0} broadcast(%p.1), dimensions={}
  ROOT %m = f32[50]{0} multiply(%p.0, %b)
}

%called (p.2: f32[50]) -> f32[50] {
  %p.2 = f32[50]{0} parameter(0)
  ROOT %n = f32[50]{0:T(1024)} negate(%p.2), metadata={op_name="jit(step)/neg"}
}

%collect (p.3: (f32[50], f32[50])) -> (f32[50]) {
  %p.3 = (f32[50]{0}, f32[50]{0}) parameter(0)
  %g.0 = f32[50]{0} get-tuple-element(%p.3), index=0
  %c = f32[50]{0} copy(%g.0)
  %a.1 = f32[50]{0} abs(%c)
  ROOT %t.0 = (f32[50]{0}) tuple(%a.1)
}

%step (p.4: (f32[50], f32[50])) -> (f32[50]) {
  %p.4 = (f32[50]{0}, f32[50]{0}) parameter(0)
  %g.1 = f32[50]{0} get-tuple-element(%p.4), index=0
  %h = bf16[50]{0} convert(%g.1)
  %s = bf16[50]{0} sqrt(%h)
  %d = bf16[50]{0} bitcast(%s)
  ROOT %t.1 = (f32[50]{0}) tuple(%d)
}

ENTRY %main (x: f32[50], y: f32[], i: s32[]) -> (f32[50]) {
  %x = f32[50]{0} parameter(0)
  %y = f32[] parameter(1)
  %i = s32[] parameter(2)
  %scalar = f32[] add(%y, %y)
  %f = f32[50]{0} fusion(%x, %scalar), kind=kLoop, calls=%fused, backend_config={"outer_dimension_partitions":["2"]}
  %call.1 = f32[50]{0} call(%f), to_apply=%called
  %both = (f32[50]{0}, /*index=1*/f32[50]{0}) tuple(%f, %call.1)
  ROOT %if = (f32[50]{0}) conditional(%i, %both, %both), branch_computations={%collect, %step}
}
"""


def test_copies_and_bytes_of_a_tpu_are_those_of_hbm():
    """`%there` copies an argument within HBM, `%back` carries a result there from the chip; `%part` moves a slice."""
    assert copies_to_hbm(TPU) == ["there"]
    assert hbm_bytes(TPU) == 2 * 400 + 400 + 400 + 40 + 400  # In the order of the program.
    assert collectives(TPU) == {"all-reduce": 1, "send": 1} and collectives(HLO) == {}
    assert aliased(TPU) == 2 and aliased(HLO) == 0
    assert shapes(TPU, "copy", "copy-start") == [(100,), (100,), (100,), ()]


TPU = """HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, must-alias) }, entry_computation_layout={(f32[100]{0:T(128)})->f32[100]{0:T(128)}}

ENTRY %main.7 (p.0: f32[100]) -> (f32[100], f32[100]) {
  %p.0 = f32[100]{0:T(128)} parameter(0)
  %there = f32[100]{0:T(128)} copy(%p.0)
  %sum = f32[100]{0:T(128)S(1)} all-reduce(%there), replica_groups={{0,1}}, to_apply=%add
  %back = (f32[100]{0:T(128)}, f32[100]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%sum)
  %done = f32[100]{0:T(128)} copy-done(%back)
  %part = (f32[100]{0:T(128)}, f32[10]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%done), slice={[0:10]}
  %half = f32[10]{0:T(128)S(1)} slice-done(%part)
  %sent = (f32[100]{0:T(128)S(1)}, u32[]{:S(2)}, token[]{:S(2)}) send(%done), channel_id=1
  ROOT %out = (f32[100]{0:T(128)}, f32[100]{0:T(128)}) tuple(%there, %done)
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dens"], "a question must be one of rows, dense, clipped, leaves, accumulation, training. Received: 'dens'."),
        (["--rounds", "2"], "--rounds must be >= 3. Received: 2."),
        (["--rounds", "many"], "argument --rounds: invalid int value: 'many'"),
        (["--seconds", "0"], "--seconds must be > 0. Received: 0."),
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
        session.race("a case", {"kadam": lambda: Contender(lambda: 1.0)}, ("kadam",))

    monkeypatch.setattr("benchmarks.dense.run", fail)
    monkeypatch.setattr("benchmarks.clipped.run", succeed)
    assert main(["dense", "clipped", "--out", str(tmp_path)]) == 1
    output, error = capsys.readouterr()
    assert "a case" in output and "no luck" in error and "failed: dense" in error
    assert json.loads((tmp_path / "clipped.json").read_text())["races"]
