"""Our reader of HDF5 against h5py on every recorded file, and against pyfive on damaged ones; and what it refuses."""

import io
import pathlib
import random
import re
import shutil
import zipfile
from collections.abc import Iterator

import h5py
import jax.numpy as jnp
import numpy as np
import pyfive
import pytest

import optax_kadam as ok
from optax_kadam.keras_files._source import Source
from optax_kadam.keras_files.containers._hdf5 import read_hdf5

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
GRAMMAR = re.compile(r".* Received: .*\. .*", re.DOTALL)


def recorded() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each recorded HDF5 file, inside archives too."""
    for path in sorted([*GOLDEN.glob("files/**/*.h5"), *GOLDEN.glob("training/**/*.h5")]):
        yield str(path.relative_to(GOLDEN)), path.read_bytes()
    for path in sorted([*GOLDEN.glob("files/**/*.keras"), *GOLDEN.glob("training/**/*.keras")]):
        with zipfile.ZipFile(path) as archive:
            if "model.weights.h5" in archive.namelist():
                yield str(path.relative_to(GOLDEN)), archive.read("model.weights.h5")


def ours(content):
    return read_hdf5(Source(io.BytesIO(content), "F", 0, len(content)))


def all_of(group, path=""):
    """Yield the path of each group and each array in a group that our reader gave, with what it holds."""
    yield path, group.attrs, None
    for name, array in group.arrays.items():
        yield f"{path}/{name}", None, array
    for name, inner in group.groups.items():
        yield from all_of(inner, f"{path}/{name}")


def decoded(value):
    """Return the value of an attribute as text or a list of texts."""
    if isinstance(value, np.ndarray):
        return [decoded(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def same_as_h5py(content):
    """Assert that our reader gives what h5py gives, and return the number of entries."""
    found = {path: (attributes, array) for path, attributes, array in all_of(ours(content))}
    with h5py.File(io.BytesIO(content)) as file:
        wanted = {"": file}
        file.visititems(lambda name, item: wanted.update({f"/{name}": item}))
        assert set(found) == set(wanted)
        for path, (attributes, array) in found.items():
            item = wanted[path]
            if array is None:
                assert attributes == {name: decoded(value) for name, value in item.attrs.items()}
                continue
            given, numbers = item[()], array.read()
            assert array.shape == item.shape and array.dtype.itemsize == item.dtype.itemsize
            assert array.dtype == item.dtype or (array.dtype, item.dtype) == (jnp.bfloat16, np.dtype("V2"))
            assert numbers.dtype == array.dtype and numbers.shape == array.shape
            assert numbers.tobytes() == given.tobytes()
            assert array.offset == (item.id.get_offset() or 0)
    return len(found)


def test_every_recorded_file_reads_as_h5py_reads_it():
    assert sum(same_as_h5py(content) for _, content in recorded()) > 1000


def made():
    """Return a file of every type and shape that Keras may write."""
    memory, rng = io.BytesIO(), np.random.default_rng(0)
    with h5py.File(memory, "w") as file:
        for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"):
            numbers = rng.integers(0, 2, (2, 3)) if kind == "?" else rng.integers(0, 100, (2, 3))
            file[f"types/{kind}"] = numbers.astype(kind)
        opaque = jnp.arange(3, dtype=jnp.bfloat16)
        file["types/bfloat16"] = np.asarray(opaque).view("V2")
        file["types/said"] = np.asarray(opaque).view("V2")
        file["types/said"].attrs["dtype"] = "bfloat16"
        file["types/float32"] = np.ones(2, "f4")
        file["types/float32"].attrs["dtype"] = "float32"
        file["shapes/empty"], file["shapes/none"] = np.zeros((0, 3), "f4"), np.zeros((2, 0), "i8")
        file["shapes/scalar"], file["shapes/rank"] = np.float32(3), np.zeros((1, 2, 1, 2, 1, 2), "u1")
        for index in range(300):  # The B-tree of these has two levels.
            file[f"many/{index}"] = np.full(index % 5, index, "i4")
        attributes = file.create_group("attributes").attrs
        attributes["text"], attributes["bytes"], attributes["none"] = "ä text", b"bytes", ""
        attributes["fixed"] = np.bytes_("fixed")
        attributes.create("fixed_list", np.array([b"a", b"bcd"]))
        attributes.create("list", ["ä", "", "b" * 1000], dtype=h5py.string_dtype())
        attributes.create("ascii", [b"x", b"y"], dtype=h5py.string_dtype("ascii"))
        attributes["empty"] = []
        attributes["long"] = "long" * 15_000
        for index in range(20):
            attributes[f"text{index}"] = "t" * index
        file["names/größe"], file["names/层"] = np.ones(2, "f4"), np.zeros(3, "f4")
        file["names/größe2/x"] = np.ones(1, "f4")
        of_group = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        of_group.set_link_creation_order(h5py.h5p.CRT_ORDER_TRACKED)  # Such a group lists its links in its header too.
        h5py.h5g.create(file.id, b"tracked", gcpl=of_group)
        file["tracked/b"], file["tracked/a"] = np.ones(2, "f4"), np.zeros(3, "f4")
    return memory.getvalue()


def test_every_type_that_keras_writes_reads_as_h5py_reads_it():
    content = made()
    assert same_as_h5py(content) > 300
    root = ours(content)
    assert root.at("types").arrays["said"].dtype == root.at("types").arrays["bfloat16"].dtype == jnp.bfloat16
    assert root.at("attributes").attrs["empty"] == [] and root.at("attributes").attrs["none"] == ""
    assert root.at("attributes").attrs["text"] == "ä text"


def mutant(rng, contents):
    """Return a recorded file with one bit or one byte changed, which does not stand among zeros that nobody reads."""
    while True:
        changed = bytearray(rng.choice(contents))
        at = rng.randrange(len(changed))
        if any(changed[max(at - 7, 0) : at + 8]):
            changed[at] = changed[at] ^ 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(256)
            return bytes(changed)


def arrays_of_pyfive(content):
    """Return the bytes of each array that pyfive reads, by its path, or None if it fails."""
    found = {}

    def walk(group, path):
        for name in group:
            if isinstance(item := group[name], pyfive.Group):
                walk(item, f"{path}/{name}")
            else:
                array = np.asarray(item[()])
                found[f"{path}/{name}"] = array.shape, array.dtype.itemsize, array.tobytes()

    try:
        walk(pyfive.File(io.BytesIO(content)), "")
    except Exception:  # Of a damaged file it raises whatever meets it.
        return None
    return found


def arrays_of_ours(content):
    """Return the bytes of each array that our reader reads, by its path, or None if it refuses the file."""
    try:
        arrays = {path: array for path, _, array in all_of(ours(content)) if array is not None}
        return {path: (array.shape, array.dtype.itemsize, array.read().tobytes()) for path, array in arrays.items()}
    except ValueError as error:
        assert GRAMMAR.fullmatch(str(error)), error
        return None


def both_agree(content):
    """Assert that our reader and pyfive give the same arrays if both give any; return which of them gave some."""
    found = arrays_of_ours(content)
    other = arrays_of_pyfive(content) if found is not None else None
    assert found is None or other is None or found == other
    return found is not None, other is not None


@pytest.mark.filterwarnings("ignore")  # pyfive warns of much in a damaged file.
def test_a_mutant_that_pyfive_reads_too_gives_the_same_arrays():
    rng = random.Random(0)
    contents = [content for _, content in recorded() if len(content) < 35_000]
    outcomes = [both_agree(mutant(rng, contents)) for _ in range(300)]
    assert sum(mine for mine, _ in outcomes) > 50 and sum(theirs for _, theirs in outcomes) > 50


def copy(group, into, without, path=""):
    """Copy what is in a group, except for what stands at `without`."""
    into.attrs.update(group.attrs)
    for name, item in group.items():
        if f"{path}/{name}" != without:
            if isinstance(item, h5py.Group):
                copy(item, into.create_group(name), without, f"{path}/{name}")
            else:
                into[name] = item[()]


MISSING = {
    "/optimizer/vars/1": "Variables must be numbered from 0.",
    "/layers/dense/vars/1": "must have the shapes of the model's trainable variables",
    "/optimizer/vars/15": "An optimizer's list must be that of an Adam.",
}


@pytest.mark.parametrize("missing", MISSING)
def test_a_file_without_one_of_its_arrays_is_refused_by_name(missing, tmp_path):
    with h5py.File(GOLDEN / "files/k3j/adam.weights.h5") as old, h5py.File(tmp_path / "x.weights.h5", "w") as new:
        copy(old, new, missing)
    with pytest.raises(ValueError, match=MISSING[missing]):
        ok.load_keras(tmp_path / "x.weights.h5")


EDITS = {
    "Each name in a group must lead to a member.": lambda file: file["optimizer/vars"].pop("1"),
    "must belong to a layer or to the optimizer": lambda file: file.create_dataset("x", data=np.zeros(2)),
}


@pytest.mark.parametrize("message", EDITS)
def test_a_file_that_was_edited_is_refused_by_name(message, tmp_path):
    shutil.copy(GOLDEN / "files/k3j/adam.weights.h5", tmp_path)
    with h5py.File(tmp_path / "adam.weights.h5", "r+") as file:
        EDITS[message](file)
    with pytest.raises(ValueError, match=message):
        ok.load_keras(tmp_path / "adam.weights.h5")
