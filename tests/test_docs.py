"""The site says something of every public name, and nothing of another; and its programs run."""

import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

import optax_kadam

from .helpers import keras_rules

DOCS = pathlib.Path(__file__).parents[1] / "docs"
README = DOCS.parent / "README.md"


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


@keras_rules()
def test_the_code_in_the_readme_prints_what_it_says(tmp_path, monkeypatch, capsys):
    """The blocks run one after the other; the comments at the end of each are what it prints."""
    pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    blocks, names = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL), {}
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
        printed = re.search(r"((?:^# .*\n)+)\Z", block, flags=re.MULTILINE)
        assert printed and capsys.readouterr().out == re.sub("^# ", "", printed[1], flags=re.MULTILINE)


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = README.read_text()
    assert len(text.splitlines()) <= 110
    assert max(map(len, text.splitlines())) <= 120
    for page in re.findall(r"optax-kadam.github.io/optax_kadam/(\S+)\.html", text):
        assert (DOCS / f"{page}.md").is_file(), page
    for file in re.findall(r"optax-kadam/optax_kadam/(?:blob/)?main/(\S+)", text):
        assert (DOCS.parent / file).is_file(), file


@pytest.mark.slow
def test_a_transformer_goes_on_in_flax_as_in_keras():
    """The program itself compares: its losses are Keras's to 1e-5.

    It has no ReLU, after which they may part by 7e-4: the last bit decides on which side of 0 a unit falls.
    """
    program = DOCS / "port_a_transformer.py"
    assert len(program.read_text().splitlines()) <= 120
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 9
