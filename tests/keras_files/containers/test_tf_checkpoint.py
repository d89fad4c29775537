"""The reader of TensorFlow's checkpoints: exact on samples of TensorFlow's, and never wrong on a damaged file."""

import math
import os
import pathlib
import random
import re
import shutil
import sys
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

import optax_kadam as ok
from optax_kadam.keras_files._named_arrays import Node
from optax_kadam.keras_files._source import Files
from optax_kadam.keras_files.containers import _tf_checkpoint
from optax_kadam.keras_files.containers._leveldb import crc32c, unmask
from optax_kadam.keras_files.containers._tf_checkpoint import read_checkpoint

from . import attacks_checkpoint
from .attacks_checkpoint import DATA, FILES, NUMBERS, entry, header, key_of, make_training, masked, message, node, write

SAMPLES = sorted(str(index.relative_to(FILES).with_suffix("")) for index in FILES.rglob("*.index"))
SMALL = "k3t/adam_export/variables/variables"
ATTACKS = {name.removeprefix("make_"): make for name, make in vars(attacks_checkpoint).items() if name[:5] == "make_"}


@pytest.fixture
def files():
    with Files() as files:
        yield files


def read_all(prefix):
    with Files() as files:
        checkpoint = read_checkpoint(pathlib.Path(prefix), files)
        arrays = {key: stored.read() for key, stored in checkpoint.tensors.items()}
    assert all(arrays[key].shape == stored.shape for key, stored in checkpoint.tensors.items())
    return {key: (a.shape, a.dtype, a.tobytes()) for key, a in arrays.items()}, checkpoint.nodes


# The checksum.


