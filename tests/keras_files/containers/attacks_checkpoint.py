"""Checkpoints and SavedModels that are damaged or hostile: `make_<defect>(folder)` writes one and returns its path.

Each is a small training in which one thing is wrong, and whose checksums are right unless the defect is a checksum. The
path is what `load_keras` takes.
"""

import json
import pathlib
import shutil

import numpy as np

from optax_kadam.keras_files.containers._leveldb import crc32c

FILES = pathlib.Path(__file__).parents[2] / "golden" / "files"
DATA = ".data-00000-of-00001"
STRING, GRAPH = 7, "_CHECKPOINTABLE_OBJECT_GRAPH"
NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "int64": 9, "bool": 10}
NUMBERS |= {"bfloat16": 14, "uint16": 17, "float16": 19, "uint32": 22, "uint64": 23}


# A writer of checkpoints.


def masked(data):
    crc = crc32c(bytes(data))
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def varint(value):
    written = bytearray()
    value %= 2**64
    while value >= 128:
        written.append(value % 128 + 128)
        value >>= 7
    return bytes([*written, value])


def message(*fields):
    written = []
    for number, value in fields:
        if isinstance(value, int):
            written += [varint(number << 3), varint(value)]
        elif isinstance(value, bytearray):  # A checksum.
            written += [varint(number << 3 | 5), bytes(value)]
        else:
            value = value.encode() if isinstance(value, str) else value
            written += [varint(number << 3 | 2), varint(len(value)), value]
    return b"".join(written)


def shape(*dimensions):
    return message(*((2, message((1, n))) for n in dimensions))


def entry(data, number, *dimensions, offset=0, file=0, size=None, checksum=None, extra=()):
    checksum = bytearray(checksum or masked(data))
    place = (3, file), (4, offset), (5, len(data) if size is None else size), (6, checksum)
    return message((1, number), (2, shape(*dimensions)), *place, *extra)


def closed(entries, kind=0):
    """Return the block of these entries: with restarts, kind and checksum."""
    written = entries + bytes(4) + (1).to_bytes(4, "little") + bytes([kind])
    return written + masked(written)


def block(pairs, kind=0):
    return closed(b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in pairs), kind)


def closed_table(first, last, filters=()):
    """Return the table of one block, whose last key is `last`."""
    empty = block(filters)
    index = block([(last, varint(0) + varint(len(first) - 5))])
    footer = varint(len(first)) + varint(len(empty) - 5) + varint(len(first + empty)) + varint(len(index) - 5)
    return first + empty + index + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def table(pairs, kind=0, filters=()):
    return closed_table(block(pairs, kind), pairs[-1][0], filters)


def header(files=1, endianness=0, version=((1, 1),)):
    return message((1, files), (2, endianness), (3, message(*version)))


def string(text):
    length = len(text).to_bytes(4, "little")
    return varint(len(text)) + masked(length) + text, masked(length + masked(length) + text)


def key_of(path):
    return f"{path}/.ATTRIBUTES/VARIABLE_VALUE"


def node(children=(), name=None, path="", slots=(), attribute="VARIABLE_VALUE"):
    """Return an object: `children` are pairs of a name and a number, `slots` of a variable, a name and a number."""
    fields = [(1, message((1, number), (2, child))) for child, number in children]
    if name is not None:
        fields.append((2, message((1, attribute), (2, name), (3, f"{path}/.ATTRIBUTES/{attribute}"))))
    return message(*fields, *((3, message((1, v), (2, slot), (3, number))) for v, slot, number in slots))


