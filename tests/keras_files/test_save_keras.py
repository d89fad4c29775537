"""Saving into a Keras file: what is written, and that the old or the new file is there, whole, whatever happens."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import resource
import stat
import subprocess
import sys
import tempfile
import zipfile

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_kadam as ok
from optax_kadam.keras_files import _save, _whole_file

from ..helpers import keras_rules
from ..sparing import mostly_slow

FILES = pathlib.Path(__file__).parents[1] / "golden" / "files"
ADAM = FILES / "k3j/adam.keras"
HDF5 = FILES / "tfk/adam.h5"
KINDS = ["k3j/adam.keras", "k3j/adam.weights.h5", "tfk/adam.h5"]


def trained(template, by=0.0):
    """Return the parameters and the state in a file, with `by` added to each parameter."""
    training = ok.load_keras(template)
    structs = {path: jax.ShapeDtypeStruct(mu.shape, mu.dtype) for path, mu in training.mu.items()}
    params, state = training.restore(structs)
    return jax.tree.map(lambda leaf: leaf + jnp.float32(by), params), state


def same(path, other):
    """Return whether two files hold the same training."""
    one, two = (vars(ok.load_keras(p)) for p in (path, other))
    return jax.tree.all(jax.tree.map(np.array_equal, one, two))


@pytest.fixture
def saved(tmp_path):
    """A file that a template's training was saved to, and another training to save over it."""
    path = tmp_path / "x.keras"
    path.write_bytes(ADAM.read_bytes())
    return path, trained(path, by=1.0)


# What is written.


def is_template(path):
    """Return whether a sample is no shard, not pickled, and not of a legacy model without its optimizer."""
    has_state = path.parent.name != "legacy" or path.suffixes == [".h5"]
    return has_state and not path.name.startswith("adam_") and "npzfmt" not in path.name


SAMPLES = [path for ending in ("keras", "h5") for path in sorted(FILES.glob(f"*/*.{ending}")) if is_template(path)]


@pytest.mark.parametrize("template", SAMPLES, ids=lambda path: str(path.relative_to(FILES)))
def test_what_did_not_change_is_written_byte_for_byte(template, tmp_path):
    written = tmp_path / template.name
    ok.save_keras(written, *trained(template), template=template)
    if template.suffix == ".h5":
        assert written.read_bytes() == template.read_bytes()
        return
    with zipfile.ZipFile(template) as old, zipfile.ZipFile(written) as new:
        assert new.namelist() == old.namelist() and all(new.read(name) == old.read(name) for name in old.namelist())
        for before, after in zip(old.infolist(), new.infolist(), strict=True):
            for field in ("compress_type", "external_attr", "flag_bits", "extra", "header_offset", "create_system"):
                assert getattr(before, field) == getattr(after, field)


@pytest.mark.parametrize("name", ["k3j/adam.keras", "tfk/adam.keras", "tfk/adam.h5", "legacy/adam.h5"])
@pytest.mark.parametrize("rate", [0.5, 1e-5 / 3])
def test_another_learning_rate_changes_nothing_else(name, rate, tmp_path):
    params, state = trained(FILES / name)
    written = tmp_path / name.replace("/", "_")
    ok.save_keras(written, params, optax.tree.set(state, learning_rate=rate), template=FILES / name)
    again = ok.load_keras(written)
    assert again.learning_rate == again.config["config"]["learning_rate"] == np.float32(rate)

    def configuration(path):
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                return file.attrs["training_config"]
        with zipfile.ZipFile(path) as file:
            return file.read("config.json").decode()

    old, new = ('"learning_rate": ' + json.dumps(float(np.float32(r))) for r in (0.01, rate))
    assert configuration(written) == configuration(FILES / name).replace(old, new)
    ok.save_keras(written, params, state, template=written)
    assert same(written, FILES / name) and configuration(written) == configuration(FILES / name)


