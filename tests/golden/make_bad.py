"""Makes the corpus of defective HDF5 files: `python -m tests.golden.make_bad` writes `bad/<defect>.h5` anew.

Each function `make_<defect>` returns the bytes of a small file, in which that one thing is wrong. h5py writes those of
a feature that Keras does not use; the others are made byte by byte. Each function `bomb_<defect>` returns a large file,
which the tests make when they need it. `tests/keras_files/test_corpus.py` holds what each refusal must say.
"""

import io
import pathlib
import struct
from collections.abc import Callable, Sequence

import h5py
import numpy as np

BAD = pathlib.Path(__file__).parent / "bad"
NOWHERE = 2**64 - 1
FLOAT32 = bytes.fromhex("11201f000400000000002000170800177f00000000000000")
FLOAT64 = bytes.fromhex("11203f000800000000004000340b0034ff03000000000000")
TEXT_IN_HEAP = bytes.fromhex("1901010010000000100000000100000000000800")
SPACE, LINK_INFO, TYPE, LINK, LAYOUT, GROUP_INFO, ATTRIBUTE, CONTINUATION, SYMBOLS = 1, 2, 3, 6, 8, 10, 12, 16, 17


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def message(kind: int, data: bytes, flags: int = 0) -> bytes:
    return struct.pack("<HHBxxx", kind, len(padded(data)), flags) + padded(data)


def space(*shape: int, limits: Sequence[int] | None = None) -> bytes:
    dimensions = (*shape, *(limits or ()))
    return struct.pack(f"<BBBxxxxx{len(dimensions)}Q", 1, len(shape), limits is not None, *dimensions)


def attribute(name: bytes, kind: bytes, shape: bytes, value: bytes) -> bytes:
    sizes = struct.pack("<BxHHH", 1, len(name) + 1, len(kind), len(shape))
    return message(ATTRIBUTE, sizes + padded(name + b"\0") + padded(kind) + padded(shape) + value)


def text(name: bytes, value: bytes, shape: Sequence[int] = (), width: int | None = None) -> bytes:
    """Return an attribute of strings that stand in place."""
    size = len(value) if width is None else width
    return attribute(name, struct.pack("<4BI", 0x13, 1, 0, 0, size), space(*shape), value)