def write(prefix, tensors=None, nodes=(), pairs=(), data=b"", graph=None, head=None, kind=0, filters=()):
    """Write a checkpoint.

    Args:
      prefix: its path.
      tensors: arrays by their keys.
      nodes: the objects of the graph; `graph` is all of it instead.
      pairs: keys and entries that are added; `data` stands at the beginning of the data file.
      graph: see `nodes`.
      head: the header.
      kind: how the index is compressed.
      filters: keys and values of the block that TensorFlow leaves empty.
    """
    pieces, end, entries = [data], len(data), {}
    for key, array in (tensors or {}).items():
        piece = np.ascontiguousarray(array).tobytes()
        entries[key] = entry(piece, NUMBERS[array.dtype.name], *array.shape, offset=end)
        pieces.append(piece)
        end += len(piece)
    stored, checksum = string(message(*((1, node) for node in nodes)) if graph is None else graph)
    entries |= {GRAPH: entry(stored, STRING, offset=end, checksum=checksum)} | dict(pairs)
    encoded = sorted((k.encode() if isinstance(k, str) else k, v) for k, v in entries.items())
    pathlib.Path(f"{prefix}.index").write_bytes(table([(b"", head or header()), *encoded], kind, filters))
    pathlib.Path(f"{prefix}{DATA}").write_bytes(b"".join([*pieces, stored]))
    return prefix


MODEL, OPTIMIZER, WEIGHT, COUNT, MOMENTUMS, VELOCITIES, FIRST, SECOND = range(1, 9)


def training(**changed):
    """Return the arguments of `write` for a model of one weight and its Adam; `changed` replaces objects by name."""
    nodes = {
        "root": node([("model", MODEL), ("optimizer", OPTIMIZER)]),
        "model": node([("w", WEIGHT)]),
        "optimizer": node([("_iterations", COUNT), ("_momentums", MOMENTUMS), ("_velocities", VELOCITIES)]),
        "weight": node(name="w", path="model/w"),
        "count": node(name="iteration", path="optimizer/_iterations"),
        "momentums": node([("0", FIRST)]),
        "velocities": node([("0", SECOND)]),
        "first": node(name="Adam/m/w", path="optimizer/_momentums/0"),
        "second": node(name="Adam/v/w", path="optimizer/_velocities/0"),
    }
    paths = "model/w", "optimizer/_momentums/0", "optimizer/_velocities/0"
    tensors = {key_of(path): np.full(3, i, np.float32) for i, path in enumerate(paths)}
    tensors[key_of("optimizer/_iterations")] = np.array(5)
    return {"nodes": list((nodes | changed).values()), "tensors": tensors}


def make_training(folder):
    """This is none of the attacks: it is what they change."""
    return write(folder / "ck", **training())


# These are large or odd, but right: they are to be loaded within the bounds too.


def make_cycle(folder):
    return write(folder / "ck", **training(model=node([("w", WEIGHT), ("self", MODEL), ("root", 0)])))


def make_deep_graph(folder):
    made = training(model=node([("a", 9)]), weight=node(name="w", path="model" + "/a" * 5000 + "/w"))
    made["nodes"] += [*(node([("a", 10 + i)]) for i in range(4999)), node([("w", WEIGHT)])]
    made["tensors"][key_of("model" + "/a" * 5000 + "/w")] = made["tensors"].pop(key_of("model/w"))
    return write(folder / "ck", **made)


def _layers(count):
    """Return `count` layers of one weight named `w`, which are objects from number 9, and their tensors."""
    layers = [part for i in range(count) for part in (node([("w", 10 + 2 * i)]), node(name="w", path=f"model/{i}/w"))]
    return layers, {key_of(f"model/{i}/w"): np.zeros((), np.float32) for i in range(count)}


def make_one_name(folder, count=2000):
    layers, weights = _layers(count)
    slots = [node(name=f"Adam/{slot}/w", path=f"o/{slot}/{i}") for slot in "mv" for i in range(count)]
    lists = [node((str(i), 9 + (2 + n) * count + i) for i in range(count)) for n in (0, 1)]
    made = training(
        root=node([("model", MODEL), ("o", OPTIMIZER), *((f"_{i}", i) for i in (WEIGHT, FIRST, SECOND))]),
        model=node((str(i), 9 + 2 * i) for i in range(count)),
        optimizer=node([("_iterations", COUNT), ("_momentums", 5), ("m", 5), ("_velocities", 6), ("v", 6)]),
        weight=b"",
        count=node(name="iteration", path="o/_iterations"),
        momentums=lists[0],
        velocities=lists[1],
        first=b"",
        second=b"",
    )
    made["nodes"] += [*layers, *slots]
    made["tensors"] = weights | {key_of("o/_iterations"): np.array(5)}
    made["tensors"] |= {key_of(f"o/{slot}/{i}"): np.zeros((), np.float32) for slot in "mv" for i in range(count)}
    return write(folder / "ck", **made)