def test_a_checksum_is_that_of_rfc_3720_for_bytes_and_for_arrays_of_every_kind():
    assert crc32c(b"123456789") == crc32c(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283
    assert crc32c(b"56789", crc32c(b"1234")) == 0xE3069283
    for array in (np.arange(3000).astype(jnp.bfloat16).reshape(3, 1000), np.full((), 1.5), np.zeros((0, 3))):
        assert crc32c(array) == crc32c(array.tobytes())


def test_the_checksum_of_an_array_does_not_copy_it():
    array = np.zeros((1000, 1000), np.float32)
    crc32c(array)
    tracemalloc.start()
    crc32c(array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000


def test_a_masked_checksum_is_unmasked():
    for data in (b"", b"a", b"foo"):
        assert unmask(int.from_bytes(masked(data), "little")) == crc32c(data)


def test_a_missing_google_crc32c_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    match = (
        r"google-crc32c must be installed to read a checkpoint. Received: no module google_crc32c. "
        r"Install it: pip install google-crc32c"
    )
    with pytest.raises(ImportError, match=match):
        ok.load_keras(FILES / SMALL)


# Whole checkpoints.


def test_samples_are_there():
    assert len(SAMPLES) == 18


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_recorded_checkpoint_gives_its_arrays(sample, files):
    checkpoint = read_checkpoint(FILES / sample, files)
    found = {node.full_name: checkpoint.tensors[node.key] for node in checkpoint.nodes if node.key}
    generation, folder = pathlib.Path(sample).parts[:2]
    expected = np.load(FILES / generation / f"{folder.rsplit('_', 1)[0]}.expected.npz")
    for kind, names in (("weight", "weight_names"), ("optvar", "optimizer_variable_names")):
        if kind == "optvar" and folder.endswith("_export"):
            continue  # It holds no optimizer.
        for i, name in enumerate(expected[names]):
            stored, array = found[str(name).removesuffix(":0")], expected[f"{kind}/{i}"]
            assert (stored.shape, stored.dtype) == (array.shape, array.dtype)
            np.testing.assert_array_equal(stored.read(), array, strict=True)


def test_slots_of_a_legacy_optimizer_are_found(files):
    checkpoint = read_checkpoint(FILES / "legacy/amsgrad_ckpt/ck", files)
    nodes = checkpoint.nodes
    (optimizer,) = (node for node in nodes if node.slots)
    assert nodes[nodes[0].children["optimizer"]] is optimizer
    expected = np.load(FILES / "legacy" / "amsgrad.expected.npz")
    names = [str(name).removesuffix(":0") for name in expected["trainable_names"]]
    assert len(optimizer.slots) == 3 * len(names)
    for variable, slot, array in optimizer.slots:
        stored = checkpoint.tensors[nodes[array].key]
        np.testing.assert_array_equal(stored.read(), expected[f"{slot}/{names.index(nodes[variable].full_name)}"])


@pytest.mark.parametrize("dimensions", [(), (0, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_dtype_is_read(tmp_path, files, dtype, dimensions):
    array = np.arange(math.prod(dimensions)).reshape(dimensions).astype(jnp.dtype(dtype))
    nodes = [node([("a", 1)]), node(name="a", path="a")]
    stored = read_checkpoint(write(tmp_path / "ck", {key_of("a"): array}, nodes), files).tensors[key_of("a")]
    assert (stored.shape, stored.dtype) == (array.shape, array.dtype)
    assert stored.read().dtype == array.dtype
    np.testing.assert_array_equal(stored.read(), array, strict=True)


def test_strings_tables_and_iterators_are_left_out(tmp_path, files):
    """TensorFlow 2.21 saves a vocabulary as `table-keys` and `table-values`, and an iterator as `ITERATOR_STATE`."""
    nodes = [
        node([("s", 1), ("t", 2), ("i", 3), ("a.b/c", 4)]),
        node(name="s", path="s"),
        node(name="", path="t", attribute="table"),
        node(name="", path="i", attribute="ITERATOR"),
        node(name="a", path="a..b.Sc"),
    ]
    keys = [key_of("s"), "i/.ATTRIBUTES/ITERATOR_STATE", "t/.ATTRIBUTES/table-keys", "t/.ATTRIBUTES/table-values"]
    pairs = [(key, entry(b"ab", 7, 1, offset=2 * i)) for i, key in enumerate(keys)]
    prefix = write(tmp_path / "ck", {key_of("a..b.Sc"): np.ones(3)}, nodes, pairs, data=b"ab" * 4)
    assert list(read_checkpoint(prefix, files).tensors) == [key_of("a..b.Sc")]


def test_several_data_files_are_read(tmp_path, files):
    arrays = [np.full(3, i, np.float32) for i in range(3)]
    pairs = [(key_of(f"a{i}"), entry(a.tobytes(), 1, 3, file=i)) for i, a in enumerate(arrays)]
    pairs[0] = (key_of("a0"), entry(arrays[0].tobytes(), 1, 3, offset=100))
    nodes = [node((f"a{i}", 1 + i) for i in range(3)), *(node(name=f"a{i}", path=f"a{i}") for i in range(3))]
    write(tmp_path / "ck", None, nodes, pairs, data=bytes(100) + arrays[0].tobytes(), head=header(files=3))
    (tmp_path / f"ck{DATA}").rename(tmp_path / "ck.data-00000-of-00003")
    for i in (1, 2):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / f"elsewhere/{i}").write_bytes(arrays[i].tobytes())
        (tmp_path / f"ck.data-0000{i}-of-00003").symlink_to(tmp_path / f"elsewhere/{i}")
    tensors = read_checkpoint(tmp_path / "ck", files).tensors
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(tensors[key_of(f"a{i}")].read(), array)


def test_the_graph_of_objects_is_read(tmp_path, files):
    path = "a/.OPTIMIZER_SLOT/me/m"
    nodes = [
        node([("a", 1), ("me", 0)], slots=[(1, "m", 2)]),
        node(name="dense/kernel", path="a") + message((5, b"\x08\x01")),
        node(name="dense/kernel/m", path=path),
    ]
    prefix = write(tmp_path / "ck", {key_of("a"): np.ones(1), key_of(path): np.ones(1)}, nodes)
    assert read_checkpoint(prefix, files).nodes == [
        Node({"a": 1, "me": 0}, None, None, [(1, "m", 2)]),
        Node({}, "dense/kernel", key_of("a"), []),
        Node({}, "dense/kernel/m", key_of(path), []),
    ]


# Attacks.

LOADED = {"training", "cycle", "deep_graph", "one_name", "many_slots"}
SHAPES = r"A tensor must have the shape of an array. Received: '.*ck.index', one of shape "
LISTED = r"A data file must hold what its index lists. Received: '.*ck.index', which lists bytes "
GRAPH = r"Received: '.*ck.data-00000-of-00001', "
NAMED = r"`checkpoint` must name a checkpoint in its folder. Received: '{}' in '.*'. Hand over the path of the check"
TRUST = "The file is damaged, or no Keras wrote it: do not trust it."
METADATA = "Received: '.*keras_metadata.pb'"
MESSAGES = {
    "absolute_escape": NAMED.format(".*/ck"),
    "big_endian": r"A checkpoint must be little-endian. Received: '.*ck.index', which is big-endian. Restore it in",
    "compressed": r"A block must not be compressed. Received: '.*ck.index', compressed with Snappy. Save the",
    "compressed_otherwise": r"A block must not be compressed. Received: .*, compressed in an unknown way, 2. Save the",
    "cut_graph": rf"A part must lie within its whole. {GRAPH}bytes 2 to 7 of a message of 2. The file is damaged or",
    "cut_index": r"An index must end in the magic number of a table. Received: '.*ck.index', which ends in '",
    "descending_keys": r"The keys of an index must ascend. Received: '.*ck.index', b'a' after b'b'. The file is",
    "empty_graph": rf"A graph must list objects. {GRAPH}none. The file is damaged",
    "empty_nodes": rf"A graph must have no more objects than its tensors need. {GRAPH}more than 30080 objects, 8 edges "
    rf"for 4 tensors in 2000410 bytes. {TRUST}",
    "endless_checkpoint": NAMED.format(""),
    "escape": NAMED.format(r"\.\./ck"),
    "excluded_version": r"must be of version 1 of its format. Received: '.*', which excludes that version. Save it",
    "filter": rf"An index must list its blocks alone. Received: '.*ck.index', which ends in [0-9a-f]*. {TRUST}",
    "flipped_index": r"A block must match its checksum. Received: '.*ck.index', bytes 0 to \d+. The file is damaged",
    "flipped_magic": r"An index must end in the magic number of a table. Received: '.*ck.index', which ends in '57fb",
    "folder_for_checkpoint": NAMED.format(""),
    "gap_in_list": "A list must be numbered from 0. Received: 1 numbers without 0.",
    "graph_of_numbers": rf"The graph of the objects must be a string. {GRAPH}dtype 1 of shape \(0,\). The file",
    "groups": rf"A message must be of protobuf's wire types. {GRAPH}type 3 of field 1. The file is damaged",
    "huge_shape": rf"{SHAPES}\(0, 4611686018427387904\). The file is damaged",
    "huge_tensor": rf"{LISTED}0 to 1099511627776 of the \d+ of '.*ck.data-00000-of-00001'. The data file was cut off",
    "huge_varint": rf"A number must end, and have at most 64 bits. {GRAPH}one at byte 1 of 13. The file is damaged",
    "long_chain": rf"A graph must have no more objects than its tensors need. .*{TRUST}",
    "long_line": NAMED.format("a{200}"),
    "long_name": NAMED.format("a{200}"),
    "long_slot_name": r"A slot must be named after a variable of the model. Received: '(m/){100}'. Save the model with",
    "lost_node": rf"An object must be reached from another. {GRAPH}object 9, which is not. {TRUST}",
    "lost_optimizer": r"A tensor must belong to the model or to its Adam. Received: 'optimizer/_momentumr/0/.*', which "
    "belongs to neither. The checkpoint is damaged, or of another optimizer: only Adam can be carried over.",
    "many_dimensions": SHAPES,
    "many_edges": rf"A graph must have no more objects than its tensors need. .* 20000\d edges .*{TRUST}",
    "many_entries": rf"The keys of an index must be names. Received: '.*ck.index', a key of \d bytes, .*{TRUST}",
    "many_restarts": r"A part must lie within its whole. Received: '.*ck.index', 1000 restarts in 7 bytes. The file",
    "metadata_cut": rf"A part must lie within its whole. {METADATA}, bytes \d+ to \d+ of a message of \d+. The file is",
    "metadata_deep": rf"A configuration must be JSON as Keras writes it. {METADATA}, in which this is wrong: ",
    "metadata_flipped": r"A SavedModel with an optimizer must hold its configuration. "
    rf"{METADATA}, without a `training_config`. Hand over its configuration: `load_keras\(path, config=",
    "metadata_long": rf"A configuration may have 4194304 bytes .* {METADATA}, which has 5000010. {TRUST}",
    "metadata_no_json": rf"A configuration must be JSON as Keras writes it. {METADATA}, in which this is wrong: ",
    "metadata_other_field": rf"A SavedModel's metadata must list objects. {METADATA}, field 2 in it. The file is",
    "metadata_wide": rf"at most 131072 objects and lists. {METADATA}, one with 1000003. {TRUST}",
    "metadata_without_optimizer": rf"A `training_config` must hold an `optimizer_config`. {METADATA}, {{'loss.* The",
    "metadata_without_root": rf"A SavedModel's metadata must describe the model. {METADATA}, no object named 'root'.",
    "missing_shard": r"A checkpoint must have all its files. Received: '.*ck.index', and no file",
    "missing_tensor": r"An object of the graph must have its own tensor. Received: '.*', none for 'model/w/.ATTRIBUTES",
    "nameless_variable": rf"A variable must have a name. {GRAPH}none for 'model/w/.ATTRIBUTES/VARIABLE_VALUE'. The",
    "negative_child": rf"An object must be in the graph. {GRAPH}object -1 of 9. The file is damaged",
    "negative_file": r"A tensor must stand in a data file. Received: '.*ck.index', one in file -1 of 1. The file is",
    "negative_offset": rf"{LISTED}-12 to 0 of the \d+ of",
    "negative_shape": rf"{SHAPES}\(-3,\). The file is damaged",
    "negative_size": rf"{LISTED}0 to -12 of the \d+ of",
    "no_graph": r"A checkpoint must hold the graph of its objects. Received: '.*', which holds names alone, as a check",
    "no_shards": r"An index must begin with its header. Received: '.*ck.index', num_shards=0. The file is damaged",
    "other_attribute": r"An object of the graph must have its own tensor. Received: '.*', none for",
    "other_graph": rf"A graph must list objects. {GRAPH}field 2 in it. {TRUST}",
    "other_version": r"must be of version 1 of its format. Received: '.*', which asks for version 2. Save it with",
    "outside_child": rf"An object must be in the graph. {GRAPH}object 99 of 9. The file is damaged",
    "outside_slot": rf"An object must be in the graph. {GRAPH}object 99 of 9. The file is damaged",
    "overlap": rf"Each byte of a file must belong to one thing in it. {GRAPH}bytes 0 to 12, which belong to two",
    "padded_footer": rf"An index must list its blocks alone. Received: '.*ck.index', which ends in [0-9a-f]*. {TRUST}",
    "parent_escape": NAMED.format(r"\.\."),
    "repeated_child": rf"An object must have one child of a name. {GRAPH}two named 'w'. {TRUST}",
    "shared_beginnings": rf"The keys of an index must be names. Received: '.*ck.index', a key of \d+ bytes, .*{TRUST}",
    "shared_key": rf"The key of a tensor must be the path to its object. {GRAPH}'w/.ATTRIBUTES/VARIABLE_VALUE' for obj",
    "shared_node": r"A tensor must be one variable or one slot. Received: \d+ tensors for \d+ of them. The checkpoint",
    "slice": r"A variable must be stored in one piece. Received: '.*ck.index', which holds slices of b'w'. Restore it",
    "slices": r"A variable must be stored in one piece. Received: '.*ck.index', which holds slices of 'model/w/.ATTRIB",
    "sparse_data": r"A file must have been written. Received: '.*00002', 0 of whose 1099511627776 bytes were, and the",
    "undecodable_child": rf"A text must be UTF-8. {GRAPH}b'\\xff'. The file is damaged",
    "unknown_dtype": r"A variable must be of one of the dtypes bfloat16, .*, number 8 in `types.proto` for",
    "unknown_rank": rf"{SHAPES}\(\). The file is damaged",
    "unnamed_tensor": r"A tensor must belong to an object of the graph. Received: '.*ck.index', one named b'other'.",
    "unnumbered_list": "A list must have numbers for names. Received: 'x'.",
    "wrong_checksum": rf"A tensor must match its checksum. {GRAPH}bytes 0 to 12. The file is damaged",
    "wrong_graph_length": rf"The graph of the objects must match its checksum. {GRAPH}bytes 0 to 6. The file is",
    "wrong_path": rf"The key of a tensor must be the path to its object. {GRAPH}'model/w/.ATTRIBUTES/VARIABLE_VALUE'",
    "wrong_separator": r"A block must hold keys up to its separator. Received: '.*ck.index', b'b' before b'a'. The",
    "wrong_size": r"A tensor must fill its shape. Received: '.*ck.index', 12 bytes for \(4,\) of float32. The file is",
    "wrong_slot_path": rf"The key of a tensor must be the path to its object. {GRAPH}'model/w/.OPTIMIZER_SLOT/optim",
}


def test_every_attack_has_its_message():
    assert set(ATTACKS) == LOADED | set(MESSAGES)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_within_bounds(tmp_path, attack):
    """The bound is the memory of twice the files and 50 MB."""
    path = ATTACKS[attack](tmp_path)
    size = sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("*") if file.is_file())

    def load():
        if attack in LOADED:
            assert ok.load_keras(path).iterations == 5
            return
        with pytest.raises(ValueError, match=MESSAGES[attack]) as caught:
            ok.load_keras(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600

    tracemalloc.start()
    load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * size + 50e6


def test_a_missing_index_is_named(tmp_path, files):
    match = "A checkpoint must have an index. Received: '.*ck', and no file 'ck.index'. Hand over the path"
    with pytest.raises(FileNotFoundError, match=match):
        read_checkpoint(tmp_path / "ck", files)


def test_an_error_of_ours_surfaces_as_what_it_is(tmp_path, monkeypatch):
    prefix = make_training(tmp_path)

    def fail(*_):
        raise KeyError("ours")

    for name in ("read_table", "read_graph", "_read", "_read_string"):
        with monkeypatch.context() as patch:
            patch.setattr(_tf_checkpoint, name, fail)
            with pytest.raises(KeyError, match="ours"):
                ok.load_keras(prefix)


def test_a_lack_of_memory_is_told(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("optax_kadam.keras_files._source.aligned_empty", fail)
    match = r"An array must fit into the memory of this machine. Received: '.*', one of 12 bytes. Load it on a machine"
    with pytest.raises(ValueError, match=match):
        ok.load_keras(make_training(tmp_path))


def test_a_large_file_with_some_holes_is_read(tmp_path, files):
    """Moments that are still zero may be holes."""
    path = tmp_path / "holes"
    with open(path, "wb") as file:
        file.write(b"a" * (4 << 20))
        file.truncate(400 << 20)
    assert files.open(path).size == 400 << 20


def test_a_file_that_is_nearly_all_holes_is_refused_wherever_the_rest_is(tmp_path, files):
    path, size = tmp_path / "holes", 1 << 36
    with open(path, "wb") as file:
        for place in (0, size // 2, size - 4096):
            file.seek(place)
            file.write(b"a" * 4096)
    with pytest.raises(ValueError, match=f"A file must have been written. Received: .*, 12288 of whose {size} bytes"):
        files.open(path)


def test_holes_decide_nothing_where_the_system_does_not_look_for_them(tmp_path, files, monkeypatch):
    path = tmp_path / "holes"
    with open(path, "wb") as file:
        file.truncate(1 << 30)

    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "lseek", refuse)
    assert files.open(path).size == 1 << 30


# Damage.


@pytest.fixture
def copied(tmp_path):
    """Copy a sample into a folder of its own."""

    def copy(sample):
        for suffix in (".index", DATA):
            shutil.copyfile(f"{FILES / sample}{suffix}", tmp_path / f"ck{suffix}")
        return tmp_path / "ck"

    return copy


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize(
    "suffix, byte, match",
    [
        (".index", 10, r"A block must match its checksum. Received: '.*ck.index', bytes 0 to \d+. The file is"),
        (
            ".index",
            -1,
            r"An index must end in the magic number of a table. Received: '.*ck.index', which ends in '57fb",
        ),
        (DATA, 10, r"A tensor must match its checksum. Received: '.*ck.data.*', bytes 0 to \d+. The file is damaged"),
        (
            DATA,
            -10,
            r"The graph of the objects must match its checksum. Received: '.*ck.data.*', bytes \d+ to \d+. The",
        ),
    ],
)
def test_a_flipped_bit_is_noticed(copied, suffix, byte, match):
    prefix = copied(SMALL)
    path = pathlib.Path(f"{prefix}{suffix}")
    flip(path, byte % path.stat().st_size * 8)
    with pytest.raises(ValueError, match=match):
        read_all(prefix)


def test_a_data_file_that_is_cut_off_after_its_index_was_read_is_refused(copied, files):
    prefix = copied(SMALL)
    tensors = read_checkpoint(prefix, files).tensors
    pathlib.Path(f"{prefix}{DATA}").write_bytes(b"")
    with pytest.raises(ValueError, match="A file must not become shorter while it is read. Received: '.*ck.data"):
        max(tensors.values(), key=lambda stored: math.prod(stored.shape)).read()


@pytest.mark.parametrize("sample", SAMPLES[::2])
def test_damage_is_told_or_harmless(copied, sample):
    prefix = copied(sample)
    expected, draw = read_all(prefix), random.Random(sample)
    for suffix in (".index", DATA):
        path = pathlib.Path(f"{prefix}{suffix}")
        whole = path.read_bytes()
        for _ in range(60):
            if draw.random() < 0.8:
                flip(path, draw.randrange(8 * len(whole)))
            else:
                path.write_bytes(whole[: draw.randrange(len(whole))])
            try:
                assert read_all(prefix) == expected
            except ValueError as error:
                assert "Received: " in str(error) and "\n" not in str(error)
            path.write_bytes(whole)


def repaired(prefix, old, new):
    """Change bytes of the graph, and repair the checksums of the graph and of the index."""
    with Files() as files:
        bundle = _tf_checkpoint._Bundle(prefix, files.open(pathlib.Path(f"{prefix}.index")), files)
        pairs = {b"": header(), **bundle.table}
        place = bundle.take(attacks_checkpoint.GRAPH)
        text = _tf_checkpoint._read_string(place)
    stored, checksum = attacks_checkpoint.string(text.replace(old, new, 1))
    pairs[attacks_checkpoint.GRAPH.encode()] = entry(stored, 7, offset=place.offset, checksum=checksum)
    data = pathlib.Path(f"{prefix}{DATA}")
    data.write_bytes(data.read_bytes()[: place.offset] + stored)
    pathlib.Path(f"{prefix}.index").write_bytes(attacks_checkpoint.table(sorted(pairs.items())))


@pytest.mark.parametrize(
    ("sample", "name"),
    [
        ("tfk/amsgrad_ckpt/ck", b"_momentums"),
        ("tfk/amsgrad_ckpt/ck", b"_velocities"),
        ("tfk/amsgrad_ckpt/ck", b"_velocity_hats"),
        ("tfk/amsgrad_ckpt/ck", b"_iterations"),
        ("tfk/amsgrad_ckpt/ck", b"moving_mean"),
        ("tfk/amsgrad_ckpt/ck", b"gamma"),
        ("tfk/amsgrad_ckpt/ck", b"optimizer"),
        ("tfk/amsgrad_ckpt/ck", b"model"),
        ("tfk/amsgrad_ckpt/ck", b"VARIABLE_VALUE"),
        ("k3t/adam_ckpt/ck", b"_trainable_variables"),
        ("k3t/adam_ckpt/ck", b"_momentums"),
        ("legacy/amsgrad_ckpt/ck", b"vhat"),
        ("legacy/amsgrad_ckpt/ck", b"iter"),
        ("legacy/amsgrad_tfweights/ckpt", b"moving_variance"),
    ],
)
def test_a_changed_name_drops_nothing_even_if_checksums_are_right(copied, sample, name):
    """Each of these names leads to something: to change a letter of it must not leave that out without a word."""
    prefix = copied(sample)
    repaired(prefix, b"", b"")
    ok.load_keras(prefix)
    repaired(prefix, name, name[:-1] + bytes([name[-1] ^ 1]))
    with pytest.raises(ValueError, match=re.compile("Received: ")):
        ok.load_keras(prefix)