def test_a_rate_that_changes_at_every_save_does_not_let_the_file_grow(tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(HDF5.read_bytes())
    params, state = trained(path)
    for step in range(20):
        state = optax.tree.set(state, learning_rate=1 / (1 + step))
        ok.save_keras(path, params, state, template=path)
        assert ok.load_keras(path).learning_rate == np.float32(1 / (1 + step))
    assert path.stat().st_size == HDF5.stat().st_size


def test_the_decayed_rate_is_not_saved_for_the_one_that_decays(tmp_path):
    training = ok.load_keras(FILES / "legacy/decay_clip.h5")
    params, state = trained(FILES / "legacy/decay_clip.h5")
    _, state = training.transformation().update(params, state, params)
    ok.save_keras(tmp_path / "x.h5", params, state, template=FILES / "legacy/decay_clip.h5")
    again = ok.load_keras(tmp_path / "x.h5")
    assert again.learning_rate == training.learning_rate and again.iterations == 21


def test_numbers_need_not_be_finite(tmp_path):
    params, state = trained(ADAM)
    params["m/d1/bias"] = jnp.asarray([np.nan, np.inf, -np.inf, -0.0, 1e-45, 1.0], jnp.float32)
    ok.save_keras(tmp_path / "x.keras", params, state, template=ADAM)
    found = ok.load_keras(tmp_path / "x.keras").variables["m/d1/bias"]
    assert found.tobytes() == np.asarray(params["m/d1/bias"]).tobytes()


def test_weights_alone_are_written_from_an_archive(tmp_path):
    ok.save_keras(tmp_path / "x.weights.h5", *trained(ADAM), template=ADAM)
    with zipfile.ZipFile(ADAM) as archive:
        assert (tmp_path / "x.weights.h5").read_bytes() == archive.read("model.weights.h5")


def test_a_compressed_template_is_written_uncompressed(tmp_path):
    with zipfile.ZipFile(ADAM) as old, zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("assets/words.txt", "a b c")
    ok.save_keras(tmp_path / "y.keras", *trained(ADAM, by=1.0), template=tmp_path / "x.keras")
    ok.save_keras(tmp_path / "z.keras", *trained(ADAM, by=1.0), template=ADAM)
    with zipfile.ZipFile(tmp_path / "y.keras") as archive:
        assert archive.read("assets/words.txt") == b"a b c"
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
    assert same(tmp_path / "y.keras", tmp_path / "z.keras")


# Mistakes of the caller's.


def refused(folder, error, message, path="x.keras", params=None, state=None, **kwargs):
    """Hold that saving is refused, and that nothing is written."""
    before = sorted(folder.iterdir())
    given = trained(ADAM)
    with pytest.raises(error, match=message):
        ok.save_keras(folder / path, params or given[0], state or given[1], **{"template": ADAM} | kwargs)
    assert sorted(folder.iterdir()) == before


def test_what_does_not_go_together_is_refused(tmp_path):
    params, state = trained(ADAM)
    without = {path: leaf for path, leaf in params.items() if path != "m/d2/bias"}
    keeps = "`opt_state` must be what the template's optimizer keeps: mu, nu, nu_max"
    refused(tmp_path, ValueError, keeps, template=FILES / "k3j/amsgrad.keras")
    refused(
        tmp_path, ValueError, "must hold the state of an optimizer. Received: a", template=FILES / "legacy/adam.keras"
    )
    refused(tmp_path, ValueError, "`path` must be of the format of `template`, .keras", path="x.h5")
    refused(tmp_path, ValueError, "no leaf for 'm/d2/bias'", params=without)
    half = params | {"m/d2/bias": jnp.zeros(3, jnp.float16)}
    refused(tmp_path, ValueError, r"float16\[3\] for 'm/d2/bias', which is float32\[3\] there", params=half)
    refused(tmp_path, ValueError, "`mu` must hold every variable", state=optax.tree.set(state, mu=without))
    refused(tmp_path, ValueError, "no variable for 'bn/x'", non_trainable={"bn": {"x": jnp.zeros(6)}})
    rate = optax.tree.set(state, learning_rate=jnp.float32(np.nan))
    refused(tmp_path, ValueError, "in a configuration must be a finite number. Received: learning_rate=nan", state=rate)


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.chain(optax.clip(1.0), tx)], ids=["alone", "chain"])
@pytest.mark.parametrize("rate", [0.01, optax.constant_schedule(0.01)], ids=["number", "schedule"])
@keras_rules()  # optax.adam needs them too.
def test_the_steps_that_optax_counted_are_written(wrap, rate, tmp_path):
    """They were the template's, beside new moments."""
    training, tx = ok.load_keras(ADAM), wrap(optax.adam(rate))
    params, state = training.restore({path: training.variables[path] for path in training.mu}, tx=tx)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    ok.save_keras(tmp_path / "x.keras", params, state, template=ADAM)
    again = ok.load_keras(tmp_path / "x.keras")
    assert again.iterations == 23
    assert jax.tree.all(jax.tree.map(np.array_equal, again.mu, optax.tree.get(state, "mu")))