def make_many_slots(folder, count=2000):
    layers, weights = _layers(count)
    paths = [f"model/{i}/w/.OPTIMIZER_SLOT/o/{slot}" for slot in "mv" for i in range(count)]
    slots = [(10 + 2 * i, slot, 9 + (2 + n) * count + i) for n, slot in enumerate("mv") for i in range(count)]
    made = training(
        root=node([("model", MODEL), ("o", OPTIMIZER), *((f"_{i}", i) for i in (WEIGHT, 5, 6, FIRST, SECOND))]),
        model=node((str(i), 9 + 2 * i) for i in range(count)),
        optimizer=node([("iter", COUNT)], slots=slots),
        count=node(name="Adam/iter", path="o/iter"),
        **dict.fromkeys(("weight", "momentums", "velocities", "first", "second"), b""),
    )
    made["nodes"] += [*layers, *(node(name=f"Adam/{path}", path=path) for path in paths)]
    made["tensors"] = weights | {key_of("o/iter"): np.array(5)}
    made["tensors"] |= {key_of(path): np.zeros((), np.float32) for path in paths}
    return write(folder / "ck", **made)


# Too much memory or time.


def _weights(folder, root, *nodes, pairs=(), head=None, **tensors):
    """Write a checkpoint without an optimizer."""
    return write(folder / "ck", {key_of(k): v for k, v in tensors.items()}, [node(root), *nodes], pairs, head=head)


def make_shared_key(folder):
    """Write 300 objects that have one tensor."""
    nodes = [node(name=f"w{i}", path="w") for i in range(300)]
    return _weights(
        folder, [("w", 1), *((f"w{i}", 1 + i) for i in range(300))], *nodes, w=np.zeros(1 << 20, np.float32)
    )


def make_shared_node(folder):
    """Write a list of variables in which one object stands 300 times."""
    nodes = node((str(i), 2) for i in range(300)), node(name="w", path="w")
    return _weights(folder, [("variables", 1), ("w", 2)], *nodes, w=np.zeros(1 << 20, np.float32))


def make_overlap(folder):
    made = training()
    weight = made["tensors"].pop(key_of("model/w"))
    data = weight.tobytes()
    made["tensors"].pop(key_of("optimizer/_momentums/0"))
    pairs = [(key_of("model/w"), entry(data, 1, 3)), (key_of("optimizer/_momentums/0"), entry(data, 1, 3, offset=0))]
    return write(folder / "ck", pairs=pairs, data=data + bytes(100), **made)


def make_empty_nodes(folder):
    made = training()
    return write(folder / "ck", **made | {"nodes": [*made["nodes"], *[b""] * 10**6]})


def make_lost_node(folder):
    made = training()
    return write(folder / "ck", **made | {"nodes": [*made["nodes"], b""]})


def make_long_chain(folder):
    made = training()
    made["nodes"][MODEL] = node([("w", WEIGHT), ("a", 9)])
    made["nodes"] += [*(node([("a", 10 + i)]) for i in range(100_000)), b""]
    return write(folder / "ck", **made)


def make_many_edges(folder):
    made = training(model=node([("w", WEIGHT), *((f"{i:x}", WEIGHT) for i in range(200_000))]))
    return write(folder / "ck", **made)


def make_long_slot_name(folder):
    made = training(first=node(name="m/" * 200_000, path="optimizer/_momentums/0"))
    return write(folder / "ck", **made)


