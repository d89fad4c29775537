"""The reader of TensorFlow's checkpoints: exact on samples of TensorFlow's, and never wrong on a damaged file."""

import math
import pathlib
import random
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from optax_kadam.keras_files._named_arrays import Node
from optax_kadam.keras_files.containers._crc32c import crc32c, unmask
from optax_kadam.keras_files.containers._tf_checkpoint import read_checkpoint

FILES = pathlib.Path(__file__).parents[2] / "golden" / "files"
SAMPLES = sorted(str(index.relative_to(FILES).with_suffix("")) for index in FILES.rglob("*.index"))
SMALL = "k3t/adam_export/variables/variables"
DATA = ".data-00000-of-00001"
STRING, GRAPH = 7, "_CHECKPOINTABLE_OBJECT_GRAPH"
NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "int64": 9, "bool": 10}
NUMBERS |= {"bfloat16": 14, "uint16": 17, "float16": 19, "uint32": 22, "uint64": 23}


# A writer of checkpoints, for what the recorded ones do not hold.


def bitwise_crc32c(data, value=0):
    state = value ^ 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def varint(value):
    value %= 2**64
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value >> 7)


def message(*fields):
    written = b""
    for number, value in fields:
        if isinstance(value, int):
            written += varint(number << 3) + varint(value)
        else:
            is_checksum = isinstance(value, bytearray)
            written += varint(number << 3 | (5 if is_checksum else 2)) + (b"" if is_checksum else varint(len(value)))
            written += bytes(value)
    return written


def shape(*dimensions):
    return message(*((2, message((1, n))) for n in dimensions))


def entry(data, number, *dimensions, offset=0, file=0, size=None, checksum=None, extra=()):
    checksum = bytearray(checksum or masked(data))
    place = (3, file), (4, offset), (5, len(data) if size is None else size), (6, checksum)
    return message((1, number), (2, shape(*dimensions)), *place, *extra)


def block(pairs, kind=0):
    written = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in pairs)
    written += bytes(4) + (1).to_bytes(4, "little") + bytes([kind])
    return written + masked(written)


def table(pairs, kind=0):
    first, empty = block(pairs, kind), block([])
    index = block([(b"~", varint(0) + varint(len(first) - 5))])
    footer = varint(len(first)) + varint(len(empty) - 5) + varint(len(first + empty)) + varint(len(index) - 5)
    return first + empty + index + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def header(files=1, endianness=0, version=((1, 1),)):
    return message((1, files), (2, endianness), (3, message(*version)))


def string(text):
    length = len(text).to_bytes(4, "little")
    return varint(len(text)) + masked(length) + text, masked(length + masked(length) + text)


def write(prefix, pairs=(), data=b"", graph=b"", head=None, kind=0):
    """Write a checkpoint of `pairs` of names and entries, whose bytes are `data`, and of a graph behind them."""
    stored, checksum = string(graph)
    pairs = [*pairs, (GRAPH, entry(stored, STRING, offset=len(data), checksum=checksum))]
    encoded = sorted((k.encode() if isinstance(k, str) else k, v) for k, v in pairs)
    pathlib.Path(f"{prefix}.index").write_bytes(table([(b"", head or header()), *encoded], kind))
    pathlib.Path(f"{prefix}{DATA}").write_bytes(data + stored)
    return prefix


def read_all(prefix):
    checkpoint = read_checkpoint(pathlib.Path(prefix))
    arrays = {key: stored.read() for key, stored in checkpoint.tensors.items()}
    assert all(arrays[key].shape == stored.shape for key, stored in checkpoint.tensors.items())
    return {key: (a.shape, a.dtype, a.tobytes()) for key, a in arrays.items()}, checkpoint.nodes


# The checksum.


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"", 0),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_crc32c_of_rfc_3720(data, expected):
    assert crc32c(data) == crc32c(memoryview(data)) == crc32c(np.frombuffer(data, np.uint8)) == expected


