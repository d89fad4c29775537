"""`rename`: what Keras's paths are called in a tree, and how its leaves hold Keras's arrays."""

from collections.abc import Callable, Iterable, Mapping

from optax_kadam.conversions import Conversion

Named = str | Mapping[str, Conversion]
Rename = Mapping[str, Named] | Callable[[str], str | None]


def renamed(path: str, rename: Rename | None) -> dict[str, Conversion | None]:
    """Return what `path` is called after `rename`: one name, or the leaf paths and conversions of a mapping's value.

    Of the keys that are found in the path, the longest take their parts first, and what is left goes to the shorter.
    """
    if rename is None:
        return {path: None}
    if callable(rename):
        return {rename(path) or path: None}
    parts = path.removesuffix(":0").split("/")
    found = _found(parts, rename)
    names: dict[str, Conversion | None] = {"": None}
    at = 0
    while at < len(parts):
        at, value = found.get(at, (at + 1, parts[at]))
        added = value if isinstance(value, Mapping) else {value: None}
        names = {
            "/".join(filter(None, (name, more.strip("/")))): conversion or given
            for name, conversion in names.items()
            for more, given in added.items()
        }
    return names if found else {path: None}


def _found(parts: list[str], rename: Mapping[str, Named]) -> dict[int, tuple[int, Named]]:
    """Return the keys of `rename` that apply: for the place of the first part, the place after the last and the value.

    A key applies once in a path, where it stands first.
    """
    found: dict[int, tuple[int, Named]] = {}
    taken: set[int] = set()
    used: set[str] = set()
    for length in range(len(parts), 0, -1):
        for start in range(len(parts) - length + 1):
            places, key = range(start, start + length), "/".join(parts[start : start + length])
            key = key if key in rename else f"{key}:0"
            if key in rename and key not in used and taken.isdisjoint(places):
                found[start] = start + length, rename[key]
                taken.update(places)
                used.add(key)
    return found


def check_rename(rename: object, paths: Iterable[str]) -> None:
    """Raise if `rename` is none, or has a key that is no part of any of Keras's `paths`."""
    if rename is None or callable(rename):
        return
    if not isinstance(rename, Mapping):
        raise TypeError(
            f"`rename` must be a mapping or a function. Received: rename={rename!r}. "
            "Hand over `{part of a path of Keras's: what it is called here}`."
        )
    for key, value in rename.items():
        converted = isinstance(value, Mapping) and value and all(map(callable, value.values()))
        if not isinstance(key, str) or not (isinstance(value, str) or converted):
            raise TypeError(
                "`rename` must say for each path a path, or a mapping of paths to conversions. "
                f"Received: {key!r}: {value!r}. "
                "A conversion is a function of an array: see `optax_kadam.conversions`."
            )
    if unused := unused_keys(rename, paths):
        raise ValueError(
            f"`rename` must name parts of Keras's paths. Received: {', '.join(map(repr, unused))}. "
            f"The paths are {', '.join(paths)}."
        )


def unused_keys(rename: Mapping[str, object], paths: Iterable[str]) -> list[str]:
    """Return the keys of `rename` that are no part of any of `paths`."""
    within = [f"/{path.removesuffix(':0')}/" for path in paths]
    return [key for key in rename if not any(f"/{key.removesuffix(':0')}/" in path for path in within)]