def make_many_entries(folder):
    return write(folder / "ck", pairs=[(f"{i:x}", b"") for i in range(200_000)], **training())


def make_shared_beginnings(folder):
    name = b"a" * 10_000
    pairs = varint(0) + varint(len(name)) + varint(0) + name
    pairs += b"".join(varint(len(name) + i) + varint(1) + varint(0) + b"a" for i in range(50_000))
    prefix = make_training(folder)
    pathlib.Path(f"{prefix}.index").write_bytes(closed_table(closed(pairs), b"b"))
    return prefix


def make_huge_varint(folder):
    made = training()
    made["nodes"][MODEL] = b"\x0a\x0d\x08" + b"\xff" * 9 + b"\x7f" + b"\x12\x00"
    return write(folder / "ck", **made)


def make_sparse_data(folder):
    size = 1 << 40
    pairs = [(key_of("w"), entry(b"", 1, size // 4, size=size, file=1))]
    prefix = _weights(folder, [("w", 1)], node(name="w", path="w"), pairs=pairs, head=header(files=2))
    pathlib.Path(f"{prefix}{DATA}").rename(f"{prefix}.data-00000-of-00002")
    with open(f"{prefix}.data-00001-of-00002", "wb") as file:
        file.truncate(size)
    return prefix


# What the index says.


THREE = np.zeros(3, np.float32).tobytes()


def _with_weight(folder, written):
    made = training()
    made["tensors"].pop(key_of("model/w"))
    return write(folder / "ck", pairs=[(key_of("model/w"), written)], data=THREE, **made)


def make_negative_size(folder):
    return _with_weight(folder, entry(THREE, STRING, size=-12))


def make_negative_offset(folder):
    return _with_weight(folder, entry(THREE, 1, 3, offset=-12))


def make_negative_shape(folder):
    return _with_weight(folder, entry(THREE, 1, -3))


def make_negative_file(folder):
    return _with_weight(folder, entry(THREE, 1, 3, file=-1))


def make_huge_shape(folder):
    return _with_weight(folder, entry(THREE, 1, 0, 2**62))


def make_huge_tensor(folder):
    return _with_weight(folder, entry(THREE, 1, 2**38, size=2**40))


def make_many_dimensions(folder):
    return _with_weight(folder, entry(THREE, 1, 3, *[1] * 100_000))


def make_wrong_size(folder):
    return _with_weight(folder, entry(THREE, 1, 4))


def make_unknown_rank(folder):
    return _with_weight(folder, message((1, 1), (2, message((3, 1)))))


def make_unknown_dtype(folder):
    return _with_weight(folder, entry(THREE, 8, 3))


def make_wrong_checksum(folder):
    return _with_weight(folder, entry(THREE, 1, 3, checksum=bytes(4)))


def make_slices(folder):
    return _with_weight(folder, entry(THREE, 1, 3, extra=[(7, message((1, message((2, 1)))))]))


def make_slice(folder):
    return write(folder / "ck", pairs=[(b"\0w\0\1\1\1\x80\1", entry(b"", 1, 0))], **training())


def make_big_endian(folder):
    return write(folder / "ck", head=header(endianness=1), **training())


def make_other_version(folder):
    return write(folder / "ck", head=header(version=((1, 1), (2, 2))), **training())


def make_excluded_version(folder):
    return write(folder / "ck", head=header(version=((1, 1), (3, b"\1"))), **training())


def make_no_shards(folder):
    return write(folder / "ck", head=header(files=0), **training())


def make_missing_shard(folder):
    return write(folder / "ck", head=header(files=2**31), **training())


def make_compressed(folder):
    return write(folder / "ck", kind=1, **training())


def make_compressed_otherwise(folder):
    return write(folder / "ck", kind=2, **training())


def make_filter(folder):
    return write(folder / "ck", filters=[(b"filter.leveldb", b"")], **training())


def _changed_index(folder, change):
    prefix = make_training(folder)
    path = pathlib.Path(f"{prefix}.index")
    path.write_bytes(change(bytearray(path.read_bytes())))
    return prefix


def make_flipped_index(folder):
    return _changed_index(folder, lambda data: data[:10] + bytes([data[10] ^ 1]) + data[11:])


def make_flipped_magic(folder):
    return _changed_index(folder, lambda data: data[:-1] + b"\0")


def make_padded_footer(folder):
    return _changed_index(folder, lambda data: data[:-9] + b"\1" + data[-8:])


def make_cut_index(folder):
    return _changed_index(folder, lambda data: data[:20])


def make_descending_keys(folder):
    pairs = block([(b"", header()), (b"b", b""), (b"a", b"")])
    return _changed_index(folder, lambda data: closed_table(pairs, b"b"))


def make_wrong_separator(folder):
    return _changed_index(folder, lambda data: closed_table(block([(b"", header()), (b"b", b"")]), b"a"))


def make_many_restarts(folder):
    first = b"\0\0\0" + (1000).to_bytes(4, "little") + b"\0"
    return _changed_index(folder, lambda data: closed_table(first + masked(first), b"b"))


def make_unnamed_tensor(folder):
    return write(folder / "ck", pairs=[("other", entry(b"", 1, 0))], **training())


def make_no_graph(folder):
    prefix = make_training(folder)
    pathlib.Path(f"{prefix}.index").write_bytes(table([(b"", header()), (b"a", entry(b"", 1, 0))]))
    return prefix


def make_graph_of_numbers(folder):
    return write(folder / "ck", pairs=[(GRAPH, entry(b"", 1, 0))], **training())


def make_wrong_graph_length(folder):
    prefix = make_training(folder)
    stored, checksum = string(b"")
    graph = entry(stored + b"a", STRING, checksum=checksum)
    pathlib.Path(f"{prefix}.index").write_bytes(table([(b"", header()), (GRAPH.encode(), graph)]))
    pathlib.Path(f"{prefix}{DATA}").write_bytes(stored + b"a")
    return prefix


# What the graph says.


def make_missing_tensor(folder):
    made = training()
    made["tensors"].pop(key_of("model/w"))
    return write(folder / "ck", **made)


def make_empty_graph(folder):
    return write(folder / "ck")


def make_other_graph(folder):
    return write(folder / "ck", graph=message((2, b"")))


def make_cut_graph(folder):
    return write(folder / "ck", graph=b"\x0a\x05")


def make_groups(folder):
    return write(folder / "ck", graph=b"\x0b")


def make_outside_child(folder):
    return write(folder / "ck", **training(model=node([("w", 99)])))


def make_negative_child(folder):
    return write(folder / "ck", **training(model=node([("w", -1)])))


def make_outside_slot(folder):
    return write(folder / "ck", **training(model=node([("w", WEIGHT)], slots=[(WEIGHT, "m", 99)])))


def make_repeated_child(folder):
    return write(folder / "ck", **training(model=node([("w", WEIGHT), ("w", COUNT)])))


def make_undecodable_child(folder):
    return write(folder / "ck", **training(model=node([("w", WEIGHT), (b"\xff", WEIGHT)])))


def make_nameless_variable(folder):
    return write(folder / "ck", **training(weight=node(name="", path="model/w")))


def make_wrong_path(folder):
    """Write a name in which one bit is flipped."""
    return write(folder / "ck", **training(model=node([("v", WEIGHT)])))


def make_wrong_slot_path(folder):
    path = "model/w/.OPTIMIZER_SLOT/optimizer/m"
    made = training(model=node([("w", WEIGHT)], slots=[(WEIGHT, "v", 9)]))
    made["tensors"][key_of(path)] = np.zeros(3, np.float32)
    return write(folder / "ck", **made | {"nodes": [*made["nodes"], node(name="Adam/w/m", path=path)]})


def make_other_attribute(folder):
    return write(folder / "ck", **training(weight=node(name="w", path="model/w", attribute="WARIABLE_VALUE")))


def make_lost_optimizer(folder):
    """Write a name of Adam's in which one bit is flipped: without a further check, the moments would be left out."""
    names = [("_iterations", COUNT), ("_momentumr", MOMENTUMS), ("_velocities", VELOCITIES)]
    made = training(optimizer=node(names), first=node(name="Adam/m/w", path="optimizer/_momentumr/0"))
    array = made["tensors"].pop(key_of("optimizer/_momentums/0"))
    made["tensors"][key_of("optimizer/_momentumr/0")] = array
    return write(folder / "ck", **made)


def make_unnumbered_list(folder):
    made = training(momentums=node([("0", FIRST), ("x", FIRST)]))
    return write(folder / "ck", **made)


def make_gap_in_list(folder):
    made = training(momentums=node([("1", FIRST)]), first=node(name="Adam/m/w", path="optimizer/_momentums/1"))
    array = made["tensors"].pop(key_of("optimizer/_momentums/0"))
    made["tensors"][key_of("optimizer/_momentums/1")] = array
    return write(folder / "ck", **made)


# What leads to a checkpoint.


def _led(folder, text):
    made = make_training(folder)
    (folder / "inside").mkdir()
    (folder / "inside" / "checkpoint").write_bytes(text)
    return made.parent / "inside"


def make_escape(folder):
    return _led(folder, b'model_checkpoint_path: "../ck"\n')


def make_absolute_escape(folder):
    return _led(folder, f'model_checkpoint_path: "{folder}/ck"\n'.encode())


def make_parent_escape(folder):
    return _led(folder, b'model_checkpoint_path: ".."\n')


def make_long_name(folder):
    return _led(folder, b'model_checkpoint_path: "' + b"a" * 5000 + b'"\n')


def make_long_line(folder):
    return _led(folder, b"a" * 20_000_000)


def make_endless_checkpoint(folder):
    (folder / "checkpoint").symlink_to("/dev/zero")
    return folder


def make_folder_for_checkpoint(folder):
    (folder / "checkpoint").mkdir()
    return folder


# The configuration of a SavedModel.


def saved_model(folder, change):
    """Copy a recorded SavedModel, with the bytes that `change` makes of those of its metadata."""
    path = folder / "saved"
    shutil.copytree(FILES / "tfk" / "adam_savedmodel", path)
    data = (path / "keras_metadata.pb").read_bytes()
    (path / "keras_metadata.pb").write_bytes(change(data))
    return path


def _changed_model(folder, change):
    def changed(data):
        start = data.index(b"{")
        model, size = json.JSONDecoder().raw_decode(data[start:].decode(errors="replace"))
        text = change(model, data[start : start + size])
        root = message((3, "root"), (4, "_tf_keras_sequential"), (5, text), (6, b"\x08\x02\x10\x01"))
        return message((1, root))

    return saved_model(folder, changed)


def make_metadata_cut(folder):
    return saved_model(folder, lambda data: data[:-10])


def make_metadata_without_root(folder):
    return saved_model(folder, lambda data: data.replace(b"\x04root", b"\x04roou", 1))


def make_metadata_other_field(folder):
    return saved_model(folder, lambda data: message((2, 1)) + data)


def make_metadata_no_json(folder):
    return _changed_model(folder, lambda model, text: text[:-1])


def make_metadata_flipped(folder):
    return _changed_model(folder, lambda model, text: text.replace(b"training_config", b"training_confif"))


def make_metadata_without_optimizer(folder):
    return _changed_model(folder, lambda model, text: text.replace(b"optimizer_config", b"optimizer_confif"))


def make_metadata_deep(folder):
    return _changed_model(folder, lambda model, text: b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def make_metadata_wide(folder):
    return _changed_model(folder, lambda model, text: b'{"a": [' + b"{}," * 1_000_000 + b"{}]}")


def make_metadata_long(folder):
    return _changed_model(folder, lambda model, text: b'{"a": [' + b'"ab",' * 1_000_000 + b"0]}")
