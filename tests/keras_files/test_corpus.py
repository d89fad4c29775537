"""Every defective file of the corpus is refused for its own reason and in bounded memory, and mutants of good ones are.

`tests/golden/make_bad.py` makes the corpus, `tests/stress` judges every mutant and holds the bound on time.
"""

import re
import tracemalloc

import pytest

import optax_kadam as ok

from ..golden import make_bad
from ..stress import flips

_APART = "Each byte of a file must belong to one thing in it."
_ASCEND = "The names in a group must ascend."
_COUNTED = "A header must hold as many messages as it counts."
_FILL = "A dataset must fill its shape."
_IN_HEAP = "A string must be in its heap."
_LINKED = "A header must have version 1 and one link that leads to it."
_NUMBERS = "A dataset must hold numbers."
_OBJECT = "An object must be described as h5py describes it."
_PIECE = "A dataset must be stored in one piece, uncompressed, in the file itself"
_SHAPE = "A shape must be that of an array."
_STRINGS = "An attribute must be a string or a list of strings."
_SUPERBLOCK = "An HDF5 file must begin as h5py lets it begin."
_SURE = "Every link must lead to something in the same file."
_VERSION = "An HDF5 file must have a superblock of version 0"
_WHOLE = "An HDF5 file must be whole."
_WITHIN = "A part must lie within its whole."

MUST = {
    "absurd_shape": _APART,
    "array_type": _NUMBERS,
    "attribute_list_without_width": _STRINGS,
    "attribute_longer_than_its_message": _STRINGS,
    "attribute_name_longer_than_its_message": _WITHIN,
    "attribute_of_numbers": _STRINGS,
    "attribute_of_references": _STRINGS,
    "attribute_of_two_dimensions": _STRINGS,
    "attribute_that_is_no_text": "A name must be text.",
    "attribute_twice": "An attribute must be there once.",
    "attribute_without_width": _STRINGS,
    "big_endian": _NUMBERS,
    "cached_soft_link": _SURE,
    "chunked": _PIECE,
    "committed_type": "A header must hold its own messages.",
    "compact": _PIECE,
    "compound": _NUMBERS,
    "compressed": _PIECE,
    "dataset_at_a_negative_place": _APART,
    "dataset_outside_the_file": _APART,
    "dataset_over_metadata": _APART,
    "dataset_that_does_not_fill_its_shape": _FILL,
    "descending_names": _ASCEND,
    "empty_name": _ASCEND,
    "enum": _NUMBERS,
    "external_link": _SURE,
    "external_storage": _PIECE,
    "fixed_string": _NUMBERS,
    "group_elsewhere_than_its_name_says": "A group must be where its name leads.",
    "group_inside_itself": _APART,
    "header_of_another_version": _LINKED,
    "header_that_continues_in_itself": _APART,
    "header_that_counts_too_few": _COUNTED,
    "header_that_counts_too_many": _COUNTED,
    "header_without_links": _LINKED,
    "heap_of_another_kind": "A group must have a heap of names.",
    "heap_whose_free_part_is_too_long": _WITHIN,
    "heap_whose_free_parts_go_round": "The free parts of a heap must lie apart.",
    "heap_with_a_name_that_leads_nowhere": "Each name in a group must lead to a member.",
    "heap_without_an_end": _ASCEND,
    "layout_of_another_version": _PIECE,
    "leaf_of_another_kind": "The leaves of a B-tree must be tables of symbols.",
    "leaf_that_counts_too_many": _ASCEND,
    "links_in_a_fractal_heap": "A group of more than 8 members must have names in ASCII.",
    "loop": _LINKED,
    "message_longer_than_its_header": _WITHIN,
    "name_inside_a_name": _ASCEND,
    "name_outside_its_heap": _ASCEND,
    "name_that_is_no_text": "A name must be text.",
    "name_with_a_slash": "A member must have a name, and a path of at most 10000 characters.",
    "newest_version": _VERSION,
    "nothing": _OBJECT,
    "null_attribute": _WITHIN,
    "null_dataspace": _SHAPE,
    "object_reference": _NUMBERS,
    "opaque": _NUMBERS,
    "overlapping_datasets": _APART,
    "rank_100": _SHAPE,
    "region_reference": _NUMBERS,
    "root_outside_the_file": _APART,
    "root_that_is_a_dataset": "The root of an HDF5 file must be a group.",
    "same_link_twice": "A name must stand in a group once.",
    "same_name_twice": _ASCEND,
    "shape_of_zero_times_too_many": _FILL,
    "shape_that_overflows": _FILL,
    "shape_with_other_limits": _SHAPE,
    "shared_message": "A header must hold its own messages.",
    "size_of_2_to_63": _FILL,
    "soft_link": _SURE,
    "soft_link_in_header": _SURE,
    "string_in_no_heap": "A string must be in a heap.",
    "string_longer_than_its_heap": _WITHIN,
    "string_of_4_gigabytes": _IN_HEAP,
    "string_of_two_attributes": _IN_HEAP,
    "string_outside_the_file": "A part must lie within its file.",
    "string_that_is_not_in_its_heap": _IN_HEAP,
    "superblock_of_an_unknown_version": _SUPERBLOCK,
    "superblock_with_a_base": _SUPERBLOCK,
    "superblock_with_a_driver": _SUPERBLOCK,
    "tracked_order": _LINKED,
    "trailing_bytes": _WHOLE,
    "tree_that_counts_too_many": _APART,
    "tree_that_leads_to_itself": _APART,
    "tree_whose_levels_do_not_descend": "A B-tree must consist of nodes.",
    "truncated": _WHOLE,
    "truncated_superblock": _WHOLE,
    "two_links": _LINKED,
    "two_links_that_count_one": _APART,
    "two_shapes": _OBJECT,
    "type_wider_than_what_is_stored": _FILL,
    "unknown_message": _OBJECT,
    "unwritten": _APART,
    "user_block": "`path` must be a file that Keras saved.",
    "version_of_2012": _VERSION,
    "virtual_dataset": _PIECE,
    "vlen_numbers": _NUMBERS,
    "vlen_string": _NUMBERS,
    "wrong_dtype_attribute": "The attribute `dtype` must be the dataset's type.",
}

