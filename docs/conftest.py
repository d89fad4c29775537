"""The pages run as a reader runs them: in an empty folder, with Keras on JAX and eight devices on the CPU."""

import os
import pathlib
from collections.abc import Iterator

import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

collect_ignore = ["conf.py", "port_a_transformer.py"]  # Sphinx's, and a program that tests/test_docs.py runs.


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a page write what it likes; `tests` is there, for its recorded files, and Keras counts its names from 1."""
    pytest.importorskip("keras").utils.clear_session()
    (tmp_path / "tests").symlink_to(pathlib.Path(__file__).parents[1] / "tests")
    monkeypatch.chdir(tmp_path)
    yield
