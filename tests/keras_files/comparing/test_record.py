"""`record` and `replay`: Keras's own steps agree to the bit, and what differs is named by step and variable."""

import contextlib
import dataclasses
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok
from optax_kadam.__main__ import main
from optax_kadam.commands._replay import replay, replayed
from optax_kadam.keras_files.comparing._recording import Recording, Step, read_recording

from ...helpers import keras_rules
from ...sparing import mostly_slow

keras = pytest.importorskip("keras")
optimizers = keras.optimizers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 4)).astype("f4"), RNG.normal(size=(40, 2)).astype("f4")
NAMES = [f"m/{layer}/{part}" for layer in ("one", "two") for part in ("kernel", "bias")]


@pytest.fixture(autouse=True)
def rules():
    with keras_rules():
        yield


def model(optimizer, **arguments):
    keras.utils.set_random_seed(1)
    layers = [keras.Input((4,)), keras.layers.Dense(8, "tanh", name="one"), keras.layers.Dense(2, name="two")]
    made = keras.Sequential(layers, name="m")
    made.compile(optimizer, "mse", **{"run_eagerly": True, "jit_compile": False} | arguments)
    return made


def fit(made, steps=5, **arguments):
    return made.fit(X[: 4 * steps], Y[: 4 * steps], batch_size=4, verbose=0, shuffle=False, **arguments)


def recorded(path, optimizer, steps=5, before=0):
    """Return the recording of a fit, after some steps that are not recorded."""
    made = model(optimizer)
    if before:
        fit(made, before)
    with ok.record(made.optimizer, path, steps=steps):
        fit(made, steps)
    return read_recording(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    with keras_rules():
        path = tmp_path_factory.mktemp("recordings") / "plain.npz"
        return path, recorded(path, keras.optimizers.Adam(0.05))


CASES = {
    "amsgrad": lambda: optimizers.Adam(0.05, amsgrad=True),
    "AdamW": lambda: optimizers.AdamW(0.05, weight_decay=0.01),
    "clipnorm": lambda: optimizers.Adam(0.05, clipnorm=0.1),
    "global_clipnorm": lambda: optimizers.Adam(0.05, global_clipnorm=0.1),
    "clipvalue": lambda: optimizers.Adam(0.05, clipvalue=0.1),
    "average": lambda: optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
    "accumulation": lambda: optimizers.Adam(0.05, gradient_accumulation_steps=2),
    "schedule": lambda: optimizers.Adam(optimizers.schedules.CosineDecay(0.05, 20)),
    "loss_scale_factor": lambda: optimizers.Adam(0.05, loss_scale_factor=8.0),
    "loss scale": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.05), dynamic_growth_steps=2),
}


DAILY = [("average", 3), ("accumulation", 3), ("loss scale", 3)]
EVERY = [(name, before) for name in CASES for before in (0, 3)]


@pytest.mark.parametrize(("name", "before"), mostly_slow(EVERY, lambda *case: case in DAILY))
def test_a_fit_agrees(tmp_path, name, before):
    recording = recorded(tmp_path / "run.npz", CASES[name](), before=before)
    assert recording.start.iterations == before and recording.end.iterations == before + 5
    assert recording.keras == f"keras {keras.__version__} on jax" and list(recording.start.variables) == NAMES
    result = replayed(recording, is_jitted=False)
    if name in ("AdamW", "average"):  # Where a parameter crosses zero or halves: README, how exact.
        assert result.is_within(None, 1e-6)
    else:
        assert not result.differing
    assert replayed(recording, is_jitted=True).is_within(None, 1e-5)
    if before:  # What it begins with matters.
        zeros = {path: np.zeros_like(mu) for path, mu in recording.start.mu.items()}
        forgotten = dataclasses.replace(recording, start=dataclasses.replace(recording.start, mu=zeros))
        assert not replayed(forgotten, is_jitted=False).is_within(None, 1e-3)


def test_the_text_says_that_the_optimizer_agrees(capsys, plain):
    path, recording = plain
    assert len(recording.steps) == 5 and not replayed(recording, is_jitted=False).differing
    with pytest.raises(SystemExit) as left:
        main(["replay", str(path)])
    output = capsys.readouterr().out
    assert left.value.code == 0 and max(map(len, output.splitlines())) <= 80
    assert output.startswith(
        f"recording  5 steps of keras {keras.__version__} on jax, 4 variables\noptimizer  Adam(lear"
    )
    assert "\nop by op   the same bits in all steps\njitted     " in output
    assert output.endswith("\nThe optimizer agrees to the bit, op by op: look at the model.\n")


