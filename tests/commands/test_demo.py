"""The command line: what a user sees of it, which is the output, the exit code and the plot."""

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


def distances(output: str) -> list[float]:
    """Return the distances in the last row of the table."""
    last_row = [line for line in output.splitlines() if line.startswith("│")][-1]
    return [float(share) for share in re.findall(r"(\S+)%", last_row)]


def test_kadam_trains_as_keras_and_optax_does_not(demo):
    output = demo("--epochs", "2", "--epsilon", "1e-3", "--out", "plot.png")
    assert Path("plot.png").read_bytes().startswith(PNG_SIGNATURE)
    assert all(name in output for name in ("Keras", "kadam", "optax.adam"))
    kadam, optax = distances(output)
    assert optax > 10, "optax.adam should be far off where epsilon is large, in percent"
    assert kadam < 1e-3 * optax


def test_without_keras_kadam_is_the_reference(demo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    output = demo("--epochs", "1")
    (line,) = (line for line in output.splitlines() if "left out" in line)
    assert line.startswith("Keras is left out, kadam is the reference: ")
    assert len(distances(output)) == 1
    assert Path("kadam_demo.png").read_bytes().startswith(PNG_SIGNATURE)


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
        ([], "required: command"),
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
