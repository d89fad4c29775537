"""The consoles of `docs/command-line.md`: each command is run, and must print what stands there."""

import contextlib
import json
import pathlib
import re
import shlex
import shutil

import keras
import numpy as np
import pytest

import optax_kadam as ok
from optax_kadam.__main__ import _COMMANDS, main
from optax_kadam.commands._recipe import RECIPE

from ..helpers import keras_rules

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "command-line.md").read_text()
SESSIONS = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def examples(session):
    """Yield the commands of a console with what each prints."""
    for command, output in re.findall(r"^\$ kadam (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
        yield shlex.split(command), output


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a reader, in a terminal of 80 columns."""
    samples = ROOT / "tests" / "golden" / "files" / "k3j"
    shutil.copy(samples / "adam.keras", tmp_path / "model.keras")
    shutil.copy(samples / "adam.weights.h5", tmp_path / "model.weights.h5")
    config = json.loads((samples / "adam.optconfig.json").read_text())["get_config"]
    (tmp_path / "optimizer.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    with keras_rules():
        variables = [keras.Variable(np.ones(shape, "float32")) for shape in ((3, 2), (2,))]
        optimizer = keras.optimizers.Adam(0.1, clipnorm=1.0)
        optimizer.build(variables)
        with ok.record(optimizer, "first_steps.npz", steps=4):
            for _ in range(4):
                optimizer.apply([2 * variable.value for variable in variables])
    monkeypatch.setenv("COLUMNS", "80")


def lines(text):
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("session", [session for session in SESSIONS if "kadam demo" not in session])
@pytest.mark.usefixtures("folder")
def test_a_command_prints_what_is_documented(capsys, session):
    for command, documented in examples(session):
        with keras_rules(), contextlib.suppress(SystemExit):
            main(command)
        printed, documented = lines(capsys.readouterr().out), lines(documented)
        if documented[-1].endswith("..."):
            del printed[len(documented) :]
        assert len(printed) == len(documented)
        for line, pattern in zip(printed, documented, strict=True):
            assert re.fullmatch(re.escape(pattern).replace(re.escape("..."), ".*"), line)


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_the_demo_prints_what_is_documented(capsys):
    (session,) = (session for session in SESSIONS if "kadam demo" in session)
    ((command, documented),) = examples(session)
    with keras_rules():
        main(command)
    printed, documented = lines(capsys.readouterr().out), lines(documented)
    assert [NUMBER.sub("#", line) for line in printed] == [NUMBER.sub("#", line) for line in documented]
    numbers, expected = ([float(n) for line in text for n in NUMBER.findall(line)] for text in (printed, documented))
    assert numbers == pytest.approx(expected, rel=0.05)


def test_every_command_is_documented():
    shown = {command[0] for session in SESSIONS for command, _ in examples(session)}
    assert shown == set(_COMMANDS)
    assert set(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)) == set(_COMMANDS)


def test_the_recipe_of_the_help_is_that_of_the_page():
    recipe = [line.strip() for line in RECIPE.splitlines() if line.startswith("  ")]
    steps = re.findall(r"^>>> (.*)$", PAGE, re.MULTILINE)
    assert len(recipe) == 12 and [line for line in steps if line in recipe] == recipe