def test_a_state_in_parts_is_written(tmp_path):
    training = ok.load_keras(ADAM)
    labels = {path: "one" if "d1" in path else "two" for path in training.mu}
    tx = optax.partition({"one": ok.kadam(), "two": ok.kadam()}, labels)
    params, state = training.restore({path: training.variables[path] for path in training.mu}, tx=tx)
    ok.save_keras(tmp_path / "x.keras", params, state, template=ADAM)
    assert same(tmp_path / "x.keras", ADAM)


def test_an_optimizer_of_nnx_may_be_handed_over(tmp_path):
    class Model(nnx.Module):
        def __init__(self, params):
            self.layers = nnx.data({path: nnx.Param(leaf) for path, leaf in params.items()})

    params, state = trained(ADAM)
    model = Model(params)
    optimizer = nnx.Optimizer(model, ok.kadam(), wrt=nnx.Param)
    nnx.update(optimizer.opt_state, nnx.state(jax.tree.map(lambda leaf: leaf, state)))
    rename = {path.removeprefix("m/"): f"layers/{path}" for path in params}
    inside = nnx.state(model, nnx.Param)
    ok.save_keras(tmp_path / "x.keras", inside, optimizer, template=ADAM, rename=rename)
    ok.save_keras(tmp_path / "y.keras", inside, optimizer.opt_state, template=ADAM, rename=rename)
    assert same(tmp_path / "x.keras", tmp_path / "y.keras")


def test_what_is_no_state_of_one_optimizer_is_refused(tmp_path):
    params, state = trained(ADAM)
    keeps = "`opt_state` must be what the template's optimizer keeps: mu, nu. Received: none of it"
    for nothing in ({}, {"a": params}, optax.sgd(0.1).init(params), None):
        with pytest.raises(ValueError, match=keeps):
            ok.save_keras(tmp_path / "x.keras", params, nothing, template=ADAM)
    twice = {"a": state, "b": jax.tree.map(jnp.copy, state)}
    refused(
        tmp_path, ValueError, "hold each slot of a parameter once. Received: 'mu' of 'm/bn/beta' twice", state=twice
    )
    moments = ok.scale_by_kadam().init(params)
    count = "`opt_state` must count the steps, and say one number. Received: "
    refused(tmp_path, ValueError, f"{count}neither `iterations` nor `count`", state=moments._replace(count=None))
    late = (moments, optax.ScaleByScheduleState(jnp.int32(5)))
    refused(tmp_path, ValueError, f"{count}0, 5. Hand over the whole", state=late)


def test_what_was_converted_is_converted_back(tmp_path):
    training, rename = ok.load_keras(ADAM), {"d1": "fc", "kernel": {"weight": ok.conversions.out_first}}
    params = {name.removeprefix("m/"): np.zeros(mu.shape, "f4") for name, mu in training.mu.items()}
    kernels = {"fc/weight": np.zeros((6, 20), "f4"), "d2/weight": np.zeros((3, 6), "f4")}
    params = {n: a for n, a in params.items() if "kernel" not in n} | kernels
    params["fc/bias"] = params.pop("d1/bias")
    params, state = training.restore(params, rename=rename)
    statistics = {path: array for path, array in training.variables.items() if "moving" in path}
    ok.save_keras(tmp_path / "x.keras", params, state, template=ADAM, rename=rename, non_trainable=statistics)
    assert same(tmp_path / "x.keras", ADAM)
    params["fc/weight"] = params["fc/weight"].T
    refused(tmp_path, ValueError, r"float32\[20, 6\] for 'm/d1/kernel'", params=params, state=state, rename=rename)


