"""Every recorded run of the real Keras, replayed; the bounds are those of docs/how-exact.md."""

import fnmatch

import jax
import numpy as np
import optax
import pytest

from .golden.record import record
from .helpers import CASES, INPUTS, MANIFEST, SLOTS, build, flatten, golden, replay, share, split, ulp

# Where 0 ULP cannot be reached: the case, the runner, the largest distances that were measured, and the reason. The
# first is that of parameters, as a share of their movement, the second that of a slot, as a share of its largest entry.
BOUNDS = [
    ("*clipnorm_zerograds", "*", 0.0, 0.0, "no norm to sum"),
    ("*clipnorm*", "tfk-eager", 2.4e-6, 3e-7, "TensorFlow sums the squares of a norm in another order"),
    ("*clipnorm*", "legacy-eager", 3.3e-6, 3e-7, "TensorFlow sums the squares of a norm in another order"),
    ("sparse_*dup", "tfk-eager", 7.4e-7, 6.9e-7, "TensorFlow has another formula for the rows of a table"),
    ("sparse_*dup", "legacy-eager", 9.9e-7, 6.9e-7, "TensorFlow has another formula for the rows of a table"),
    ("*", "*", 0.0, 0.0, "equal to the bit"),
]

# TensorFlow clips the rows of a table before it adds them up. A dense gradient cannot show it; test_gradients.py does.
ROWS_ONLY = {"sparse_dup_clipvalue", "sparse_dup_global_clipnorm"}

RUNS = [
    (case["id"], runner)
    for case in CASES.values()
    for runner, status in case["runners"].items()
    if status == "ok" and case["id"] not in ROWS_ONLY
    if case["dtype"] == "float32" or runner == "k3-jax64-eager"  # For float16 and bfloat16 see test_precision.py.
]
EAGER = [run for run in RUNS if run[1].endswith("eager")]
# Op by op, each case in the rules of one generation, by turns; the slow test below takes all of them to their ends.
DAILY = [run for run in RUNS if run not in EAGER]
for number, case_id in enumerate(dict.fromkeys(case_id for case_id, _ in EAGER)):
    of_case = [run for run in EAGER if run[0] == case_id]
    DAILY.append(of_case[number % len(of_case)])


@pytest.mark.parametrize(("case_id", "runner"), DAILY)
def test_recorded_run(case_id, runner):
    compare(CASES[case_id], runner, steps=200 if runner.endswith("jit") else 10)


@pytest.mark.slow
@pytest.mark.parametrize(("case_id", "runner"), EAGER)
def test_recorded_run_to_its_end(case_id, runner):
    compare(CASES[case_id], runner, steps=200)


def compare(case, runner, steps):
    case_id, recorded = case["id"], golden(case["id"])
    jit = runner.endswith("jit")
    if jit and ("clipnorm" in case_id or jax.__version__ != MANIFEST["versions"]["jax"]):
        # Another compiler contracts other multiply-adds, and another processor sums a norm in another order, in Keras
        # too. So the run is recorded anew, with the Keras that is installed.
        with jax.numpy_dtype_promotion("standard"):
            recorded = record(case, runner, INPUTS)
    of_params, of_moments = next(
        row[2:4] for row in BOUNDS if fnmatch.fnmatch(case_id, row[0]) and fnmatch.fnmatch(runner, row[1])
    )
    with jax.enable_x64(case["dtype"] == "float64"):
        tx = build(case, runner.split("-")[0], keras_schedule(case, jit))
        start = flatten(split(INPUTS["init"]))
        for step, params, state in replay(case, tx, jit, steps):
            if f"{runner}/lr" in recorded and not jit:  # The jitted runs recorded the rates of an eager schedule.
                used = recorded[f"{runner}/lr"][step - 1].astype(np.float32)
                assert_equal(np.asarray(optax.tree.get(state, "learning_rate")), used, f"rate of step {step}")
            if step not in case["snapshots"]:
                continue
            expected = {key.split("/")[1]: recorded[key] for key in recorded if key.startswith(runner + "/")}
            expected = {key: of[case["snapshots"].index(step)] for key, of in expected.items() if key in READ}
            found = {key: read(params, state) for key, read in READ.items() if key in expected}
            assert found.keys() == expected.keys()
            for key, value in found.items():
                assert value.dtype == expected[key].dtype or key in ("it", "counter")
                if of_params == 0.0 or key in ("it", "counter", "scale"):
                    assert_equal(value, expected[key], f"{key} of step {step}")
                else:
                    moved = np.abs(recorded[f"{runner}/p"] - start).max() if key == "p" else np.abs(expected[key]).max()
                    assert share(value, expected[key], moved) <= (of_params if key == "p" else of_moments)


def keras_schedule(case, jit):
    """Return Keras's own schedule for a jitted run, where its divisions are off (see test_schedules.py), or None."""
    learning_rate = case["full_kwargs"].get("k3", {}).get("learning_rate")
    if not jit or not isinstance(learning_rate, dict):
        return None
    keras = pytest.importorskip("keras")
    name, config = learning_rate["$schedule"]
    schedule = getattr(keras.optimizers.schedules, name)(**config)
    return jax.numpy_dtype_promotion("standard")(lambda step: schedule(step))


READ = {
    "p": lambda params, state: flatten(params),
    **{slot: lambda params, state, name=name: flatten(optax.tree.get(state, name)) for slot, name in SLOTS.items()},
    "it": lambda params, state: np.asarray(optax.tree.get(state, "iterations")),
    "scale": lambda params, state: np.asarray(optax.tree.get(state, "dynamic_scale")),
    "counter": lambda params, state: np.asarray(optax.tree.get(state, "step_counter")),
}


def assert_equal(found, expected, what):
    distance = ulp(found, expected) if found.dtype == expected.dtype and found.dtype.kind == "f" else found != expected
    assert distance == 0, f"{what}: {distance} ULP"


@pytest.mark.parametrize("runner", [pytest.param("k3-jax-eager", marks=pytest.mark.slow), "k3-jax-jit"])
@pytest.mark.parametrize(
    ("case_id", "tx"),
    [
        ("default_mixed", optax.adam(1e-3, eps=1e-7)),
        ("eps_0.001", optax.adam(1e-3, eps=1e-3)),
        ("amsgrad_mixed", optax.amsgrad(1e-3, eps=1e-7)),
        ("clipnorm_1", optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3, eps=1e-7))),
    ],
)
def test_optax_fails_the_same_comparison(case_id, tx, runner):
    case, recorded = CASES[case_id], golden(case_id)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam does not run under strict promotion.
        *_, (_, params, _) = replay(case, tx, jit=runner.endswith("jit"))
    movement = np.abs(recorded[f"{runner}/p"] - flatten(split(INPUTS["init"]))).max()
    assert share(flatten(params), recorded[f"{runner}/p"][-1], movement) > 0.01
