"""A training that is killed by SIGKILL, and comes back on the same or other devices, ends like one left alone."""

import random
import shutil
import time

import pytest

import optax_kadam as ok

from . import train
from .processes import Run, assert_near, assert_same, running
from .train import local, mesh_of


def kill_while_writing(run, directory, after):
    """Kill the process while it writes a checkpoint, the first time after a step that it can be caught at that."""
    for step in run.steps():
        if step > after and run.freeze() and list(directory.glob("*tmp*")):
            return run.kill()
        run.thaw()
    raise AssertionError(f"never caught at writing\n{run.log.read_text()}")


@pytest.mark.slow  # It starts six processes.
def test_a_training_killed_twice_ends_like_one_left_alone(tmp_path):
    moments, directory = random.Random(0), tmp_path / "killed"
    with running(Run(tmp_path / "alone", tmp_path / "alone.npz")) as alone:
        with running(Run(directory, tmp_path / "killed.npz")) as run:
            kill_while_writing(run, directory, after=moments.randint(1, 3))
        with running(Run(directory, tmp_path / "killed.npz")) as run:
            run.reaches(moments.randint(5, 7))
            time.sleep(moments.uniform(0, 0.2))  # The kill may come anywhere within a step.
            run.kill()
        shapes = ("2x4", "4x2", "1x2")
        copies = [shutil.copytree(directory, tmp_path / shape) for shape in shapes]
        runs = [Run(copy, copy.with_suffix(".npz"), shape) for copy, shape in zip(copies, shapes, strict=True)]
        with running(*runs) as (same, *others):
            assert_same(same.state(), alone.state())
            for other in others:
                assert_near(other.state(), alone.state())
            assert min(run.made[0] for run in runs) > 4  # Otherwise they did not come back from a checkpoint.


@pytest.mark.slow  # It starts four processes.
def test_tables_killed_mid_training_end_like_those_left_alone(tmp_path):
    """On the same mesh with the same bits: rows, moments, last visits and the ring of what rows have yet to make up."""
    directory, program = tmp_path / "killed", {"program": "train_tables"}
    with running(Run(tmp_path / "alone", tmp_path / "alone.npz", **program)) as alone:
        with running(Run(directory, tmp_path / "killed.npz", **program)) as run:
            run.reaches(6)
            run.kill()
        shapes = ("2x4", "1x2")
        copies = [shutil.copytree(directory, tmp_path / shape) for shape in shapes]
        runs = [
            Run(copy, copy.with_suffix(".npz"), shape, **program) for copy, shape in zip(copies, shapes, strict=True)
        ]
        with running(*runs) as (same, other):
            wanted = alone.state()
            assert_same(same.state(), wanted)
            assert_near(other.state(), wanted)
            assert 1 < min(run.made[0] for run in runs) <= 8  # They came back from a checkpoint, and trained on.
    visits = wanted["2.last_visit.users"]
    assert (visits < 6).any() and (visits > 6).any()  # Some rows have not been visited since the kill.


@pytest.mark.slow
def test_a_training_that_comes_back_ends_like_one_left_alone(tmp_path):
    mesh = mesh_of("1x1")
    alone = local(train.train(tmp_path / "alone", mesh, steps=3))
    train.train(tmp_path / "back", mesh, steps=2)
    assert_same(local(train.train(tmp_path / "back", mesh, steps=3)), alone)
    for width in (32, 128):  # A model of another width is refused.
        message = rf"must hold float32\[{width}\] at '0.inner.bias.value'. Received: float32\[64\]. Build the model"
        with pytest.raises(ValueError, match=message):
            train.train(tmp_path / "back", mesh, steps=3, width=width)


def test_other_optimizers_are_refused(tmp_path, monkeypatch):
    """The program itself refuses another dtype, which Orbax would cast; Orbax names what is missing."""
    arguments = {"learning_rate": 0.01, "amsgrad": True}
    monkeypatch.setattr(train, "transformation", lambda: ok.kadamw(**arguments))
    train.train(tmp_path, mesh_of("1x2"), steps=1)
    arguments["mu_dtype"] = "bfloat16"
    with pytest.raises(
        ValueError, match=r"bfloat16\[64\] at '1\..*\.mu\.inner\.bias\.value'. Received: float32\[64\]."
    ):
        train.train(tmp_path, mesh_of("1x2"), steps=1)
    del arguments["mu_dtype"], arguments["amsgrad"]
    with pytest.raises(ValueError, match="nu_max"):
        train.train(tmp_path, mesh_of("1x2"), steps=1)