@pytest.mark.parametrize("leaf", ["x", 1.0, jax.ShapeDtypeStruct((3,), jnp.float32)], ids=lambda x: type(x).__name__)
def test_a_leaf_that_is_no_array_is_refused(leaf, tmp_path):
    params, state = trained(ADAM)
    message = f"must hold arrays. Received: {type(leaf).__name__} for '"
    refused(tmp_path, TypeError, f"`params` {message}m/d2/bias", params=params | {"m/d2/bias": leaf})
    refused(
        tmp_path, TypeError, f"`nu` {message}m/d2/bias", state=optax.tree.set(state, nu=params | {"m/d2/bias": leaf})
    )
    statistics = {"m/bn/moving_mean": leaf}
    refused(tmp_path, TypeError, f"`non_trainable` {message}m/bn/moving_mean", non_trainable=statistics)


def test_a_tree_without_arrays_is_refused(tmp_path):
    state = trained(ADAM)[1]
    for params in ("x", 5, optax.adam):
        refused(tmp_path, ValueError, "The leaves must be Keras's variables", params=params, state=state)


def test_a_file_that_is_no_template_is_refused(tmp_path):
    message = "`template` must be a `.keras`, `.weights.h5` or `.h5` file. Received: template='"
    refused(tmp_path, ValueError, message, template=FILES / "tfk/adam_savedmodel")
    refused(tmp_path, ValueError, message, template=FILES / "k3j/adam.weights.json")
    (tmp_path / "folder.keras").mkdir()
    refused(tmp_path, ValueError, message, template=tmp_path / "folder.keras")
    (tmp_path / "hdf5.keras").write_bytes((FILES / "k3j/adam.weights.h5").read_bytes())
    refused(tmp_path, ValueError, message, template=tmp_path / "hdf5.keras", config=ok.load_keras(ADAM).config)
    message = "There must be a file at `template`. Received: template='.*nothing.keras'. Save the model"
    refused(tmp_path, FileNotFoundError, message, template=tmp_path / "nothing.keras")


def test_a_damaged_configuration_is_refused_though_another_is_handed_over(tmp_path):
    template = tmp_path / "t.h5"
    template.write_bytes(HDF5.read_bytes().replace(b'"optimizer_config": {', b'"optimizer_config": ['))
    refused(
        tmp_path,
        ValueError,
        "A configuration must be JSON as Keras writes it. Received: '.*t.h5'",
        path="x.h5",
        template=template,
        config=ok.load_keras(HDF5).config,
        params=trained(HDF5)[0],
        state=trained(HDF5)[1],
    )


def test_a_template_of_shards_is_refused(tmp_path):
    shards = [f"adam_{i:05}.weights.h5" for i in range(3)]
    index = json.loads((FILES / "k3j/adam.weights.json").read_text())
    with zipfile.ZipFile(ADAM) as old, zipfile.ZipFile(tmp_path / "shards.keras", "w") as new:
        for name in ("metadata.json", "config.json"):
            new.writestr(name, old.read(name))
        new.writestr("model.weights.json", json.dumps(index))
        for name in shards:
            new.writestr(name, (FILES / "k3j" / name).read_bytes())
    message = "`template` must hold its weights in one file, 'model.weights.h5'. Received: .*`max_shard_size`"
    refused(tmp_path, ValueError, message, template=tmp_path / "shards.keras")


def test_h5py_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    path, (params, state) = tmp_path / "x.h5", trained(HDF5)
    path.write_bytes(b"old")
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setattr(_whole_file._File, "write", lambda *_: pytest.fail("something was written"))
    changed = optax.tree.set(state, learning_rate=0.5)
    with pytest.raises(
        ImportError, match=r"h5py must be installed to change .*Received: '.*adam.h5', .*`pip install h5p"
    ):
        ok.save_keras(path, params, changed, template=HDF5)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "h5py", None)
    ok.save_keras(path, params, state, template=HDF5)
    assert path.read_bytes() == HDF5.read_bytes()