class Image:
    """The bytes of an HDF5 file that is being made: a superblock, and what is added behind it."""

    def __init__(self, leaf: int = 4, node: int = 1):
        self.data, self._leaf, self._node = bytearray(96), leaf, node

    def add(self, block: bytes) -> int:
        """Append a block, and return its address."""
        address = len(self.data)
        self.data += padded(block)
        return address

    def header(self, *messages: bytes, count: int | None = None, references: int = 1, version: int = 1) -> int:
        """Append the header of an object."""
        count = len(messages) if count is None else count
        size = sum(map(len, messages))
        return self.add(struct.pack("<BxHIIxxxx", version, count, references, size) + b"".join(messages))

    def dataset(
        self,
        *more: bytes,
        numbers: bytes = bytes(8),
        shape: bytes | None = None,
        kind: bytes = FLOAT32,
        address: int | None = None,
        size: int | None = None,
        layout: tuple[int, int] = (3, 1),
        **header: int,
    ) -> int:
        """Append an array of two numbers, or what is said otherwise of it."""
        address = self.add(numbers) if address is None else address
        size = len(numbers) if size is None else size
        place = message(LAYOUT, struct.pack("<BBQQ", *layout, address, size))
        return self.header(message(SPACE, shape or space(2)), message(TYPE, kind), place, *more, **header)

    def group(
        self,
        members: Sequence[tuple[bytes | int, int]],
        *more: bytes,
        heap: bytes = bytes(8),
        cache: int = 0,
        at: int | None = None,
        **header: int,
    ) -> int:
        """Append a group. The name of a member may be given as its place in the heap of names."""
        table, names = bytearray(), bytearray(heap)
        for name, address in members:
            start = name if isinstance(name, int) else len(names)
            names += b"" if isinstance(name, int) else padded(name + b"\0")
            table += struct.pack("<QQIxxxx16x", start, address, cache)
        size = 80 * self._leaf
        tables = [table[start : start + size] for start in range(0, len(table), size)] or [b""]
        nodes = [self.add(struct.pack("<4sBxH", b"SNOD", 1, len(t) // 40) + t.ljust(size, b"\0")) for t in tables]
        level = 0
        while len(nodes) > 1 or not level:
            step = 2 * self._node
            nodes = [self.tree(*nodes[start : start + step], level=level) for start in range(0, len(nodes), step)]
            level += 1
        return self.header(self.symbols(*nodes, bytes(names)), *more, **header)

    def tree(self, *children: int, level: int = 0, count: int | None = None) -> int:
        """Append a node of a B-tree."""
        count = len(children) if count is None else count
        entries = b"".join(struct.pack("<QQ", 0, child) for child in children)
        node = struct.pack("<4sBBHQQ", b"TREE", 0, level, count, NOWHERE, NOWHERE) + entries
        return self.add(node.ljust(24 + 8 * (4 * self._node + 1), b"\0"))

    def symbols(self, tree: int, heap: bytes, signature: bytes = b"HEAP", free: int = 1) -> bytes:
        """Append a heap of names, and return the message that leads to it and to the B-tree."""
        place = self.add(heap)
        size = len(padded(heap))
        return message(
            SYMBOLS, struct.pack("<QQ", tree, self.add(struct.pack("<4s4xQQQ", signature, size, free, place)))
        )

    def whole(self, root: int, end: int | None = None, base: int = 0, driver: int = NOWHERE) -> bytes:
        """Return the file with this root group."""
        signature = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0])
        end = len(self.data) if end is None else end
        head = struct.pack("<HHI4Q", self._leaf, self._node, 0, base, NOWHERE, end, driver)
        self.data[:96] = signature + head + struct.pack("<QQI20x", 0, root, 0)
        return bytes(self.data)


def of(root: Callable[[Image], int], **sizes: int) -> bytes:
    """Return the file whose root group is what `root` appends."""
    image = Image(**sizes)
    return image.whole(root(image))


def beside(member: Callable[[Image], int]) -> bytes:
    """Return a file with a good array `a`, and with what `member` appends as `b`."""
    return of(lambda image: image.group([(b"a", image.dataset()), (b"b", member(image))]))


def by_h5py(write: Callable[[h5py.File], object], **options: object) -> bytes:
    """Return a file that h5py writes, with a good array `a` and what `write` adds."""
    memory = io.BytesIO()
    with h5py.File(memory, "w", **options) as file:  # pyright: ignore[reportArgumentType]
        file["a"] = np.zeros(2, "f4")
        write(file)
    return memory.getvalue()


# What HDF5 can do and Keras does not.


def make_external_link() -> bytes:
    return by_h5py(lambda file: file.__setitem__("b", h5py.ExternalLink("/etc/hostname", "/x")))


def make_soft_link() -> bytes:
    return by_h5py(lambda file: file.__setitem__("b", h5py.SoftLink("/a")))


def make_external_storage() -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", (8,), "u1", external=[("/etc/hostname", 0, 8)]))


def make_virtual_dataset() -> bytes:
    def write(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((2,), "f4")
        layout[:] = h5py.VirtualSource("/etc/hostname", "a", (2,))
        file.create_virtual_dataset("b", layout)

    return by_h5py(write)


def make_chunked() -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", data=np.zeros(4, "f4"), chunks=(2,)))


def make_compressed() -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", data=np.zeros(4, "f4"), compression="gzip"))


def make_compact() -> bytes:
    def write(file: h5py.File) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        h5py.h5d.create(file.id, b"b", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((2,)), plist)

    return by_h5py(write)


def make_unwritten() -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", (2,), "f4"))


def make_absurd_shape() -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", (2**50,), "f4"))


def make_null_dataspace() -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", data=h5py.Empty("f4")))


def make_null_attribute() -> bytes:
    return by_h5py(lambda file: file.attrs.create("b", h5py.Empty("f4")))


def _dataset_of(kind: object, fill: object = 0) -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", data=np.full(2, fill, kind)))  # pyright: ignore


def make_big_endian() -> bytes:
    return _dataset_of(">f4")


def make_compound() -> bytes:
    return _dataset_of([("a", "u1"), ("b", "u1")])


def make_array_type() -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", (2,), np.dtype(("f4", (2,)))))


def make_enum() -> bytes:
    return by_h5py(
        lambda file: file.create_dataset("b", data=[0, 1], dtype=h5py.enum_dtype({"FALSE": 1, "TRUE": 0}, "i1"))
    )


def make_opaque() -> bytes:
    return _dataset_of("V4", b"abcd")


def make_fixed_string() -> bytes:
    return _dataset_of("S2", b"ab")


def make_vlen_string() -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", data=["ab", "cd"]))


def make_vlen_numbers() -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", (2,), h5py.vlen_dtype(np.dtype("f4"))))


def make_committed_type() -> bytes:
    def write(file: h5py.File) -> None:
        file["kind"] = np.dtype("f4")
        file.create_dataset("b", data=np.zeros(2, "f4"), dtype=file["kind"])

    return by_h5py(write)


def make_object_reference() -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", data=file["a"].ref, dtype=h5py.ref_dtype))


def make_region_reference() -> bytes:
    return by_h5py(lambda file: file.create_dataset("b", data=file["a"].regionref[:1], dtype=h5py.regionref_dtype))


def make_attribute_of_numbers() -> bytes:
    return by_h5py(lambda file: file.attrs.create("b", np.arange(3)))


def make_attribute_of_references() -> bytes:
    return by_h5py(lambda file: file.attrs.create("b", file["a"].ref, dtype=h5py.ref_dtype))


def make_attribute_of_two_dimensions() -> bytes:
    return by_h5py(lambda file: file.attrs.create("b", np.full((2, 2), b"x")))


def make_user_block() -> bytes:
    return by_h5py(lambda file: None, userblock_size=512)


def make_newest_version() -> bytes:
    return by_h5py(lambda file: None, libver="latest")


def make_version_of_2012() -> bytes:
    return by_h5py(lambda file: None, libver=("v108", "v108"))


def make_tracked_order() -> bytes:
    return by_h5py(lambda file: file.create_group("b", track_order=True))


def make_two_links() -> bytes:
    return by_h5py(lambda file: file.__setitem__("b", file["a"]))


def make_loop() -> bytes:
    return by_h5py(lambda file: file.create_group("b").__setitem__("c", file["/"]))


# Links, names and headers that lie.


def make_two_links_that_count_one() -> bytes:
    def root(image: Image) -> int:
        array = image.dataset()
        return image.group([(b"a", array), (b"b", array)])

    return of(root)


def make_group_inside_itself() -> bytes:
    def root(image: Image) -> int:
        # The header of the root has 16 + 8 + 16 bytes, and what it leads to stands before it.
        address = len(image.data) + 16 + 328 + 64 + 32
        found = image.group([(b"a", address)])
        assert found == address
        return found

    return of(root)


def make_same_name_twice() -> bytes:
    return of(lambda image: image.group([(b"a", image.dataset()), (b"a", image.dataset())]))


def make_same_link_twice() -> bytes:
    def root(image: Image) -> int:
        links = [message(LINK, struct.pack("<BBB1sQ", 1, 0, 1, b"a", image.dataset())) for _ in range(2)]
        return image.header(_link_info(), message(GROUP_INFO, bytes(2)), *links)

    return of(root)


def make_soft_link_in_header() -> bytes:
    def root(image: Image) -> int:
        link = message(LINK, struct.pack("<BBBB1sH4s", 1, 8, 1, 1, b"a", 4, b"/x/y"))
        return image.header(_link_info(), message(GROUP_INFO, bytes(2)), link)

    return of(root)


def make_links_in_a_fractal_heap() -> bytes:
    return of(lambda image: image.header(_link_info(4096), message(GROUP_INFO, bytes(2))))


def _link_info(place: int = NOWHERE) -> bytes:
    return message(LINK_INFO, struct.pack("<BBQQ", 0, 0, place, NOWHERE))


def make_descending_names() -> bytes:
    return of(lambda image: image.group([(b"b", image.dataset()), (b"a", image.dataset())]))


def make_empty_name() -> bytes:
    return of(lambda image: image.group([(0, image.dataset())]))


def make_name_with_a_slash() -> bytes:
    return of(lambda image: image.group([(b"a/b", image.dataset())]))


def make_name_that_is_no_text() -> bytes:
    return of(lambda image: image.group([(b"\xff\xfe", image.dataset())]))


def make_name_outside_its_heap() -> bytes:
    return of(lambda image: image.group([(2**63, image.dataset())]))


def make_name_inside_a_name() -> bytes:
    return of(lambda image: image.group([(b"abcd", image.dataset()), (9, image.dataset())]))


def make_heap_without_an_end() -> bytes:
    return of(lambda image: image.group([(0, image.dataset())], heap=b"x" * 64))


def make_heap_with_a_name_that_leads_nowhere() -> bytes:
    return of(lambda image: image.group([(b"a", image.dataset())], heap=bytes(8) + b"lost\0\0\0\0"))


def make_heap_whose_free_parts_go_round() -> bytes:
    free = struct.pack("<QQ", 8, 16)
    return of(lambda image: image.header(image.symbols(image.tree(), bytes(8) + free, free=8)))


def make_heap_whose_free_part_is_too_long() -> bytes:
    free = struct.pack("<QQ", 1, 2**62)
    return of(lambda image: image.header(image.symbols(image.tree(), bytes(8) + free, free=8)))


def make_heap_of_another_kind() -> bytes:
    return of(lambda image: image.header(image.symbols(image.tree(), bytes(8), b"HIPS")))


def make_tree_that_leads_to_itself() -> bytes:
    def root(image: Image) -> int:
        return image.header(image.symbols(image.tree(len(image.data), level=1), bytes(8)))

    return of(root)


def make_tree_whose_levels_do_not_descend() -> bytes:
    def root(image: Image) -> int:
        inner = image.tree(level=3)
        return image.header(image.symbols(image.tree(inner, level=5), bytes(8)))

    return of(root)


def make_tree_that_counts_too_many() -> bytes:
    return of(lambda image: image.header(image.symbols(image.tree(count=9), bytes(8))))


def make_leaf_that_counts_too_many() -> bytes:
    def root(image: Image) -> int:
        table = struct.pack("<4sBxH", b"SNOD", 1, 65535).ljust(328, b"\0")
        return image.header(image.symbols(image.tree(image.add(table)), bytes(8)))

    return of(root)


def make_leaf_of_another_kind() -> bytes:
    return of(lambda image: image.header(image.symbols(image.tree(image.add(bytes(328))), bytes(8))))


def make_cached_soft_link() -> bytes:
    return of(lambda image: image.group([(b"a", image.dataset())], cache=2))


def make_group_elsewhere_than_its_name_says() -> bytes:
    return of(lambda image: image.group([(b"a", image.group([]))], cache=1))


def make_header_of_another_version() -> bytes:
    return beside(lambda image: image.dataset(version=2))


def make_header_without_links() -> bytes:
    return beside(lambda image: image.dataset(references=0))


def make_header_that_counts_too_few() -> bytes:
    return beside(lambda image: image.dataset(count=2))


def make_header_that_counts_too_many() -> bytes:
    return beside(lambda image: image.dataset(count=4))


def make_header_that_continues_in_itself() -> bytes:
    def member(image: Image) -> int:
        again = message(CONTINUATION, struct.pack("<QQ", len(image.data) + 16 + 8, 24))
        return image.dataset(again)

    return beside(member)


def make_message_longer_than_its_header() -> bytes:
    return beside(lambda image: image.header(struct.pack("<HHBxxx", SPACE, 65528, 0) + bytes(8)))


def make_shared_message() -> bytes:
    return beside(lambda image: image.dataset(message(ATTRIBUTE, bytes(16), flags=2)))


def make_unknown_message() -> bytes:
    return beside(lambda image: image.dataset(message(77, bytes(8))))


def make_two_shapes() -> bytes:
    return beside(lambda image: image.dataset(message(SPACE, space(3))))


def make_nothing() -> bytes:
    return beside(lambda image: image.header())


def make_root_that_is_a_dataset() -> bytes:
    return of(lambda image: image.dataset())


# Datasets whose bytes are not theirs.


def make_overlapping_datasets() -> bytes:
    return beside(lambda image: image.dataset(address=100))


def make_dataset_over_metadata() -> bytes:
    return beside(lambda image: image.dataset(address=0))


def make_dataset_outside_the_file() -> bytes:
    return beside(lambda image: image.dataset(address=2**40))


def make_dataset_at_a_negative_place() -> bytes:
    return beside(lambda image: image.dataset(address=2**64 - 8))


def make_dataset_that_does_not_fill_its_shape() -> bytes:
    return beside(lambda image: image.dataset(shape=space(3)))


def make_type_wider_than_what_is_stored() -> bytes:
    return beside(lambda image: image.dataset(kind=FLOAT64))


def make_size_of_2_to_63() -> bytes:
    return beside(lambda image: image.dataset(shape=space(2**61), size=2**63))


def make_shape_that_overflows() -> bytes:
    return beside(lambda image: image.dataset(shape=space(2**63, 2, 2), size=0))


def make_shape_of_zero_times_too_many() -> bytes:
    return beside(lambda image: image.dataset(shape=space(0, 2**63), size=0))


def make_rank_100() -> bytes:
    return beside(lambda image: image.dataset(shape=space(2, *[1] * 99)))


def make_shape_with_other_limits() -> bytes:
    return beside(lambda image: image.dataset(shape=space(2, limits=[4])))


def make_layout_of_another_version() -> bytes:
    return beside(lambda image: image.dataset(layout=(4, 1)))


def make_wrong_dtype_attribute() -> bytes:
    return beside(lambda image: image.dataset(text(b"dtype", b"bfloat16")))


# Attributes that lie.


def make_attribute_twice() -> bytes:
    return beside(lambda image: image.dataset(text(b"x", b"abcdefgh"), text(b"x", b"ABCDEFGH")))


def make_attribute_without_width() -> bytes:
    return beside(lambda image: image.dataset(text(b"x", b"", width=0)))


def make_attribute_list_without_width() -> bytes:
    return beside(lambda image: image.dataset(text(b"x", b"", shape=[2**60], width=0)))


def make_attribute_longer_than_its_message() -> bytes:
    return beside(lambda image: image.dataset(text(b"x", b"abcdefgh", width=2**31)))


def make_attribute_name_longer_than_its_message() -> bytes:
    return beside(lambda image: image.dataset(message(ATTRIBUTE, struct.pack("<BxHHH", 1, 65535, 8, 8))))


def make_attribute_that_is_no_text() -> bytes:
    return beside(lambda image: image.dataset(text(b"x", b"\xff\xfe\xfd\xfc")))


def _in_heap(image: Image, place: bytes, again: bool = False) -> int:
    attributes = [attribute(name, TEXT_IN_HEAP, space(), place) for name in (b"x", b"y")[: 1 + again]]
    return image.dataset(*attributes)


def _heap(image: Image, *, length: int = 4, index: int = 1) -> int:
    item = struct.pack("<HH4xQ", index, 1, length) + padded(b"text")
    return image.add(struct.pack("<4sB3xQ", b"GCOL", 1, 64) + item.ljust(48, b"\0"))


def make_string_in_no_heap() -> bytes:
    return beside(lambda image: _in_heap(image, struct.pack("<IQI", 4, 0, 1)))


def make_string_outside_the_file() -> bytes:
    return beside(lambda image: _in_heap(image, struct.pack("<IQI", 4, 2**40, 1)))


def make_string_of_4_gigabytes() -> bytes:
    return beside(lambda image: _in_heap(image, struct.pack("<IQI", 2**32 - 1, _heap(image), 1)))


def make_string_longer_than_its_heap() -> bytes:
    return beside(lambda image: _in_heap(image, struct.pack("<IQI", 4, _heap(image, length=2**62), 1)))


def make_string_that_is_not_in_its_heap() -> bytes:
    return beside(lambda image: _in_heap(image, struct.pack("<IQI", 4, _heap(image), 2)))


def make_string_of_two_attributes() -> bytes:
    return beside(lambda image: _in_heap(image, struct.pack("<IQI", 4, _heap(image), 1), again=True))


# The file as a whole.


def _good() -> bytes:
    return of(lambda image: image.group([(b"a", image.dataset())]))


def make_truncated() -> bytes:
    return _good()[:-8]


def make_truncated_superblock() -> bytes:
    return _good()[:40]


def make_trailing_bytes() -> bytes:
    return _good() + b"PK\3\4 and what else may follow"


def make_superblock_with_a_base() -> bytes:
    image = Image()
    return image.whole(image.group([]), base=8)


def make_superblock_with_a_driver() -> bytes:
    image = Image()
    return image.whole(image.group([]), driver=96)


def make_superblock_of_an_unknown_version() -> bytes:
    whole = bytearray(_good())
    whole[8] = 9
    return bytes(whole)


def make_root_outside_the_file() -> bytes:
    return Image().whole(2**63)


# Large files that ask for more than they hold.


def bomb_links(count: int = 100_000) -> bytes:
    """Return a group of many links to one array of 1 MB."""

    def root(image: Image) -> int:
        array = image.dataset(numbers=bytes(1 << 20), shape=space(1 << 18))
        return image.group([(b"%06d" % index, array) for index in range(count)])

    return of(root, leaf=1000)


def bomb_names(count: int = 100_000) -> bytes:
    """Return a group of many links whose names all run through one heap of 1 MB that does not end."""

    def root(image: Image) -> int:
        array = image.dataset()
        return image.group([(8 * index, array) for index in range(count)], heap=b"x" * (1 << 20))

    return of(root, leaf=1000)


def bomb_continuations(count: int = 65_534) -> bytes:
    """Return a header of many messages that each continue it with all of the file."""

    def root(image: Image) -> int:
        return image.header(*[message(CONTINUATION, struct.pack("<QQ", 0, 2**20))] * count)

    return of(root)


def bomb_attributes(count: int = 60_000) -> bytes:
    """Return a header of many attributes of no size, whose names of 32 kB overlap."""
    empty = message(ATTRIBUTE, struct.pack("<BxHHH", 1, 0x7F7F, 0, 0))
    return of(lambda image: image.header(*[empty] * count))


def bomb_long_path(count: int = 10_000) -> bytes:
    """Return a group with a name of 10 MB, and with many members whose paths all begin with it."""

    def root(image: Image) -> int:
        inner = image.group([(b"%06d" % index, image.dataset()) for index in range(count)])
        return image.group([(b"x" * 10**7, inner)])

    return of(root, leaf=1000)


def bomb_nested(count: int = 20_000) -> bytes:
    """Return groups inside groups."""

    def root(image: Image) -> int:
        inner = image.group([])
        for _ in range(count):
            inner = image.group([(b"a", inner)])
        return inner

    return of(root, leaf=1)


def bomb_empty_continuations(count: int = 65_534) -> bytes:
    """Return a header of many messages that continue it nowhere."""
    return of(lambda image: image.header(*[message(CONTINUATION, bytes(16))] * count))


def bomb_small_arrays(count: int = 10_000) -> bytes:
    """Return as many arrays as a file of this size can hold."""

    def root(image: Image) -> int:
        return image.group(
            [(b"%06d" % index, image.dataset(numbers=bytes(4), shape=space(1))) for index in range(count)]
        )

    return of(root, leaf=1000)


def bomb_groups(count: int = 5_000) -> bytes:
    """Return as many groups as a file of this size can hold."""

    def root(image: Image) -> int:
        groups = [(b"%06d" % index, image.group([])) for index in range(count)]
        return image.group([*groups, (b"a", image.dataset())])

    return of(root, leaf=1)


def functions(prefix: str) -> dict[str, Callable[[], bytes]]:
    """Return the functions of this file whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): made for name, made in globals().items() if name.startswith(prefix)}


if __name__ == "__main__":
    BAD.mkdir(exist_ok=True)
    for defect, make in functions("make_").items():
        (BAD / f"{defect}.h5").write_bytes(make())
