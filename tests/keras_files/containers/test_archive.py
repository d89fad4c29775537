"""Archives and shards: what Keras and usual programs write is read, and each attack is refused by name."""

import json
import os
import shutil
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

import optax_kadam as ok
from optax_kadam.keras_files._json import parse_json
from optax_kadam.keras_files._named_arrays import Group
from optax_kadam.keras_files._source import Files
from optax_kadam.keras_files.containers._shards import read_shards
from optax_kadam.keras_files.containers._zip import ZipReader

from . import attacks_zip

FILES = attacks_zip.FILES


def same(path, other=FILES / "adam.keras"):
    """Whether two files give the same training."""
    found, wanted = ok.load_keras(path), ok.load_keras(other)
    pairs = [(found.variables, wanted.variables), (found.mu, wanted.mu), (found.nu, wanted.nu)]
    assert (found.config, found.iterations) == (wanted.config, wanted.iterations)
    return all(
        list(some) == list(others) and all(map(np.array_equal, some.values(), others.values()))
        for some, others in pairs
    )


@pytest.mark.parametrize("defect", attacks_zip.SAYS)
def test_attacks_are_refused_by_name(defect, tmp_path):
    path = tmp_path / "x.keras"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(attacks_zip, f"make_{defect}")(path)
    with pytest.raises(ValueError, match=attacks_zip.SAYS[defect]) as caught:
        ok.load_keras(path)
    assert str(path) in str(caught.value) and " Received: " in str(caught.value)


def read_zip(path):
    with Files() as files:
        reader = ZipReader(files.open(path), files)
        return {name: reader.read(name).read() for name in reader.names()}


def test_every_flipped_bit_of_a_description_gives_the_same_members_or_a_refusal(tmp_path):
    """Only these are not read: the versions of the format, and the attributes that an operating system gives files."""
    path, content = tmp_path / "x.keras", attacks_zip.packed(dict.fromkeys(("a", "b"), b"x"))
    unread = {32 * header + place for header in (0, 1) for place in (4, 5)}
    unread |= {64 + 47 * entry + place for entry in (0, 1) for place in (4, 5, 6, 7, 36, 37, 38, 39, 40, 41)}
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        attacks_zip.write(path, flipped)
        if bit // 8 in unread:
            assert read_zip(path) == {"a": b"x", "b": b"x"}
        else:
            with pytest.raises(ValueError, match=" Received: "):
                read_zip(path)


def test_every_cut_is_refused(tmp_path):
    content = attacks_zip.packed(dict.fromkeys(("a", "b"), b"x"))
    for size in range(len(content)):
        attacks_zip.write(tmp_path / "x.keras", content[:size])
        with pytest.raises(ValueError, match=" Received: "):
            read_zip(tmp_path / "x.keras")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_of_one_file_and_of_shards_are_read(compression, tmp_path):
    for contents in (attacks_zip.members(), attacks_zip.sharded()):
        attacks_zip.write(tmp_path / "x.keras", attacks_zip.packed(contents, compression))
        assert same(tmp_path / "x.keras")


@pytest.mark.parametrize("contents", [attacks_zip.members(), attacks_zip.sharded()])
def test_an_unpacked_archive_is_read_like_the_archive(contents, tmp_path):
    attacks_zip.write(tmp_path / "x.keras", attacks_zip.packed(contents))
    with zipfile.ZipFile(tmp_path / "x.keras") as archive:
        archive.extractall(tmp_path / "x")
    assert same(tmp_path / "x")


def test_an_archive_that_usual_programs_packed_again_is_read(tmp_path):
    attacks_zip.write(tmp_path / "x.keras", attacks_zip.packed(attacks_zip.members()))
    (tmp_path / "x/assets/größe").mkdir(parents=True)
    shutil.unpack_archive(tmp_path / "x.keras", tmp_path / "x", "zip")
    shutil.make_archive(str(tmp_path / "again"), "zip", tmp_path / "x")  # It holds the folders too.
    assert same(tmp_path / "again.zip")
    data, times = attacks_zip.packed(attacks_zip.members()), b"UT\5\0\3abcd"  # As Info-ZIP keeps times.
    attacks_zip.change(data, "model.weights.h5", extra=len(times))
    attacks_zip.insert(data, len(data) - 22, times)
    attacks_zip.insert(data, data.index(b"model.weights.h5") + 16, times)
    attacks_zip.write(tmp_path / "y.keras", data)
    assert same(tmp_path / "y.keras")


@pytest.mark.parametrize("flags", [2, 4, 6])
def test_how_well_a_member_was_compressed_may_be_said(flags, tmp_path):
    """Info-ZIP notes in two flags whether it was told to be fast, or to compress as well as it can."""
    data = attacks_zip.packed(attacks_zip.members(), zipfile.ZIP_DEFLATED)
    attacks_zip.write(tmp_path / "x.keras", attacks_zip.change(data, "config.json", flags=flags))
    assert same(tmp_path / "x.keras")