# Where it is written.


def test_a_missing_folder_is_named_by_what_the_user_gave(tmp_path):
    message = r"The folder of `path` must exist. Received: path='.*/none/x.keras'. Make it first."
    refused(tmp_path, FileNotFoundError, message, path="none/x.keras")
    (tmp_path / "file").write_text("")
    refused(tmp_path, FileNotFoundError, "The folder of `path` must exist.", path="file/x.keras")


def test_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "folder.keras").mkdir()
    os.mkfifo(tmp_path / "pipe.keras")
    for name in ("folder.keras", "pipe.keras"):
        refused(
            tmp_path, ValueError, f"There must be a file or nothing at `path`. Received: path='.*/{name}'", path=name
        )


@pytest.mark.parametrize("name", KINDS)
def test_the_template_may_be_replaced_by_what_is_made_of_it(name, tmp_path):
    path, other = tmp_path / FILES.joinpath(name).name, tmp_path / ("other-" + FILES.joinpath(name).name)
    path.write_bytes((FILES / name).read_bytes())
    training = trained(path, by=1.0)
    with path.open("rb") as reader:  # It is open elsewhere, too.
        begun = reader.read(1000)
        ok.save_keras(path, *training, template=path)
        assert begun + reader.read() == (FILES / name).read_bytes()
    ok.save_keras(other, *training, template=FILES / name)
    assert path.read_bytes() == other.read_bytes() != (FILES / name).read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted([path, other])


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    link, real = tmp_path / "links/x.keras", tmp_path / "real/y.keras"
    link.symlink_to("../real/y.keras")
    ok.save_keras(link, *trained(ADAM), template=ADAM)  # It led to nothing.
    ok.save_keras(link, *trained(ADAM, by=1.0), template=link)
    assert link.readlink() == pathlib.Path("../real/y.keras") and not real.is_symlink()
    assert [list(folder.iterdir()) for folder in (link.parent, real.parent)] == [[link], [real]]
    assert np.array_equal(ok.load_keras(link).variables["m/d1/bias"], trained(ADAM, by=1.0)[0]["m/d1/bias"])
    link.unlink()
    link.symlink_to("x.keras")  # It leads to itself.
    with pytest.raises(OSError) as caught:
        ok.save_keras(link, *trained(ADAM), template=ADAM)
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(link)) and link.is_symlink()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_the_permissions_of_a_file_are_kept(mode, saved):
    path, training = saved
    path.chmod(mode)
    ok.save_keras(path, *training, template=ADAM)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_what_is_not_for_others_is_never_readable_by_them(saved, monkeypatch):
    path, training = saved
    path.chmod(0o600)
    modes = set()

    def note(*args, write=_whole_file._File.write):
        modes.update(stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir())
        return write(*args)

    monkeypatch.setattr(_whole_file._File, "write", note)
    ok.save_keras(path, *training, template=ADAM)
    assert modes == {0o600}


def test_a_new_file_has_the_permissions_that_open_gives(tmp_path):
    before = os.umask(0o027)
    try:
        ok.save_keras(tmp_path / "x.keras", *trained(ADAM), template=ADAM)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.keras").stat().st_mode) == 0o640


def test_a_template_that_changes_meanwhile_is_refused_or_read_as_it_was(saved, tmp_path, monkeypatch):
    path, training = saved
    template, new = tmp_path / "t.keras", _save.replacements

    def meanwhile(act):
        def replaced(*args, **options):
            act()
            return new(*args, **options)

        monkeypatch.setattr(_save, "replacements", replaced)

    template.write_bytes(ADAM.read_bytes())
    (tmp_path / "other").write_bytes((FILES / "k3j/amsgrad.keras").read_bytes())
    meanwhile(lambda: os.replace(tmp_path / "other", template))
    ok.save_keras(path, *training, template=template)
    monkeypatch.undo()
    old = path.read_bytes()
    ok.save_keras(path, *training, template=ADAM)
    assert path.read_bytes() == old

    def append():
        with template.open("ab") as file:
            file.write(b"x")

    template.write_bytes(ADAM.read_bytes())
    meanwhile(append)
    with pytest.raises(ValueError, match="A file must not change while it is read. Received: '.*t.keras'"):
        ok.save_keras(path, *training, template=template)
    assert path.read_bytes() == old and sorted(tmp_path.iterdir()) == [template, path]