@pytest.mark.parametrize("length", [1, 3, 4, 562, 563, 564, 567, 1017, 1018, 5685, 5686, 10008, 10009, 45481, 80000])
def test_crc32c_of_random_bytes(length):
    data = random.Random(length).randbytes(length)
    assert crc32c(data) == bitwise_crc32c(data)
    half = length // 2
    assert crc32c(data[half:], crc32c(data[:half])) == crc32c(data)


@pytest.mark.parametrize("length", [363841, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (4 << 20) + 600, 9_000_000])
def test_crc32c_does_not_depend_on_how_a_message_is_cut(length):
    data = np.frombuffer(random.Random(length).randbytes(length), np.uint8)
    checksum = 0
    for start in range(0, length, 5_000):
        checksum = crc32c(data[start : start + 5_000], checksum)
    assert crc32c(data) == checksum


def test_crc32c_reads_arrays_of_every_kind_and_leaves_them_as_they_are():
    array = np.arange(3000).astype(jnp.bfloat16).reshape(3, 1000)
    before = array.copy()
    assert crc32c(array) == bitwise_crc32c(array.tobytes())
    np.testing.assert_array_equal(array, before)
    assert crc32c(np.full((), 1.5)) == crc32c(np.full((), 1.5).tobytes())


def test_a_masked_checksum_is_unmasked():
    for data in (b"", b"a", b"foo"):
        assert unmask(int.from_bytes(masked(data), "little")) == crc32c(data)


# Whole checkpoints.


def test_samples_are_there():
    assert len(SAMPLES) == 17


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_recorded_checkpoint_gives_its_arrays(sample):
    checkpoint = read_checkpoint(FILES / sample)
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


def test_slots_of_a_legacy_optimizer_are_found():
    checkpoint = read_checkpoint(FILES / "legacy/amsgrad_ckpt/ck")
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
def test_every_dtype_is_read(tmp_path, dtype, dimensions):
    array = np.arange(math.prod(dimensions)).reshape(dimensions).astype(jnp.dtype(dtype))
    pairs = [("a", entry(array.tobytes(), NUMBERS[dtype], *dimensions)), ("complex", entry(b"", 8, 0))]
    stored = read_checkpoint(write(tmp_path / "ck", pairs, array.tobytes())).tensors
    assert set(stored) == {"a"}
    assert (stored["a"].shape, stored["a"].dtype) == (array.shape, array.dtype)
    assert stored["a"].read().dtype == array.dtype
    np.testing.assert_array_equal(stored["a"].read(), array, strict=True)


def test_several_data_files_are_read(tmp_path):
    arrays = [np.full(3, i, np.float32) for i in range(3)]
    pairs = [(f"a{i}", entry(a.tobytes(), 1, 3, file=i)) for i, a in enumerate(arrays)]
    pairs[0] = ("a0", entry(arrays[0].tobytes(), 1, 3, offset=100))
    write(tmp_path / "ck", pairs, bytes(100) + arrays[0].tobytes(), head=header(files=3))
    (tmp_path / f"ck{DATA}").rename(tmp_path / "ck.data-00000-of-00003")
    for i in (1, 2):
        (tmp_path / f"ck.data-0000{i}-of-00003").write_bytes(arrays[i].tobytes())
    tensors = read_checkpoint(tmp_path / "ck").tensors
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(tensors[f"a{i}"].read(), array)


def test_the_graph_of_objects_is_read(tmp_path):
    value = message((1, b"VARIABLE_VALUE"), (2, b"dense/kernel"), (3, b"a/.ATTRIBUTES/VARIABLE_VALUE"))
    other = message((1, b"OBJECT_CONFIG_JSON"), (3, b"config"))
    root = message((1, message((1, 1), (2, b"a"))), (1, message((2, b"me"))), (9, bytearray(4)))
    slots = message((2, other), (2, value), (3, message((1, 1), (2, b"m"), (3, 0))))
    checkpoint = read_checkpoint(write(tmp_path / "ck", graph=message((1, root), (1, slots))))
    assert checkpoint.nodes == [
        Node({"a": 1, "me": 0}, None, None, []),
        Node({}, "dense/kernel", "a/.ATTRIBUTES/VARIABLE_VALUE", [(1, "m", 0)]),
    ]