def changed(recording, step=None, slot=None, path="m/two/kernel", **config):
    """Return a recording with another number in a weight after a step, in a slot at the end, or in the config."""

    def nudged(arrays):
        array = np.array(arrays[path])
        array.flat[1] = np.nextafter(array.flat[1], np.float32(9))
        return {**arrays, path: array}

    steps, start, end = list(recording.steps), recording.start, recording.end
    if step:
        steps[step - 1] = steps[step - 1]._replace(weights=nudged(steps[step - 1].weights))
    if slot:
        end = dataclasses.replace(end, **{slot: nudged(getattr(end, slot))})
    if config:
        start = dataclasses.replace(start, config={**start.config, "config": {**start.config["config"], **config}})
    return dataclasses.replace(recording, steps=steps, start=start, end=end)


def test_the_first_step_and_variable_that_differ_are_named(capsys, plain, tmp_path):
    for step in range(1, 6):
        [apart] = replayed(changed(plain[1], step=step), is_jitted=False).differing
        assert (apart.step, apart.name, apart.distance.ulp) == (step, "m/two/kernel", 1)
        assert 0 < apart.distance.share < 1e-5
    for slot in ("mu", "nu"):
        [apart] = replayed(changed(plain[1], slot=slot), is_jitted=False).differing
        assert (apart.step, apart.name, apart.distance.ulp) == (5, f"{slot} of m/two/kernel", 1)
    counted = dataclasses.replace(plain[1], end=dataclasses.replace(plain[1].end, iterations=6))
    assert [apart.name for apart in replayed(counted, is_jitted=False).differing] == ["iterations"]
    for config in ({"beta_1": 0.8}, {"epsilon": 1e-3}, {"beta_2": 0.9}, {"clipnorm": 0.01}):
        differing = replayed(changed(plain[1], **config), is_jitted=False).differing
        assert differing[0].step <= 2 and differing[0].name == "m/one/kernel"
    path = tmp_path / "wrong.npz"
    with path.open("wb") as file:
        changed(plain[1], epsilon=1e-3).write(file)
    for arguments, code in (([], 1), (["--share", "10"], 0), (["--ulp", "3"], 1), (["--ulp", "3", "--share", "10"], 1)):
        with pytest.raises(SystemExit) as left:
            main(["replay", str(path), *arguments])
        output = capsys.readouterr().out
        assert left.value.code == code
        assert re.search(
            r"op by op   first differs at step 1: \d+ ULP, [\d.e-]+ of the movement,\n +in m/one/kernel", output
        )
        verdict = (
            "The optimizer differs.\n" if code else "The optimizer agrees within the bounds, op by op: look at the m"
        )
        assert verdict in output
    with path.open("wb") as file:
        changed(plain[1], step=3).write(file)
    text, agrees = replay(path)
    assert not agrees and re.search(
        r"The optimizer differs by rounding, .*e-0\d of the movement: look at the model", text
    )
    assert replay(path, ulp=1)[1] and not replay(path, ulp=0)[1] and not replay(path, ulp=1, share=0)[1]


def test_gradients_decide(plain):
    steps = list(plain[1].steps)
    steps[2] = steps[2]._replace(gradients={**steps[2].gradients, "m/two/bias": None})
    differing = replayed(dataclasses.replace(plain[1], steps=steps), is_jitted=False).differing
    assert (differing[0].step, differing[0].name) == (3, "m/two/bias")
    assert {apart.name.removeprefix("mu of ").removeprefix("nu of ") for apart in differing} == {"m/two/bias"}


