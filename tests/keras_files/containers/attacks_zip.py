"""Programs that write hostile and damaged `.keras` archives, and what a load of each must say.

`make_<defect>(path)` writes an archive with one defect. `SAYS[<defect>]` is a regular expression that is found in the
message of the refusal.
"""

import io
import json
import pathlib
import struct
import zipfile
import zlib

import h5py
import numpy as np

FILES = pathlib.Path(__file__).parents[2] / "golden" / "files" / "k3j"
# Where the fields of a description begin: in the header in front of a member, and in its entry of the directory.
HEADER = {"flags": 6, "method": 8, "time": 10, "checksum": 14, "stored": 18, "size": 22, "length": 26, "extra": 28}
ENTRY = {**{name: place + 2 for name, place in HEADER.items()}, "comment": 32, "disk": 34, "header": 42}
WIDTHS = {"checksum": "<I", "stored": "<I", "size": "<I", "header": "<I"}
NAMES = {HEADER["length"]: 30, ENTRY["length"]: 46}
SAYS = {}


def says(message):
    """Note what a load of the file that the function makes must say."""

    def noted(function):
        SAYS[function.__name__.removeprefix("make_")] = message
        return function

    return noted


def members(file="adam.keras"):
    with zipfile.ZipFile(FILES / file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(contents, compression=zipfile.ZIP_STORED):
    """Return a zip file with these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return bytearray(file.getvalue())


def sharded(**changes):
    """Return the members of an archive with the recorded shards. `changes` are those of its `weight_map`; 0 deletes."""
    contents = members()
    del contents["model.weights.h5"]
    index = json.loads((FILES / "adam.weights.json").read_text())
    index["weight_map"] = {path: names for path, names in (index["weight_map"] | changes).items() if names != 0}
    contents["model.weights.json"] = json.dumps(index).encode()
    return contents | {path.name: path.read_bytes() for path in FILES.glob("adam_*.weights.h5")}


def with_shard(number, change):
    """Return the members of an archive with shards, of which h5py changed one."""
    contents = sharded()
    name = f"adam_{number:05}.weights.h5"
    file = io.BytesIO(contents[name])
    with h5py.File(file, "r+", libver=("earliest", "v108")) as shard:
        change(shard)
    return contents | {name: file.getvalue()}


def places(data, name):
    """Return where the header of a member and its entry in the directory are."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        header = archive.getinfo(name).header_offset
    return header, data.rindex(b"PK\1\2", 0, data.rindex(name.encode()))


def change(data, name, in_header=True, in_entry=True, **values):
    """Change fields of a member's descriptions in place."""
    header, entry = places(data, name)
    for field, value in values.items():
        for start, fields, is_meant in ((header, HEADER, in_header), (entry, ENTRY, in_entry)):
            if is_meant and field in fields:
                struct.pack_into(WIDTHS.get(field, "<H"), data, start + fields[field], value)
    return data


def rename(data, old, new, in_header=True, in_entry=True):
    """Change the name of a member to another one of the same length in place."""
    header, entry = places(data, old)
    for start, is_meant in ((header + 30, in_header), (entry + 46, in_entry)):
        if is_meant:
            data[start : start + len(new)] = new
    return data


def insert(data, place, more):
    """Insert bytes in front of the directory, or into it, and correct the record at the end."""
    length, start = struct.unpack_from("<II", data, len(data) - 10)
    data[place:place] = more
    is_before = place <= start
    numbers = (length, start + len(more)) if is_before else (length + len(more), start)
    struct.pack_into("<II", data, len(data) - 10, *numbers)
    return data


def directory(data):
    return struct.unpack_from("<I", data, len(data) - 6)[0]


def widen(data):
    """Turn the record at the end into that of a large archive."""
    count, length, start = struct.unpack_from("<HII", data, len(data) - 12)
    place = len(data) - 22
    wide = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    data[place:place] = wide + struct.pack("<4sIQI", b"PK\6\7", 0, place, 1)
    struct.pack_into("<HHII", data, len(data) - 14, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    return data


def write(path, data):
    pathlib.Path(path).write_bytes(data)


# Names.


def _make_name(path, name):
    write(path, packed({**members(), name: b""}))


INSIDE = "must lead to a file inside the archive"


@says(INSIDE)
def make_name_above(path):
    _make_name(path, "assets/../../x")


@says(INSIDE)
def make_name_absolute(path):
    _make_name(path, "/x")


@says(INSIDE)
def make_name_with_drive(path):
    _make_name(path, "C:x")


@says(INSIDE)
def make_name_with_backslash(path):
    _make_name(path, "..\\x")


@says(INSIDE)
def make_name_of_nothing(path):
    _make_name(path, "assets//x")


@says(INSIDE)
def make_name_with_zero(path):
    write(path, rename(packed({**members(), "config.jsonx": b""}), "config.jsonx", b"config.json\0"))


@says("must be in UTF-8 if the archive says so")
def make_name_not_utf8(path):
    data = packed({**members(), "xx": b""})
    write(path, rename(change(data, "xx", flags=1 << 11), "xx", b"\xff\xff"))


@says("A member must be in an archive once. Received: .* which holds 'config.json' twice")
def make_duplicate(path):
    write(path, rename(packed({**members(), "config.jsox": b"{}"}), "config.jsox", b"config.json"))


# Headers and entries that differ.

ALIKE = "must describe a member alike in its directory and in front of the member"


@says(ALIKE)
def make_header_with_other_name(path):
    write(path, rename(packed(members()), "config.json", b"konfig.json", in_entry=False))


@says(ALIKE)
def make_entry_with_other_name(path):
    write(path, rename(packed({**members(), "konfig.json": b"{}"}), "konfig.json", b"kanfig.json", in_header=False))


@says(ALIKE)
def make_header_with_other_length_of_name(path):
    write(path, change(packed(members()), "config.json", in_entry=False, length=10))


@says(ALIKE)
def make_header_with_other_flags(path):
    write(path, change(packed(members()), "config.json", in_entry=False, flags=1 << 11))


@says(ALIKE)
def make_header_with_other_method(path):
    write(path, change(packed(members()), "config.json", in_entry=False, method=8))


@says(ALIKE)
def make_header_with_other_time(path):
    write(path, change(packed(members()), "config.json", in_entry=False, time=1))


@says(ALIKE)
def make_header_with_other_checksum(path):
    write(path, change(packed(members()), "config.json", in_entry=False, checksum=1))


@says(ALIKE)
def make_header_with_other_sizes(path):
    write(path, change(packed(members()), "config.json", in_entry=False, stored=1, size=1))


@says(ALIKE)
def make_header_without_signature(path):
    data = packed(members())
    data[places(data, "config.json")[0]] ^= 1
    write(path, data)


# Kinds of members.


@says("must not be encrypted")
def make_encrypted(path):
    write(path, change(packed(members()), "model.weights.h5", flags=1))


@says("must not be encrypted")
def make_encrypted_strongly(path):
    write(path, change(packed(members()), "model.weights.h5", flags=1 << 6))


class _Pipe(io.RawIOBase):
    def __init__(self):
        self.data = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.data += data
        return len(data)


@says("The sizes of a member must be in front of it")
def make_sizes_behind(path):
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for name, content in members().items():
            archive.writestr(name, content)
    write(path, pipe.data)


@says("must be stored or deflated. Received: .* method 12")
def make_method_bzip2(path):
    write(path, packed(members(), zipfile.ZIP_BZIP2))


@says("must be stored or deflated. Received: .* method 14")
def make_method_lzma(path):
    write(path, packed(members(), zipfile.ZIP_LZMA))


@says("must be stored or deflated. Received: .* method 99")
def make_method_unknown(path):
    write(path, change(packed(members()), "model.weights.h5", method=99))


@says("must be stored or deflated. Received: .* flags 0x0020")
def make_patch(path):
    write(path, change(packed(members()), "model.weights.h5", flags=1 << 5))


@says("A stored member must be there in full")
def make_stored_with_two_sizes(path):
    write(path, change(packed(members()), "model.weights.h5", size=10**6))


# Places.

IN_A_ROW = "must follow one another without a gap"


@says(IN_A_ROW)
def make_overlap(path):
    """The second member is inside the first: a stored member that is a zip file holds its header."""
    inner = packed({"x": b"x" * 1000})
    data = packed({**members(), "outer": inner, "x": b"x" * 1000})
    write(path, change(data, "x", in_header=False, header=data.index(inner)))


@says(IN_A_ROW)
def make_one_place_for_two(path):
    data = packed({"a": b"x" * 1000, "b": b"x" * 1000})
    write(path, change(data, "b", in_header=False, header=0))


@says(IN_A_ROW)
def make_place_outside(path):
    write(path, change(packed(members()), "config.json", in_header=False, header=1 << 31))


@says(IN_A_ROW)
def make_sizes_that_reach_the_directory(path):
    data = packed(members())
    write(path, change(data, "model.weights.h5", stored=len(data), size=len(data)))


@says(IN_A_ROW)
def make_gap(path):
    data = packed(members())
    write(path, insert(data, directory(data), b"hidden"))


@says(IN_A_ROW)
def make_hidden_member(path):
    """The directory does not list the first member."""
    data = packed({"hidden": b"x", **members()})
    entry = places(data, "hidden")[1]
    del data[entry : entry + 46 + 6]
    count, _, length, start = struct.unpack_from("<HHII", data, len(data) - 14)
    struct.pack_into("<HHII", data, len(data) - 14, count - 1, count - 1, length - 52, start)
    write(path, data)


# The directory and the records at the end.

ENDS = "must end with its directory and the record of where that is"


@says("`path` must be a file that Keras saved")
def make_garbage_in_front(path):
    write(path, b"#!/bin/sh\n" + packed(members()))


@says(ENDS)
def make_two_archives(path):
    write(path, packed({"x": b"x"}) + packed(members()))


@says(ENDS)
def make_garbage_behind(path):
    write(path, packed(members()) + b"hidden")


@says(ENDS)
def make_comment(path):
    file = io.BytesIO(packed(members()))
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"hidden"
    write(path, file.getvalue())


@says(ENDS)
def make_cut(path):
    write(path, packed(members())[:-30])


@says(ENDS)
def make_cut_to_a_header(path):
    write(path, packed(members())[:10])


@says(ENDS)
def make_several_disks(path):
    data = packed(members())
    struct.pack_into("<H", data, len(data) - 18, 1)
    write(path, data)


@says(ENDS)
def make_wide_end_with_other_place(path):
    data = widen(packed(members()))
    struct.pack_into("<Q", data, len(data) - 22 - 12, 0)
    write(path, data)


@says(ENDS)
def make_wide_end_with_other_count(path):
    data = widen(packed(members()))
    struct.pack_into("<HH", data, len(data) - 14, 2, 2)
    write(path, data)


@says("must hold as many members as it counts")
def make_count(path):
    data = packed(members())
    struct.pack_into("<HH", data, len(data) - 14, 2, 2)
    write(path, data)


@says("must consist of entries without comments")
def make_entry_without_signature(path):
    data = packed(members())
    data[directory(data)] ^= 1
    write(path, data)


@says("must consist of entries without comments")
def make_entry_with_comment(path):
    data = change(packed(members()), "config.json", comment=1)
    write(path, insert(data, data.rindex(b"config.json") + 11, b"x"))


@says("must consist of entries without comments")
def make_entry_on_another_disk(path):
    write(path, change(packed(members()), "config.json", disk=1))


@says("What describes a member must lie within its place")
def make_entry_that_is_too_long(path):
    write(path, change(packed(members()), "model.weights.h5", in_header=False, extra=0xFFFF))


@says("The directory of an archive may have")
def make_many_members(path):
    write(path, packed({**members(), **{f"assets/{i:01000}": b"" for i in range(2100)}}))


# Extra fields.


def _make_extra(path, extra, **values):
    data = change(packed(members()), "model.weights.h5", in_header=False, extra=len(extra), **values)
    write(path, insert(data, len(data) - 22, extra))


@says("Only large sizes, times and owners may describe a member further")
def make_extra_unknown(path):
    _make_extra(path, struct.pack("<HH4s", 0x7075, 4, b"x.h5"))


@says("Only large sizes, times and owners may describe a member further")
def make_extra_twice(path):
    _make_extra(path, 2 * struct.pack("<HHB", 0x5455, 1, 0))


@says("What describes a member must lie within its place")
def make_extra_cut(path):
    _make_extra(path, struct.pack("<HHB", 0x5455, 2, 0))


@says("must hold those that are too large for their places")
def make_wide_sizes_missing(path):
    _make_extra(path, b"", size=0xFFFFFFFF, stored=0xFFFFFFFF)


@says("must hold those that are too large for their places")
def make_wide_sizes_cut(path):
    _make_extra(path, struct.pack("<HHQ", 1, 8, 1), size=0xFFFFFFFF, stored=0xFFFFFFFF)


@says("A member must have one size")
def make_wide_sizes_that_differ(path):
    _make_extra(path, struct.pack("<HHQQQ", 1, 24, 1, 1, 1))


@says(IN_A_ROW)
def make_wide_sizes_outside(path):
    data = packed(members())
    extra = struct.pack("<HHQQ", 1, 16, 1 << 60, 1 << 60)
    sizes = {"size": 0xFFFFFFFF, "stored": 0xFFFFFFFF, "extra": len(extra)}
    change(data, "model.weights.h5", **sizes)
    insert(data, len(data) - 22, extra)
    insert(data, places(data, "model.weights.h5")[0] + 30 + len("model.weights.h5"), extra)
    write(path, data)


# Bytes of members.


@says("must have the checksum that its archive holds. Received: .*model.weights.h5'")
def make_flipped_weight(path):
    data = packed(members())
    data[directory(data) - 1000] ^= 1
    write(path, data)


@says("must have the checksum that its archive holds. Received: .*config.json'")
def make_flipped_configuration(path):
    data = packed(members())
    data[data.index(b"learning_rate")] ^= 1
    write(path, data)


@says("must have the checksum that its archive holds")
def make_flipped_deflated_checksum(path):
    write(path, change(packed(members(), zipfile.ZIP_DEFLATED), "model.weights.h5", checksum=1))


@says("may expand to twice its size .* Pack it again without compression if you trust it")
def make_bomb(path):
    write(path, packed({**members(), "model.weights.h5": bytes(64 << 20)}, zipfile.ZIP_DEFLATED))


@says("may expand to twice its size")
def make_bomb_of_many(path):
    bombs = {f"x{i}": bytes(1 << 20) for i in range(64)}
    write(path, packed({**members(), **bombs}, zipfile.ZIP_DEFLATED))


@says("must inflate to the size that its archive holds. Received: .* which inflates to more in the place of 1000")
def make_bomb_that_lies(path):
    data = packed({**members(), "model.weights.h5": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    write(path, change(data, "model.weights.h5", size=1000))


@says("must inflate to the size that its archive holds. Received: .* in the place of 1000000 bytes")
def make_inflated_too_short(path):
    write(path, change(packed(members(), zipfile.ZIP_DEFLATED), "model.weights.h5", size=10**6))


def _make_stream(path, stream):
    content = members()["model.weights.h5"]
    data = packed({**members(), "model.weights.h5": stream})
    write(path, change(data, "model.weights.h5", method=8, size=len(content), checksum=zlib.crc32(content)))


def deflated():
    return zlib.compress(members()["model.weights.h5"], wbits=-15)


@says("must be deflated. Received: .* of which zlib says")
def make_stream_that_is_none(path):
    _make_stream(path, b"\xff" * 1000)


@says("must end with its last byte")
def make_stream_with_more(path):
    _make_stream(path, deflated() + b"hidden")


@says("must end with its last byte")
def make_stream_with_much_more(path):
    _make_stream(path, deflated() + bytes(3 << 20))


@says("must end with its last byte")
def make_stream_without_its_end(path):
    compressor = zlib.compressobj(wbits=-15)
    _make_stream(path, compressor.compress(members()["model.weights.h5"]) + compressor.flush(zlib.Z_SYNC_FLUSH))


# What is in an archive.


@says("must hold 'model.weights.h5'. Received: .* 2 other files: 'config.json', 'metadata.json'")
def make_without_weights(path):
    contents = members()
    del contents["model.weights.h5"]
    write(path, packed(contents))


@says("must hold 'config.json'")
def make_without_configuration(path):
    contents = members()
    del contents["config.json"]
    write(path, packed(contents))


@says("must say which Keras wrote it")
def make_without_version(path):
    write(path, packed({**members(), "metadata.json": b'{"keras_version": 3}'}))


@says("unpickling runs code")
def make_pickled(path):
    write(path, packed(members("adam.npzfmt.keras")))


@says("The weights must be in an archive once. Received: .*'model.weights.h5' and 'model.weights.json'")
def make_two_weights(path):
    write(path, packed(sharded() | members()))


# JSON.


def _make_configuration(path, text):
    write(path, packed({**members(), "config.json": text}, zipfile.ZIP_DEFLATED))


@says("must be JSON as Keras writes it. Received: .*Expecting")
def make_json_cut(path):
    _make_configuration(path, b"{")


@says("must be a JSON object. Received: .*config.json', which is a list")
def make_json_list(path):
    _make_configuration(path, b"[]")


@says("must be JSON as Keras writes it. Received: .*'utf-8' codec")
def make_json_in_utf16(path):
    _make_configuration(path, '{"a": "ü"}'.encode("utf-16"))


@says("must be JSON as Keras writes it. Received: .*NaN is no number")
def make_json_nan(path):
    _make_configuration(path, b'{"a": NaN}')


@says("must be JSON as Keras writes it. Received: .*-Infinity is no number")
def make_json_infinity(path):
    _make_configuration(path, b'{"a": -Infinity}')


@says("must be JSON as Keras writes it. Received: .*1e999 is no float")
def make_json_large_float(path):
    _make_configuration(path, b'{"a": 1e999}')


@says("must be JSON as Keras writes it. Received: .*an integer has 100000 digits")
def make_json_large_integer(path):
    _make_configuration(path, b'{"a": ' + b"9" * 100_000 + b"}")


@says("must be JSON as Keras writes it. Received: .*the key 'a' is there more than once")
def make_json_repeated_key(path):
    _make_configuration(path, b'{"x": {"a": 1, "b": 2, "a": 3}}')


@says("must be JSON as Keras writes it. Received: .*recursion")
def make_json_nested_deeply(path):
    _make_configuration(path, b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@says("may be nested 200 times")
def make_json_nested(path):
    _make_configuration(path, b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}")


@says("A configuration may have .* bytes beside weights of this size. Received: .*config.json', which has 20000008")
def make_json_long(path):
    _make_configuration(path, b'{"a": [' + b"[]," * 6_666_666 + b"0]}")


# Shards.

BESIDE = "A shard must be a file beside its index"


@says(BESIDE)
def make_shard_above(path):
    write(path, packed(sharded(**{"/optimizer/vars": "../adam_00000.weights.h5"})))


@says(BESIDE)
def make_shard_of_two_dots(path):
    write(path, packed(sharded(**{"/optimizer/vars": ".."})))


@says(BESIDE)
def make_shard_with_drive(path):
    write(path, packed(sharded(**{"/optimizer/vars": "C:x"})))


@says(BESIDE)
def make_shard_number(path):
    write(path, packed(sharded(**{"/optimizer/vars": 5})))


@says(BESIDE)
def make_shard_null(path):
    write(path, packed(sharded(**{"/optimizer/vars": [None]})))


@says(BESIDE)
def make_shard_object(path):
    write(path, packed(sharded(**{"/optimizer/vars": {"adam_00000.weights.h5": 1}})))


@says("must list each shard of a group once. Received: .* 0 for '/optimizer/vars'")
def make_shards_none(path):
    write(path, packed(sharded(**{"/optimizer/vars": []})))


@says("must list each shard of a group once. Received: .* 2 for '/optimizer/vars', 1 of them different")
def make_shards_repeated(path):
    write(path, packed(sharded(**{"/optimizer/vars": ["adam_00000.weights.h5"] * 2})))


@says("must hold 'x.h5'")
def make_shard_missing(path):
    write(path, packed(sharded(**{"/optimizer/vars": "x.h5"})))


@says("must hold a `weight_map`. Received: .* in which it is 5")
def make_weight_map_number(path):
    write(path, packed({**sharded(), "model.weights.json": b'{"weight_map": 5}'}))


@says("must hold a `weight_map`. Received: .* in which it is None")
def make_weight_map_missing(path):
    write(path, packed({**sharded(), "model.weights.json": b"{}"}))


@says("must hold what its index lists. Received: .*'/layers/dense/vars' is in it but not listed")
def make_group_that_is_not_listed(path):
    write(path, packed(sharded(**{"/layers/dense/vars": 0})))


@says("must list each shard of its archive. Received: .* does not list 'adam_00001.weights.h5'")
def make_shard_that_is_not_listed(path):
    write(path, packed(sharded(**{"/optimizer/vars": "adam_00000.weights.h5"})))


@says("must hold what its index lists. Received: .*'/x/vars' is not in it or listed twice")
def make_group_that_is_not_there(path):
    write(path, packed(sharded(**{"/x/vars": "adam_00000.weights.h5"})))


@says("must hold what its index lists. Received: .*'/optimizer/vars' is not in it or listed twice")
def make_group_listed_twice(path):
    write(path, packed(sharded(**{"optimizer//vars": "adam_00001.weights.h5"})))


@says("There may be 1000 shards. Received: .* which lists 1001")
def make_many_shards(path):
    write(path, packed(sharded(**{f"/{i}": f"{i}.h5" for i in range(998)})))


@says("An array must be in one shard. Received: .* two shards hold '0'")
def make_array_in_two_shards(path):
    write(path, packed(with_shard(1, lambda shard: shard["optimizer/vars"].create_dataset("0", data=np.zeros(3)))))


@says("must hold what its index lists")
def make_one_shard_twice(path):
    contents = sharded()
    write(path, packed({**contents, "adam_00001.weights.h5": contents["adam_00000.weights.h5"]}))


@says("An attribute must be the same in every shard. Received: .* have another 'name'")
def make_attribute_that_differs(path):
    write(path, packed(with_shard(1, lambda shard: shard["optimizer/vars"].attrs.update(name="madam"))))