BOMBS = {
    "attributes": _OBJECT,
    "continuations": _APART,
    "empty_continuations": _OBJECT,
    "groups": "must belong to a layer or to the optimizer",
    "links": _APART,
    "long_path": "a path of at most 10000 characters",
    "names": _ASCEND,
    "nested": "Groups may be nested 100 times.",
    "small_arrays": "must belong to a layer or to the optimizer",
}


def refused(path):
    """Return what `load_keras` says of a file, and the largest number of bytes that it held meanwhile."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            ok.load_keras(path)
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def most_memory(path):
    return 2 * path.stat().st_size + 50 * 10**6


def test_the_table_and_the_corpus_name_the_same_defects():
    files = {path.stem for path in make_bad.BAD.glob("*.h5")}
    assert set(MUST) == files == set(make_bad.functions("make_"))
    assert set(BOMBS) == set(make_bad.functions("bomb_"))


@pytest.mark.parametrize("defect", MUST)
def test_a_defective_file_is_refused_for_its_defect(defect):
    path = make_bad.BAD / f"{defect}.h5"
    message, memory = refused(path)
    assert message.startswith(MUST[defect]) and flips.GRAMMAR.fullmatch(message)
    assert memory < most_memory(path)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_bounded_memory(bomb, tmp_path):
    path = tmp_path / "bomb.weights.h5"
    path.write_bytes(make_bad.functions("bomb_")[bomb]())
    message, memory = refused(path)
    assert re.search(BOMBS[bomb], message) and flips.GRAMMAR.fullmatch(message)
    assert memory < most_memory(path)


@pytest.mark.parametrize("name", flips.SAMPLES)
def test_a_mutant_gives_its_arrays_or_is_refused(name):
    with flips.placed(name) as place:
        outcomes = [(mutant, *place.judge(mutant)) for mutant in flips.sampled(place, 60, seed=0)]
    assert not [outcome for outcome in outcomes if outcome[1] in ("LOST", "ERROR")]
    assert {"same", "refused"} & {kind for _, kind, _ in outcomes}
