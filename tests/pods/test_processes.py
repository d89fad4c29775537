"""Two processes with four devices each train one model over `jax.distributed`; one is lost, and they start again."""

import pytest

from .processes import assert_near, assert_same, running, two_processes
from .train import local, mesh_of, train


@pytest.mark.slow  # It starts four processes.
def test_two_processes_agree_and_are_one(tmp_path):
    directory, writes = tmp_path / "two", (tmp_path / "0.npz", tmp_path / "1.npz")
    with running(*two_processes(directory, writes)) as (first, second):
        first.reaches(3)
        second.kill()
    with running(*two_processes(directory, writes)) as (first, second):
        alone = local(train(tmp_path / "one", mesh_of("2x4"), steps=12))
        states = first.state(), second.state()
        assert first.made[0] > 1
    # Each process holds all parameters, divided over its four devices, and writes what it holds.
    assert_same(*states)
    assert_near(states[0], alone)
    # One process reads the checkpoint of the two to the bit, on any mesh.
    for shape in ("2x4", "4x2", "1x1"):
        assert_same(local(train(directory, mesh_of(shape), steps=12)), states[0])