def test_what_is_excluded_from_weight_decay_is_recorded(tmp_path):
    optimizer = optimizers.AdamW(0.05, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    recording = recorded(tmp_path / "run.npz", optimizer)
    assert recording.decayed == {name: "bias" not in name for name in NAMES}
    assert replayed(recording, is_jitted=False).is_within(None, 1e-6)
    all_decayed = dataclasses.replace(recording, decayed=dict.fromkeys(NAMES, True))
    assert not replayed(all_decayed, is_jitted=False).is_within(None, 1e-4)


def test_a_rate_that_is_changed_between_steps_is_recorded(tmp_path):
    made, rates = model(optimizers.Adam(0.05)), [0.05, 0.05, 0.025, 0.0125, 0.1]

    optimizer = made.optimizer
    optimizer.build(made.trainable_variables)
    with ok.record(optimizer, tmp_path / "run.npz", steps=5):
        for i, rate in enumerate(rates):
            optimizer.learning_rate = rate
            optimizer.apply([np.full(v.shape, np.cos(i), "f4") for v in made.trainable_variables])
    recording = read_recording(tmp_path / "run.npz")
    assert [step.learning_rate for step in recording.steps] == [float(np.float32(rate)) for rate in rates]
    assert not replayed(recording, is_jitted=False).differing
    steps = [step._replace(learning_rate=0.05) for step in recording.steps]
    first = replayed(dataclasses.replace(recording, steps=steps), is_jitted=False).differing[0]
    assert first.step == 3


def test_steps_by_hand_are_recorded(tmp_path):
    """The optimizer is not built yet, is handed variables in another order, and gradients that are None."""
    made, optimizer = model("sgd"), optimizers.Adam(0.05)
    order = [made.trainable_variables[i] for i in (2, 0, 3, 1)]
    with ok.record(optimizer, tmp_path / "run.npz", steps=4):
        for step in range(6):
            gradients = [jnp.full(v.shape, np.sin(step + i), "f4") for i, v in enumerate(order)]
            gradients[step % 4] = None
            if step == 1:
                optimizer.apply_gradients(zip(gradients[::-1], order[::-1], strict=True))
            elif step == 3:  # A variable that is left out has no gradient.
                optimizer.apply(gradients[1:3], order[1:3])
            else:
                optimizer.apply(gradients, order)
    recording = read_recording(tmp_path / "run.npz")
    paths = [NAMES[i] for i in (2, 0, 3, 1)]
    assert recording.start.mu is None and list(recording.start.variables) == paths and len(recording.steps) == 4
    nones = [[path for path, gradient in step.gradients.items() if gradient is None] for step in recording.steps]
    assert nones == [paths[:1], paths[1:2], paths[2:3], [paths[0], paths[3]]]
    assert not replayed(recording, is_jitted=False).differing


def test_what_is_compiled_is_refused(tmp_path):
    for arguments in ({"run_eagerly": False, "jit_compile": True},):
        made = model(optimizers.Adam(0.05), **arguments)
        with pytest.raises(
            ValueError, match=r"`optimizer` must be handed numbers. Received: \w*Tracer, as the step is com"
        ):
            with ok.record(made.optimizer, tmp_path / "run.npz"):
                fit(made)
        made = model(optimizers.Adam(0.05), **arguments)
        fit(made)  # It is compiled before.
        with pytest.raises(
            ValueError, match="A step must be taken within `record`. Received: none that was seen. Comp"
        ):
            with ok.record(made.optimizer, tmp_path / "run.npz"):
                fit(made)
    assert not list(tmp_path.iterdir())


def test_the_file_is_written_once_and_whole(tmp_path):
    path = tmp_path / "run.npz"
    made = model(optimizers.Adam(0.05))
    with pytest.raises(KeyError), ok.record(made.optimizer, path, steps=9):
        fit(made, 2)
        raise KeyError
    assert not list(tmp_path.iterdir()) and "apply" not in vars(made.optimizer)
    with ok.record(made.optimizer, path, steps=3):
        fit(made, 2)
        assert not path.exists()
        fit(made, 4)
        assert list(tmp_path.iterdir()) == [path]
        written = path.read_bytes()
    assert path.read_bytes() == written and "apply" not in vars(made.optimizer)
    recording = read_recording(path)
    assert len(recording.steps) == 3 and recording.start.iterations == 2 and recording.end.iterations == 5
    with ok.record(made.optimizer, path, steps=30):
        fit(made, 2)
    assert len(read_recording(path).steps) == 2 and read_recording(path).start.iterations == 8
    with pytest.raises(FileNotFoundError), ok.record(made.optimizer, tmp_path / "none" / "run.npz", steps=1):
        fit(made, 1)


def test_an_average_is_recorded_before_fit_puts_it_into_the_weights(tmp_path):
    made = model(optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9))
    with ok.record(made.optimizer, tmp_path / "run.npz", steps=9):
        fit(made, 3)
    assert not replayed(read_recording(tmp_path / "run.npz"), is_jitted=False).differing