# Refusals.

ONE = np.float32(1).tobytes()
SLICE = message((1, message((2, 1))))
SHAPES = "A tensor must have the shape of an array. Received: '.*ck.index', one of shape "
SIZES = "A tensor must fill its shape. Received: '.*ck.index', "
LISTED = "A data file must hold what its index lists. Received: '.*ck.index', which lists bytes "
REFUSED = [
    ({"head": header(endianness=1)}, r"A checkpoint must be little-endian. Received: '.*ck.index', which is big-end"),
    ({"head": header(version=((1, 1), (2, 2)))}, r"must be of version 1 of its format. .* asks for version 2. Save it"),
    ({"head": header(version=((1, 1), (3, b"\1")))}, r"must be of version 1 of its format."),
    ({"head": b"\x08\x00"}, r"An index must begin with its header. Received: '.*ck.index', num_shards=0. The file is"),
    ({"head": b"\x0b"}, r"A message must be of protobuf's wire types. Received: .*, type 3 of field 1. The file is"),
    ({"head": b"\x80"}, r"A number must end. Received: '.*ck.index', one at byte 0 of 1 that does not. The file is"),
    ({"kind": 1}, r"A block of an index must not be compressed. Received: .*, compressed with Snappy. Save it again"),
    ({"kind": 2}, r"must not be compressed. Received: .*, compressed in an unknown way, 2. Save it again"),
    (
        {"pairs": [("a", entry(ONE, 1, 1, extra=[(7, SLICE)]))]},
        r"A variable must be stored in one piece. .* Restore it",
    ),
    ({"pairs": [(b"\0a\0\1\1\1\x80\1", entry(ONE, 1, 1))]}, r"A variable .*, which holds slices of 'a'. Restore it"),
    ({"pairs": [("a", entry(b"", 1, -1))]}, rf"{SHAPES}\(-1,\). The file is damaged: copy it again."),
    ({"pairs": [("a", entry(b"", 1, 2**40, 2**40))]}, SHAPES),
    ({"pairs": [("a", entry(b"", 1, 0, 2**62))]}, SHAPES),
    ({"pairs": [("a", entry(ONE, 1, *[1] * 33))]}, SHAPES),
    ({"pairs": [("a", message((1, 1), (2, message((3, 1)))))]}, SHAPES),
    ({"pairs": [("a", entry(ONE, 1, 2))]}, rf"{SIZES}4 bytes for \(2,\) of float32"),
    ({"pairs": [("a", entry(ONE, 1, 2**40, size=4))]}, SIZES),
    (
        {"pairs": [("a", entry(ONE, 1, 2**40, size=2**42))]},
        rf"{LISTED}0 to 4398046511104 of the 5 of 'ck.data-00000-of",
    ),
    ({"pairs": [("a", entry(ONE, 1, offset=10))], "data": bytes(8)}, rf"{LISTED}10 to 14 of the 13 of"),
    ({"pairs": [("a", entry(ONE, 1, offset=-4))], "data": bytes(8)}, rf"{LISTED}-4 to 0 of the 13 of"),
    ({"pairs": [("a", entry(ONE, 1)), ("b", entry(ONE, 1))]}, rf"{LISTED}.* is of another checkpoint: copy both again"),
    (
        {"pairs": [("a", entry(ONE, 1, file=1))]},
        r"A tensor must stand in a data file. Received: .*, one in file 1 of 1",
    ),
    ({"pairs": [("a", entry(ONE, 1, file=-1))]}, r"A tensor must stand in a data file."),
    ({"pairs": [(b"\xff", entry(b"", 1, 0))]}, r"A checkpoint must be whole. Received: '.*ck.index', UnicodeDecode"),
    (
        {"pairs": [("a", entry(b"", 1, 0)), ("a", entry(b"", 1, 0))]},
        r"The keys of an index must ascend. Received: .*b'a'",
    ),
    (
        {"head": header(files=2)},
        r"A checkpoint must have all its files. Received: '.*ck.index', and no file 'ck.data-00",
    ),
    (
        {"graph": message((1, message((1, message((1, 1))))))},
        r"An object must be in the graph. .*ck.data.*object 1 of 1",
    ),
    ({"graph": message((1, message((3, message((3, -1))))))}, r"An object must be in the graph. .* object -1 of 1"),
    (
        {"graph": message((1, message((1, message((2, b"\xff"))))))},
        r"A checkpoint must be whole. .*ck.data.*UnicodeDec",
    ),
    (
        {"graph": b"\x0a\x05"},
        r"A part must lie within its whole. Received: '.*ck.data-.*', bytes 2 to 7 of 2. The file",
    ),
]


