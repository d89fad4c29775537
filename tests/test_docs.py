"""The site says something of every public name, and nothing of another; and its programs run."""

import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

import optax_kadam

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def public_names():
    for name, value in vars(optax_kadam).items():
        if name.startswith("_") or (isinstance(value, types.ModuleType) and name not in ("conversions", "schedules")):
            continue
        yield name
        if isinstance(value, types.ModuleType):
            for member, what in vars(value).items():
                if not member.startswith("_") and getattr(what, "__module__", "") == value.__name__:
                    yield f"{name}.{member}"


def test_every_public_name_has_a_page_and_each_page_a_name():
    lists = re.findall(r":toctree: names\n\n((?: {3}[\w.]+\n)+)", (DOCS / "reference" / "index.md").read_text())
    listed = [name for names in lists for name in names.split()]
    assert sorted(listed) == sorted(public_names())


@pytest.mark.slow
def test_a_transformer_goes_on_in_flax_as_in_keras():
    """The program itself compares: its losses are Keras's to 1e-5."""
    program = DOCS / "port_a_transformer.py"
    assert len(program.read_text().splitlines()) <= 120
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 9