def test_what_cannot_be_recorded_is_refused(tmp_path):
    path = tmp_path / "run.npz"

    def attempt(optimizer, act=lambda optimizer: None, **arguments):
        with contextlib.ExitStack() as stack:
            stack.enter_context(ok.record(optimizer, path, **arguments))
            act(optimizer)

    variable = keras.Variable(np.ones(2, "f4"), name="v")
    bound = keras.layers.Dense(1, kernel_constraint="non_neg")
    bound.build((None, 2))
    one = np.ones(2, "f4")

    def twice(optimizer):
        other = keras.Variable(one, name="w")
        optimizer.build([variable, other])
        optimizer.apply([one], [variable])
        optimizer.apply([one], [keras.Variable(one, name="stranger")])

    sparse = jax.experimental.sparse.BCOO.fromdense(jnp.ones(2))
    for optimizer, act, error, message in (
        (optimizers.SGD(0.1), None, ValueError, "`optimizer` must be Keras's own Adam or AdamW"),
        (
            optimizers.Adam(0.1),
            lambda o: o.apply([np.ones((2, 1), "f4")], [bound.kernel]),
            ValueError,
            "must alone make the wei",
        ),
        (
            optimizers.Adam(lambda: 0.1),
            lambda o: o.apply([one], [variable]),
            ValueError,
            "rate must be a number or one of Keras",
        ),
        (
            optimizers.Adam(0.1),
            twice,
            ValueError,
            "must be handed the variables of the first step. Received: 'stranger' in step 2",
        ),
        (
            optimizers.Adam(0.1),
            lambda o: o.apply([sparse], [variable]),
            TypeError,
            "IndexedSlices or None. Received: BCOO",
        ),
        (optimizers.Adam(0.1), None, ValueError, "A step must be taken within `record`"),
    ):
        with pytest.raises(error, match=message):
            attempt(optimizer, *([act] if act else []))
    with pytest.raises(ValueError, match="`steps` must be an integer >= 1. Received: steps=0"):
        attempt(optimizers.Adam(0.1), steps=0)
    assert not path.exists()


def test_a_file_that_is_no_recording_is_refused(capsys, plain, tmp_path):
    path, data = tmp_path / "x.npz", plain[0].read_bytes()
    np.savez(tmp_path / "other.npz", recording=np.frombuffer(json.dumps({"kind": "other"}).encode(), np.uint8))
    np.savez(tmp_path / "objects.npz", recording=np.array([{}], object))
    middle = len(data) // 2
    contents = [b"", b"text", data[:-9], data[:middle], data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]]
    contents += [(tmp_path / name).read_bytes() for name in ("other.npz", "objects.npz")]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(SystemExit) as left:
            main(["replay", str(path)])
        error = capsys.readouterr().err
        assert (
            left.value.code == 2
            and "The path must be that of a recording. Received: " in error
            and error.count("\n") == 1
        )
    with pytest.raises(SystemExit) as left:
        main(["replay", str(tmp_path / "none.npz")])
    assert left.value.code == 2 and "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float64", marks=pytest.mark.slow)])
def test_rows_and_other_dtypes_go_through_the_file(tmp_path, dtype):
    """The recording is made by the transformation itself, which takes rows as TensorFlow's optimizers do."""
    config = {"class_name": "Adam", "config": {"learning_rate": 0.05, "jit_compile": False, "clipnorm": 0.1}}
    with jax.enable_x64(dtype == "float64"):
        tx, params = ok.from_config(config), [jnp.ones((5, 2), dtype), jnp.ones(3, dtype)]
        state, steps = tx.init(params), []
        start = ok.KerasTraining("tf_keras", config, 0, 0.05, dict(zip("tv", map(np.asarray, params), strict=True)))
        for i in range(3):
            rows = np.array([i, 4, i]), np.asarray(jnp.full((3, 2), i + 1, dtype))
            gradients = [ok.RowUpdates(*rows), jnp.full(3, i - 1, dtype)]
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            weights = dict(zip("tv", map(np.asarray, params), strict=True))
            steps.append(Step({"t": rows, "v": np.asarray(gradients[1])}, None, weights))
        moments = {s: dict(zip("tv", map(np.asarray, optax.tree.get(state, s)), strict=True)) for s in ("mu", "nu")}
    end = dataclasses.replace(start, variables=steps[-1].weights, iterations=3, **moments)
    with open(tmp_path / "rows.npz", "wb") as file:
        Recording("nothing", start, steps, end, {"t": True, "v": True}).write(file)
    assert os.path.getsize(tmp_path / "rows.npz")
    recording = read_recording(tmp_path / "rows.npz")
    assert recording.start.variables["t"].dtype == jnp.dtype(dtype) and isinstance(
        recording.steps[0].gradients["t"], tuple
    )
    assert not replayed(recording, is_jitted=False).differing
    summed = [
        s._replace(gradients={**s.gradients, "t": (s.gradients["t"][0][:2], s.gradients["t"][1][:2])}) for s in steps
    ]
    differing = replayed(dataclasses.replace(recording, steps=summed), is_jitted=False).differing
    assert differing and {apart.name[-1] for apart in differing} == {"t"}