# What stops the writing.


@contextlib.contextmanager
def largest_file(size):
    """Let the system refuse to write more than `size` bytes to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk_leaves_the_old_file(name, tmp_path):
    path = tmp_path / FILES.joinpath(name).name
    path.write_bytes((FILES / name).read_bytes())
    params, state = trained(path, by=1.0)
    state = optax.tree.set(state, learning_rate=0.5)
    for size in range(0, path.stat().st_size - 100, 997):
        with pytest.raises(OSError) as caught, largest_file(size):
            ok.save_keras(path, params, state, template=path)
        assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (errno.EFBIG, str(path), None)
        assert path.read_bytes() == (FILES / name).read_bytes() and list(tmp_path.iterdir()) == [path]
    ok.save_keras(path, params, state, template=path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("call", ["chmod", "fsync", "replace"])
def test_an_error_of_the_system_names_the_target(call, number, saved, monkeypatch):
    path, training = saved

    def fail(*args):
        raise OSError(number, os.strerror(number), *map(str, args[:1]))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError) as caught:
        ok.save_keras(path, *training, template=path)
    monkeypatch.undo()
    assert type(caught.value) is type(OSError(number, "")) and caught.value.errno == number
    assert str(caught.value) == f"[Errno {number}] {os.strerror(number)}: {str(path)!r}"
    assert path.read_bytes() == ADAM.read_bytes() and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interruption_at_any_write_leaves_the_old_file(stop, saved, monkeypatch):
    path, training = saved
    monkeypatch.setattr(_save, "_CHUNK", 1000)
    write, left = _whole_file._File.write, 0

    def interrupted(*args):
        nonlocal left
        left -= 1
        if left < 0:
            raise stop
        return write(*args)

    monkeypatch.setattr(_whole_file._File, "write", interrupted)
    stops = 0
    while True:
        left = stops
        with contextlib.suppress(stop):
            ok.save_keras(path, *training, template=path)
            break
        stops += 1
        assert path.read_bytes() == ADAM.read_bytes() and list(path.parent.iterdir()) == [path]
    assert stops > 5 and list(path.parent.iterdir()) == [path]


def test_a_folder_that_may_not_be_written_to_is_named_by_the_target():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        path = folder / "x.keras"
        path.write_bytes(ADAM.read_bytes())
        path.chmod(0o644)
        training = trained(path, by=1.0)
        folder.chmod(0o555)
        user = os.geteuid()
        if not user:
            os.seteuid(65534)  # The superuser may write everywhere.
        try:
            for target in (path, folder / "new.keras"):
                with pytest.raises(PermissionError) as caught:
                    ok.save_keras(target, *training, template=path)
                assert str(caught.value) == f"[Errno {errno.EACCES}] Permission denied: {str(target)!r}"
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
        assert path.read_bytes() == ADAM.read_bytes() and list(folder.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_is_moved(saved, monkeypatch):
    path, training = saved
    calls = []
    fsync, replace, write = os.fsync, os.replace, _whole_file._File.write

    def note(name, function):
        def noted(*args):
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            calls.append("fsync of the folder" if is_folder else name)
            return function(*args)

        return noted

    monkeypatch.setattr(os, "fsync", note("fsync", fsync))
    monkeypatch.setattr(os, "replace", note("replace", replace))
    monkeypatch.setattr(_whole_file._File, "write", note("write", write))
    ok.save_keras(path, *training, template=path)
    assert calls[-4:] == ["write", "fsync", "replace", "fsync of the folder"] and set(calls[:-3]) == {"write"}


def test_a_folder_that_cannot_be_synchronised_is_no_error(saved, monkeypatch):
    path, training = saved
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    ok.save_keras(path, *training, template=path)
    assert path.read_bytes() != ADAM.read_bytes()


# What is left behind.


def next_descriptor():
    """Return the number of the next file to be opened, which is the lowest that is free."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


