"""The command `compare`: what it prints, and with which status it ends."""

import pathlib
import re
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import optax_kadam as ok
from optax_kadam.__main__ import main

FILES = pathlib.Path(__file__).parents[1] / "golden" / "files"
ADAM = FILES / "k3j" / "adam.keras"


def run(capsys, *arguments):
    """Return the exit status, and what was printed."""
    with pytest.raises(SystemExit) as left:
        main(["compare", *map(str, arguments)])
    output, error = capsys.readouterr()
    assert bool(error) == (left.value.code == 2)
    return left.value.code, output or error


@pytest.fixture(scope="module")
def nudged(tmp_path_factory):
    """A checkpoint whose bias is two numbers away, with a layer of another name, and no moving statistics."""
    training = ok.load_keras(ADAM)
    params, state = training.restore({path: training.variables[path] for path in training.mu})
    bias = np.array(params["m/d1/bias"])
    bias[0] = np.nextafter(np.nextafter(bias[0], np.float32(1)), np.float32(1))
    slots = [params | {"m/d1/bias": jnp.asarray(bias)}, state.inner_state[0][0].mu, state.inner_state[0][0].nu]
    params, mu, nu = ({path.replace("m/d2", "head"): leaf for path, leaf in slot.items()} for slot in slots)
    state = {"iterations": state.iterations, "learning_rate": state.learning_rate, "inner": {"mu": mu, "nu": nu}}
    out = tmp_path_factory.mktemp("checkpoints") / "nudged"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(out, {"params": params, "opt_state": state})
    return out


def test_equal_trainings_end_with_0(capsys, tmp_path):
    main(["convert", str(ADAM), str(tmp_path / "out")])
    capsys.readouterr()
    code, output = run(capsys, ADAM, tmp_path / "out")
    assert code == 0 and output.endswith("23 arrays are in both, 23 of them equal.\nThe trainings are equal.\n")
    assert (
        output.startswith(f"a  {str(ADAM)[-60:]}" if len(str(ADAM)) < 60 else "a  ")
        and "configurations: the same" in output
    )


def test_bounds_decide_on_the_status(capsys, nudged):
    same = ["--rename", "m/d2=head", "--skip", "bn/moving_mean", "bn/moving_variance"]
    code, output = run(capsys, ADAM, nudged, *same)
    assert code == 1 and re.search(r"^weights +2  \d\.\de-0[678]  m/d1/bias$", output, re.MULTILINE)
    share = float(output.partition("e-0")[0].split()[-1] + "e-0" + output.partition("e-0")[2][0])
    for bounds, expected in (
        (["--ulp", 2], 0),
        (["--ulp", 1], 1),
        (["--share", 2 * share], 0),
        (["--share", share / 2], 1),
        (["--ulp", 2, "--share", share / 2], 1),
        (["--ulp", 2, "--share", 2 * share], 0),
        (["--ulp", 2, "--start", ADAM], 0),
        (["--share", 0.5, "--start", ADAM], 1),
    ):
        assert run(capsys, ADAM, nudged, *same, *bounds)[0] == expected, bounds
    assert run(capsys, ADAM, nudged, *same, "--skip", "d1")[0] == 0
    code, output = run(capsys, ADAM, nudged)
    assert code == 1 and "weights      head/bias: in b alone" in output and "m/bn/moving_mean: in a alone" in output


def test_what_is_no_training_ends_with_2(capsys, tmp_path):
    for arguments, message in {
        f"none.keras {ADAM}": "There must be a file",
        f"{ADAM} {ADAM} --rename d9=x": "`rename` must name parts of Keras's paths. Received: 'd9'.",
        f"{ADAM} {ADAM} --rename d1=x d1=y": "--rename: must name each part of Keras's paths once",
        f"{ADAM} {ADAM} --skip d9": "`skip` must name paths, slots or numbers of a side. Received: 'd9'.",
        f"{ADAM} {ADAM} --ulp -1": "--ulp: must be a number >= 0. Received: '-1'.",
        f"{ADAM} {ADAM} --share nan": "--share: must be a number >= 0. Received: 'nan'.",
        f"{ADAM} {ADAM} --share x": "--share: must be a number >= 0. Received: 'x'.",
        f"{ADAM} {FILES}/k3j/adam.optconfig.json": "The index of shards must hold a `weight_map`",
    }.items():
        code, error = run(capsys, *arguments.split())
        assert code == 2 and message in error and error.count("\n") == 1


def test_a_missing_orbax_is_named(capsys, nudged, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    code, error = run(capsys, ADAM, nudged)
    assert code == 2 and "Install what reads it: pip install 'orbax-checkpoint" in error
