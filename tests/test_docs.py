"""The programs on the pages of the documentation."""

import os
import pathlib
import subprocess
import sys

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_a_transformer_goes_on_in_flax_as_in_keras():
    """The program itself compares: its losses are Keras's to 1e-5."""
    program = DOCS / "port_a_transformer.py"
    assert len(program.read_text().splitlines()) <= 120
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 9