@pytest.mark.parametrize("fails", [False, True])
def test_no_file_stays_open(fails, saved, tmp_path, monkeypatch):
    path, training = saved
    ok.save_keras(path, *training, template=path)
    (tmp_path / ".kadam-0123.tmp").write_bytes(b"half")  # This is opened too, and removed.
    before = next_descriptor()
    if fails:
        with pytest.raises(OSError), monkeypatch.context() as patched:
            patched.setattr(os, "replace", lambda *_: os.rmdir(path))
            ok.save_keras(path, *training, template=path)
    else:
        ok.save_keras(path, *training, template=path)
    assert next_descriptor() == before


def test_a_leftover_is_removed_by_a_save_of_another_name_and_a_file_in_use_is_not(saved, tmp_path):
    path, training = saved
    leftover, foreign = tmp_path / ".kadam-0123.tmp", tmp_path / "kadam.tmp"
    leftover.write_bytes(b"half")
    foreign.write_bytes(b"not ours")
    with _whole_file.whole_file(tmp_path / "slow") as slow:
        slow.write(b"slow")
        assert not leftover.exists()
        leftover.write_bytes(b"half")
        ok.save_keras(path, *training, template=path)
        assert len(list(tmp_path.iterdir())) == 3 and not leftover.exists()
    assert (tmp_path / "slow").read_bytes() == b"slow" and foreign.read_bytes() == b"not ours"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kadam.tmp", "slow", "x.keras"]


def test_a_file_that_another_saver_takes_for_a_leftover_is_made_again(saved, tmp_path, monkeypatch):
    """In between its creation and its lock, another saver locks and removes it: it fails to lock, or it is gone."""
    path, training = saved
    flock, seen = fcntl.flock, []

    def meanwhile(descriptor, operation):
        if operation & fcntl.LOCK_SH:
            (temporary,) = tmp_path.glob(".kadam-*.tmp")
            seen.append(temporary)
            if len(seen) < 3:
                temporary.unlink()
            if len(seen) == 1:
                raise BlockingIOError(errno.EWOULDBLOCK, "Resource temporarily unavailable")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    ok.save_keras(path, *training, template=path)
    assert len(set(seen)) == 3 and list(tmp_path.iterdir()) == [path] and path.read_bytes() != ADAM.read_bytes()


def test_a_file_is_saved_where_there_are_no_locks(saved, tmp_path, monkeypatch):
    path, training = saved
    leftover = tmp_path / ".kadam-0123.tmp"
    leftover.write_bytes(b"half")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    ok.save_keras(path, *training, template=path)  # Without locks, the file of a saver at work looks the same.
    assert sorted(tmp_path.iterdir()) == [leftover, path] and path.read_bytes() != ADAM.read_bytes()
    monkeypatch.undo()
    monkeypatch.setattr(_whole_file, "fcntl", None)  # So it is on Windows, which does not remove what is open.
    path.write_bytes(ADAM.read_bytes())
    ok.save_keras(path, *training, template=path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() != ADAM.read_bytes()


def run_savers(template, folder, mode):
    """Run the program that kills savers, and return what it says."""
    command = [sys.executable, "-W", "ignore", pathlib.Path(__file__).with_name("killed_savers.py"), template, folder]
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(ok.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*command, mode], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "name", mostly_slow([("k3j/adam.keras",), ("tfk/adam.h5",)], lambda name: name == "k3j/adam.keras")
)
def test_a_saver_that_is_killed_leaves_the_old_or_the_new_file(name, tmp_path):
    kills, old, new, leftovers = map(int, filter(str.isdigit, run_savers(FILES / name, tmp_path, "every").split()))
    assert old + new == kills >= 40 and min(old, new, leftovers) > 0


@pytest.mark.slow
def test_savers_of_one_path_do_not_tear_each_others_files(tmp_path):
    assert "90 saves: " in run_savers(ADAM, tmp_path, "together")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_saver_that_is_killed_at_any_time_leaves_the_old_or_the_new_file(name, tmp_path):
    assert "500 kills: " in run_savers(FILES / name, tmp_path, "500")
