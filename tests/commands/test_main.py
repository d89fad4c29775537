"""What all commands have in common: the entry point, the list of commands, the help."""

import importlib
import pathlib
import re
import shlex
import tomllib

import pytest

import optax_kadam as ok
from optax_kadam.__main__ import _COMMANDS, _parser, main

ROOT = pathlib.Path(__file__).parents[2]


def left(capsys, *arguments):
    """Return the exit code, the output and the error of a command that leaves by itself."""
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    return exit.value.code, *capsys.readouterr()


def test_the_entry_point_is_main():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["kadam"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


@pytest.mark.parametrize(
    ("program", "name"),
    [("/usr/bin/kadam", "kadam"), ("kadam.exe", "kadam"), ("optax_kadam/__main__.py", "python -m optax_kadam")],
)
def test_errors_begin_with_the_program_as_it_was_called(capsys, monkeypatch, program, name):
    monkeypatch.setattr("sys.argv", [program])
    assert left(capsys, "inspect") == (
        2,
        "",
        f"{name} inspect: error: the following arguments are required: FILE\n",
    )


def test_the_version_is_told(capsys):
    assert left(capsys, "--version") == (0, f"optax_kadam {ok.__version__}\n", "")


def test_without_a_command_the_commands_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, output, error = left(capsys)
    assert code == 2 and not output
    listed = dict(re.findall(r"^    (\w+) +(.+)$", error, re.MULTILINE))
    assert listed == {name: summary for name, (summary, _) in _COMMANDS.items()}
    assert left(capsys, "--help") == (0, error, "")


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_help_of_a_command_fits_80_columns_and_has_an_example_that_is_understood(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["python -m optax_kadam"])  # The longest name of the program.
    code, output, error = left(capsys, name, "--help")
    assert code == 0 and not error
    assert max(map(len, output.splitlines())) <= 80
    examples = re.findall(r"^  kadam (.+)$", output.partition("\nexample:\n")[2], re.MULTILINE)
    assert shlex.split(examples[0])[0] == name
    for example in examples:
        assert "run" in _parser().parse_args(shlex.split(example))