@pytest.mark.parametrize("written, match", REFUSED)
def test_what_cannot_be_read_whole_is_refused(tmp_path, written, match):
    with pytest.raises(ValueError, match=match) as caught:
        read_checkpoint(write(tmp_path / "ck", **written))
    assert "\n" not in str(caught.value)


def test_shared_beginnings_of_keys_do_not_fill_the_memory(tmp_path):
    name = b"a" * 10_000
    pairs = varint(0) + varint(len(name)) + varint(0) + name
    pairs += b"".join(varint(len(name) + i) + varint(1) + varint(0) + b"a" for i in range(10_000))
    first = pairs + bytes(4) + b"\1\0\0\0\0"
    index = block([(b"~", varint(0) + varint(len(first) - 1))])
    footer = b"\0\0" + varint(len(first) + 4) + varint(len(index) - 5)
    data = first + masked(first) + index + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    (tmp_path / "ck.index").write_bytes(data)
    with pytest.raises(ValueError, match="The keys of an index must be names. Received: .*, one of "):
        read_checkpoint(tmp_path / "ck")


def test_a_missing_index_is_named(tmp_path):
    match = "A checkpoint must have an index. Received: '.*ck', and no file 'ck.index'. Hand over the path"
    with pytest.raises(FileNotFoundError, match=match):
        read_checkpoint(tmp_path / "ck")


def test_a_checkpoint_of_names_alone_is_refused(tmp_path):
    (tmp_path / "ck.index").write_bytes(table([(b"", header()), (b"a", entry(ONE, 1))]))
    (tmp_path / f"ck{DATA}").write_bytes(ONE)
    with pytest.raises(
        ValueError, match=r"must hold the graph of its objects. Received: .* Restore it in TensorFlow, and save"
    ):
        read_checkpoint(tmp_path / "ck")


def test_a_graph_that_is_no_string_is_refused(tmp_path):
    (tmp_path / "ck.index").write_bytes(table([(b"", header()), (GRAPH.encode(), entry(ONE, 1))]))
    (tmp_path / f"ck{DATA}").write_bytes(ONE)
    with pytest.raises(
        ValueError, match=r"The graph of the objects must be a string. Received: .*, dtype 1 of shape \(\)"
    ):
        read_checkpoint(tmp_path / "ck")


def test_a_graph_of_another_length_is_refused(tmp_path):
    stored, checksum = string(b"")
    graph = entry(stored + b"a", STRING, checksum=checksum)
    (tmp_path / "ck.index").write_bytes(table([(b"", header()), (GRAPH.encode(), graph)]))
    (tmp_path / f"ck{DATA}").write_bytes(stored + b"a")
    with pytest.raises(ValueError, match="The graph of the objects must match its checksum."):
        read_checkpoint(tmp_path / "ck")


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
        (
            ".index",
            10,
            r"A block of an index must match its checksum. Received: '.*ck.index', bytes 0 to \d+. The file is",
        ),
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


def test_a_data_file_that_is_cut_off_after_its_index_was_read_is_refused(copied):
    prefix = copied(SMALL)
    tensors = read_checkpoint(prefix).tensors
    pathlib.Path(f"{prefix}{DATA}").write_bytes(b"")
    with pytest.raises(ValueError, match="Received: '.*ck.data"):
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