@pytest.mark.parametrize("limit", [10, 1 << 31])
def test_a_large_archive_is_read(limit, tmp_path, monkeypatch):
    """Python's `zipfile` writes sizes of 2 GiB and more as ZIP64; it is told to do so for small ones."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        for name, content in attacks_zip.members().items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    assert (b"PK\6\7" in (tmp_path / "x.keras").read_bytes()) == (limit == 10)
    assert same(tmp_path / "x.keras")


def test_a_large_archive_of_another_program_is_read(tmp_path):
    attacks_zip.write(tmp_path / "x.keras", attacks_zip.widen(attacks_zip.packed(attacks_zip.members())))
    assert same(tmp_path / "x.keras")


def test_a_large_archive_of_an_older_python_is_read(tmp_path):
    """Before 3.11.4, `zipfile` wrote small sizes in both places if it was told that they might be large."""
    data = attacks_zip.packed(attacks_zip.members())
    size = len(attacks_zip.members()["model.weights.h5"])
    extra = struct.pack("<HHQQ", 1, 16, size, size)
    attacks_zip.change(data, "model.weights.h5", in_entry=False, extra=len(extra))
    attacks_zip.insert(data, data.index(b"model.weights.h5") + 16, extra)
    attacks_zip.write(tmp_path / "x.keras", data)
    assert same(tmp_path / "x.keras")


def test_many_members_take_linear_time(tmp_path):
    more = {f"assets/{i}": b"" for i in range(20_000)}
    attacks_zip.write(tmp_path / "x.keras", attacks_zip.packed({**attacks_zip.members(), **more}))
    assert ok.load_keras(tmp_path / "x.keras").iterations == 20  # Quadratic loops took 20 to 40 s here.


BULKY = {
    "members": lambda members: {**members, **{f"assets/{i}": b"" for i in range(10_000)}},
    "lists": lambda members: {**members, "config.json": b'{"a": [' + b"[]," * 340_000 + b"0]}"},
    "objects": lambda members: {**members, "config.json": b'{"a": [' + b'{"":0},' * 145_000 + b"0]}"},
    "wide text": lambda members: {**members, "config.json": ('{"a": "\U0001f600' + "a" * 1_000_000 + '"}').encode()},
    "inflated": lambda members: {**members, "model.weights.h5": members["model.weights.h5"] + bytes(7 << 20)},
}


@pytest.mark.parametrize("bulk", BULKY)
def test_memory_is_bounded(bulk, tmp_path):
    data = attacks_zip.packed(BULKY[bulk](attacks_zip.members()), zipfile.ZIP_DEFLATED)
    attacks_zip.write(tmp_path / "x.keras", data)
    tracemalloc.start()
    try:
        ok.load_keras(tmp_path / "x.keras")
    except ValueError as error:
        assert bulk == "inflated" and "must be whole" in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2 * len(data) + 50e6


def test_a_folder_with_a_missing_file_is_refused_by_name(tmp_path):
    for name, content in attacks_zip.members().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model.weights.h5").unlink()
    with pytest.raises(ValueError, match="must hold 'model.weights.h5'. Received: .* 2 other files: 'config.json', '"):
        ok.load_keras(tmp_path)
    os.mkfifo(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="must hold 'model.weights.h5'"):
        ok.load_keras(tmp_path)
    (tmp_path / "metadata.json").unlink()
    (tmp_path / "metadata.json").mkdir()
    with pytest.raises(ValueError, match="must hold 'metadata.json'"):
        ok.load_keras(tmp_path)


def test_a_folder_whose_shard_is_elsewhere_is_refused_by_name(tmp_path):
    for name, content in attacks_zip.sharded(**{"/optimizer/vars": "../adam_00000.weights.h5"}).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="must be a file beside its index. Received: .* lists '../adam_00000"):
        ok.load_keras(tmp_path)


def test_shards_beside_their_index_are_refused_by_name(tmp_path):
    for path in FILES.glob("adam*weights*"):
        shutil.copy(path, tmp_path)
    index = tmp_path / "adam.weights.json"
    good = json.loads(index.read_text())

    def refused(message, **weight_map):
        index.write_text(json.dumps({"weight_map": good["weight_map"] | weight_map}))
        with pytest.raises(ValueError, match=message):
            ok.load_keras(index)

    refused("must be a file beside its index. Received: .* lists '../x'", **{"/optimizer/vars": "../x"})
    refused("without 'y.h5'", **{"/optimizer/vars": "y.h5"})
    refused("must hold what its index lists", **{"/optimizer/vars": "adam_00001.weights.h5"})
    index.write_text("{}")
    with pytest.raises(ValueError, match="must hold a `weight_map`"):
        ok.load_keras(index)
    index.write_text(" " * (2 << 20))
    with pytest.raises(ValueError, match="may have 1048576 bytes"):
        ok.load_keras(index)


def test_each_shard_is_read_once(tmp_path):
    def group(*names, arrays=(), **attrs):
        return Group(attrs, dict.fromkeys(arrays), dict(names))

    shards = {
        "0": group(("b", group(arrays=["x"], name="B")), ("a", group(arrays=["x"]))),
        "1": group(("b", group(arrays=["y"], name="B")), ("0", group(arrays=["x"]))),
    }
    read = []
    root = read_shards(
        {"weight_map": {"/a": "0", "/b": ["1", "0"], "/0": "1"}}, "x", lambda name: read.append(name) or shards[name]
    )
    assert read == ["0", "1"]
    assert sorted(root.groups) == ["0", "a", "b"]
    assert list(root.groups["b"].arrays) == ["x", "y"] and root.groups["b"].attrs == {"name": "B"}


def test_a_text_that_is_too_long_is_refused_by_name():
    with pytest.raises(ValueError, match="may have 3 bytes beside weights of this size. Received: 'x', which has 4"):
        parse_json(b"[  ]", "x", 3)
