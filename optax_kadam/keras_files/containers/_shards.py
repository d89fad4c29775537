"""The shards of a `.weights.json` are put together: Keras 3 cuts large weights into several HDF5 files.

The `weight_map` in that file, the index, leads from the path of each group that has arrays to the name of its shard, or
to a list of names. It must list what the shards hold, neither more nor less: what it leaves out, Keras would not load.

Source: `ShardedH5IOStore` in `keras/src/saving/saving_lib.py` (Keras 3.15).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._named_arrays import Attributes, Group
from optax_kadam.keras_files._source import UNTRUSTED

_MOST_SHARDS = 1000  # Of 5 GB each, unless Keras is told otherwise.
_FILE_NAME = re.compile(r"(?!\.\.?$)[^/\\:\0-\x1f\x7f]+")
_COPY_ALL = "Copy the index and all shards again."


def read_shards(index: Mapping[str, object], where: str, read: Callable[[str], Group]) -> Group:
    """Return the root group of the file that was cut into the shards of a `.weights.json`.

    Args:
      index: the JSON object in that file.
      where: the name of that file, for messages.
      read: the function from the name of a shard to its root group. It is called once for each.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"The index of shards must hold a `weight_map`. Received: {where!r}, in which it is "
            f"{str(weight_map)[:50]}. Hand over the `.weights.json` that Keras wrote."
        )
    groups_of: dict[str, list[Sequence[str]]] = {}
    for path, names in weight_map.items():
        parts = _parts(path)
        for name in _checked(names, path, where):
            groups_of.setdefault(name, []).append(parts)
    if len(groups_of) > _MOST_SHARDS:
        raise ValueError(
            f"There may be {_MOST_SHARDS} shards. Received: {where!r}, which lists {len(groups_of)}. "
            "Save the weights again with a larger `max_shard_size`."
        )
    shards = {name: read(name) for name in sorted(groups_of)}
    for name, shard in shards.items():
        _check_listed(shard, groups_of[name], name, where)
    return _merged(list(shards.values()), where)


def _checked(names: object, path: str, where: str) -> Sequence[str]:
    """Return the names of the shards that hold the group at `path`, of which there is one or a list."""
    listed: list[str] = []
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise ValueError(
                f"A shard must be a file beside its index. Received: {where!r}, which lists {str(name)[:50]!r} for "
                f"{path[:50]!r}. {UNTRUSTED}"
            )
        listed.append(name)
    if not listed or len(listed) > len(set(listed)):
        raise ValueError(
            f"A `weight_map` must list each shard of a group once. Received: {where!r}, which lists {len(listed)} for "
            f"{path[:50]!r}, {len(set(listed))} of them different. {UNTRUSTED}"
        )
    return listed


def _parts(path: str) -> Sequence[str]:
    return [part for part in path.split("/") if part]


def _check_listed(shard: Group, listed: Sequence[Sequence[str]], name: str, where: str) -> None:
    """Raise if the groups with arrays in a shard are not those of the index."""
    found = set()
    for parts in listed:
        group: Group | None = shard
        for part in parts:
            group = group.groups.get(part) if group else None
        if group is None or not group.arrays or id(group) in found:
            raise _other_than_listed(parts, "not in it or listed twice", name, where)
        found.add(id(group))
    for group, parts in _with_arrays(shard):
        if id(group) not in found:
            raise _other_than_listed(parts, "in it but not listed", name, where)


def _other_than_listed(parts: Sequence[str], how: str, name: str, where: str) -> ValueError:
    path = "/".join(["", *parts])
    return ValueError(
        f"A shard must hold what its index lists. Received: {where!r} and {name!r}, where {path[:100]!r} is {how}. "
        f"{_COPY_ALL}"
    )


def _with_arrays(group: Group, parts: tuple[str, ...] = ()) -> Iterator[tuple[Group, tuple[str, ...]]]:
    if group.arrays:
        yield group, parts
    for key, inner in group.groups.items():
        yield from _with_arrays(inner, (*parts, key))


def _merged(pieces: Sequence[Group], where: str) -> Group:
    """Return the groups of one path, each of another shard, as one."""
    attributes: dict[str, str | list[str]] = {}
    arrays: dict[str, LazyArray] = {}
    inner: dict[str, list[Group]] = {}
    for group in pieces:
        if repeated := arrays.keys() & group.arrays.keys():
            raise ValueError(
                f"An array must be in one shard. Received: {where!r}, of which two shards hold {min(repeated)[:50]!r}. "
                f"{_COPY_ALL}"
            )
        if differing := _differing(attributes, group.attrs):
            raise ValueError(
                f"An attribute must be the same in every shard. Received: {where!r}, of which two shards have another "
                f"{differing[:50]!r}. {_COPY_ALL}"
            )
        attributes |= group.attrs
        arrays |= group.arrays
        for key, member in group.groups.items():
            inner.setdefault(key, []).append(member)
    groups = {key: _merged(members, where) for key, members in inner.items()}
    return Group(attributes, arrays, groups)


def _differing(some: Attributes, others: Attributes) -> str | None:
    return next((key for key, value in others.items() if some.get(key, value) != value), None)
