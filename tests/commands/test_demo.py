"""The command line: what a user sees of it, which is the output, the exit code and the plot."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_kadam.__main__ import main
from optax_kadam.commands._demo import _optax_recipe
from optax_kadam.commands._demo_report import Run, _causes, _finding

from ..helpers import keras_rules

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the demo in a folder of its own, as on a plain terminal, and return what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> str:
        with keras_rules():
            main(["demo", *arguments])
        return capsys.readouterr().out

    return run


def last_row(output: str) -> list[float]:
    """Return the numbers of the last row of the table, without their percent signs: epoch, distances, losses."""
    rows = [line.split() for line in output.splitlines() if re.fullmatch(r" +\d+( +\S+%)+( +[\d.]+)+ *", line)]
    return [float(number.removesuffix("%")) for number in rows[-1]]


def test_by_default_the_optimizer_decides_and_kadam_reproduces_keras(demo):
    output = demo("--epochs", "3")
    lines = output.splitlines()
    assert max(map(len, lines)) <= 80
    start, end = (next(i for i, line in enumerate(lines) if text in line) for text in ("distance ", "Distance: "))
    assert end - start <= 12 and lines[start + 1].split() == ["epoch", "kadam", "optax", "Keras", "kadam", "optax"]
    _, kadam, optax, keras_loss, kadam_loss, optax_loss = last_row(output)
    assert kadam < 0.001 and optax > 30, "in percent"
    assert kadam_loss == keras_loss < 0.9 * optax_loss, "the curves should lie apart"
    assert re.search(r"^kadam reproduces Keras's weights (bit for bit|within \S+%)\.$", output, re.MULTILINE)
    assert f"\noptax.amsgrad ends {optax:g}% away from Keras's weights, with a loss of {optax_loss:.4f} where" in output
    assert lines[0] == "Keras  keras.optimizers.Adam(amsgrad=True)" and "\n  amsgrad: optax keeps" in output
    assert Path("kadam_demo.png").read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.slow
def test_the_table_stays_short_however_many_epochs_there_are(demo):
    output = demo("--no-amsgrad", "--epsilon", "1e-3", "--epochs", "20", "--out", "plot.png")
    rows = re.findall(r"^ +(\d+) .*%", output, re.MULTILINE)
    assert len(rows) == 7 and rows[0] == "0" and rows[-1] == "20"
    assert last_row(output)[2] > 30 and "amsgrad" not in output and "\n  epsilon: optax adds" in output
    assert Path("plot.png").exists() and not Path("kadam_demo.png").exists()


def test_without_keras_kadam_is_the_reference(demo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    output = demo("--epochs", "1")
    (line,) = (line for line in output.splitlines() if "left out" in line)
    assert line.startswith("Keras is left out, kadam is the reference: ")
    assert len(last_row(output)) == 1 + 1 + 2
    assert "away from kadam's weights" in output and "keras.optimizers" not in output
    assert Path("kadam_demo.png").read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize(
    ("distances", "sentence"),
    [
        ([0.0, 0.0], "kadam reproduces Keras's weights bit for bit"),
        ([0.5, 5e-7], "kadam reproduces Keras's weights within 5e-05%"),
        ([0.0, 0.05], "kadam ends 5% away from Keras's weights"),
        ([0.0, math.nan], "kadam ends nan% away from Keras's weights"),
    ],
)
def test_reproduced_is_what_ends_at_the_same_weights(distances: list[float], sentence: str):
    assert _finding(Run("kadam", [1.0, 1.0], distances), Run("Keras", [1.0, 1.0], [0.0, 0.0])) == sentence


def test_only_what_means_something_else_to_optax_is_said_to():
    given = {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "weight_decay": 0.1, "clipvalue": None}
    causes = list(_causes(**given, epsilon=1e-7, amsgrad=False, clipnorm=None, global_clipnorm=1.0))
    assert len(causes) == 1 and causes[0].startswith("epsilon: ") and " 10 times " in causes[0]
    causes = list(_causes(**given, epsilon=0.0, amsgrad=True, clipnorm=1.0, global_clipnorm=None))
    assert [cause.partition(":")[0] for cause in causes] == ["amsgrad", "clipnorm"]


@pytest.mark.parametrize(
    ("hyperparameters", "name"),
    [
        ({}, "optax.adam"),
        ({"amsgrad": True}, "optax.amsgrad"),
        ({"weight_decay": 0.01, "clipvalue": 0.0}, "optax.adamw"),
        ({"clipvalue": 0.1}, "optax.chain(clip, adam)"),
        ({"clipnorm": 0.1, "weight_decay": 0.01}, "optax.chain(clip_by_global_norm, adamw)"),
        (
            {"global_clipnorm": 0.1, "amsgrad": True, "weight_decay": 0.01},
            "optax.chain(clip_by_global_norm, amsgrad, add_decayed_weights)",
        ),
    ],
)
def test_the_recipe_is_named_and_steps(hyperparameters: dict[str, float], name: str):
    defaults = {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "amsgrad": False}
    off = dict.fromkeys(("weight_decay", "clipnorm", "clipvalue", "global_clipnorm"))
    params, gradients = jnp.array([10.0, 10.0]), jnp.array([1.0, 0.0])
    with jax.numpy_dtype_promotion("standard"):  # optax's own Adam mixes dtypes.
        recipe, tx = _optax_recipe(**{**defaults, **off, **hyperparameters})
        (step,) = jax.tree.leaves(tx.update(gradients, tx.init(params), params)[0])
    assert recipe == name
    decay = 0.1 * hyperparameters.get("weight_decay", 0.0) * 10.0
    # The first step of Adam has the size of the learning rate, whatever the gradient was clipped to.
    np.testing.assert_allclose(step, [-0.1 - decay, -decay], rtol=1e-3)


def test_missing_extras_are_named(tmp_path: Path):
    """The command itself, in a process of its own, as if Flax were not installed."""
    code = "import runpy, sys; sys.modules['flax'] = None; runpy.run_module('optax_kadam', run_name='__main__')"
    here = str(Path(__file__).parents[2])  # The package need not be installed.
    environment = {**os.environ, "PYTHONPATH": here, "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", code, "demo"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert "flax" in result.stderr and "pip install -e '.[demo]'" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["demo", "--epochs", "0"], "argument --epochs: must be an integer >= 1. Received: '0'."),
        (
            ["demo", "--batch-size", "1798"],
            "argument --batch-size: must be an integer from 1 to 1797. Received: '1798'.",
        ),
        (["demo", "--seed", "x"], "argument --seed: must be an integer >= 0. Received: 'x'."),
        (["demo", "--epsilon", "small"], "argument --epsilon: invalid float value: 'small'"),
        (["demo", "--epsilon", "-1"], "`epsilon` must be a finite number >= 0. Received: epsilon=-1.0."),
        (["demo", "--clipnorm", "1", "--clipvalue", "1"], "Only one of clipnorm, clipvalue and global_clipnorm"),
        (["demo", "--out", "plot.jpg"], "argument --out: must end in .png. Received: 'plot.jpg'."),
        (
            ["demo", "--out", "none/plot.png"],
            "cannot be written: No such file or directory. Received: 'none/plot.png'.",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        main(arguments)
    output, error = capsys.readouterr()
    assert refusal.value.code == 2
    assert message in error
    assert error.count("\n") == 1 and not output
    assert not list(tmp_path.iterdir())
