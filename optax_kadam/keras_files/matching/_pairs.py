"""Which layer of Keras's is which part of a tree: proposed where shapes, names and order leave one answer.

Each layer has candidates: the places in the tree whose leaves have the words and shapes that its variables would have
there. Where several layers have the same candidates, a word that a layer shares with one place alone decides, then the
numbers in the names, taken in order. Where neither does, nothing is proposed: leaves of equal shape would be
exchanged silently.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from optax_kadam.conversions import Conversion
from optax_kadam.keras_files.matching._rename import renamed
from optax_kadam.keras_files.matching._words import (
    LeafShape,
    Shape,
    bare,
    conversions,
    converted_shape,
    flax_path,
    kernel_hints,
    library_names,
    same_but_for_ones,
    same_layer,
)

Candidates = dict[str, frozenset[str]]  # By the place in the tree, the leaves there that a layer would have.


def paired(
    leaves: Mapping[str, LeafShape], shapes: Mapping[str, Shape], required: Sequence[str], model: str | None
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return a `rename` for all layers that can be told, and the candidates of the others.

    Args:
      leaves: what is known of the leaves, by path.
      shapes: the shapes of Keras's variables by path, in Keras's order.
      required: the paths of the variables that must be among the leaves.
      model: the first part of all of Keras's paths, if that is the model's name.
    """
    needed = set(required or shapes)
    layers: dict[str, list[str]] = {}
    for path in shapes:
        layers.setdefault(_layer(path, model), []).append(path)
    layers = {layer: paths for layer, paths in layers.items() if layer and needed.intersection(paths)}
    inside: dict[str, set[str]] = {}
    for path in leaves:
        inside.setdefault(path.rpartition("/")[0], set()).add(path)
    places = list(dict.fromkeys(folder for path in leaves for folder in _folders(path)))
    known: dict[object, Candidates] = {}  # Layers of one kind have the same candidates.
    options: dict[str, Candidates] = {}
    for layer, paths in layers.items():
        kind = _kind(layer), *((path.rpartition("/")[2], shapes[path], path in needed) for path in paths)
        if kind not in known:
            held = {place: _held(paths, place, leaves, inside, shapes, needed) for place in places}
            known[kind] = {place: found for place, found in held.items() if found}
        options[layer] = known[kind]
    for layer, candidates in options.items():  # What has the same name in both needs no other.
        own = next((place for place in candidates if _same_path(layer, place)), None)
        options[layer] = candidates if own is None else {own: candidates[own]}
    settled, undecided = _settled(options)
    left = set(leaves).difference(*(options[layer][place] for layer, place in settled.items()))
    alone = {
        bare(path, model): {
            leaf: frozenset({leaf}) for leaf in left if _is_alike(path, shapes[path], leaves[leaf].shape)
        }
        for path in shapes
        if path in needed and _layer(path, model) not in settled and not undecided.get(_layer(path, model))
    }
    undecided = {layer: places for layer, places in undecided.items() if places}
    variables, more = _settled(alone)
    undecided |= {path: places for path, places in more.items() if places}
    return _shortest(settled | variables, [bare(path, model) for path in shapes]), undecided


def _layer(path: str, model: str | None) -> str:
    return bare(path, model).rpartition("/")[0]


def _kind(layer: str) -> tuple[str, tuple[str, ...]]:
    """Return what the name of a layer says of its kind: its last part, and the words that tell kernels apart."""
    return re.sub(r"\d+", "", layer.rpartition("/")[2]), kernel_hints(layer)


def _folders(path: str) -> Iterator[str]:
    parts = path.split("/")[:-1]
    for end in range(len(parts) + 1):
        yield "/".join(parts[:end])


def _held(
    paths: Iterable[str],
    place: str,
    leaves: Mapping[str, LeafShape],
    inside: Mapping[str, set[str]],
    shapes: Mapping[str, Shape],
    needed: Collection[str],
) -> frozenset[str]:
    """Return the leaves of a layer with the variables `paths` if it is at `place`, and none if it cannot be."""
    held: set[str] = set()
    for path in paths:
        name = path.removesuffix(":0").rpartition("/")[2]
        written = f"{place}/{name}" if place else name
        ways = [{written: None}, {flax_path(written): None}, *library_names(path, written, shapes)]
        for names in ways:
            if all(leaf in leaves and _fits(path, shapes[path], leaf, leaves[leaf], names[leaf]) for leaf in names):
                held.update(names)
                break
        else:
            if path in needed:
                return frozenset()
    is_whole = all(inside[folder] <= held for folder in {leaf.rpartition("/")[0] for leaf in held})
    return frozenset(held) if is_whole else frozenset()


def _fits(path: str, shape: Shape, leaf: str, known: LeafShape, given: Conversion | None) -> bool:
    possible = [given] if given else conversions(path, shape, leaf, known.layer)
    return any(same_but_for_ones(converted_shape(made, shape), known.shape) for made in possible)


def _is_alike(path: str, shape: Shape, other: Shape) -> bool:
    """Return whether a leaf of another name may be the variable; a square kernel may be transposed."""
    return shape == other and (
        len(shape) < 2 or shape[-1] != shape[-2] or not path.removesuffix(":0").endswith("kernel")
    )


def _settled(options: Mapping[str, Candidates]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the place of each layer that has one alone, and the candidates of the others."""
    open_ = {layer: dict(candidates) for layer, candidates in options.items()}
    settled: dict[str, str] = {}
    while True:
        found = {layer: next(iter(places)) for layer, places in open_.items() if len(places) == 1}
        if len(set(found.values())) < len(found):  # Two layers have one place between them.
            found = {layer: place for layer, place in found.items() if list(found.values()).count(place) == 1}
        found = found or _told_apart(open_)
        if not found:
            return settled, {layer: list(places) for layer, places in open_.items()}
        settled |= found
        taken = frozenset().union(*(options[layer][place] for layer, place in found.items()))
        open_ = {
            layer: {place: held for place, held in candidates.items() if not held & taken}
            for layer, candidates in open_.items()
            if layer not in found
        }


def _told_apart(options: Mapping[str, Candidates]) -> dict[str, str]:
    """Return the places of layers that have as many candidates in common as there are layers, told apart by names."""
    groups: dict[frozenset[str], list[str]] = {}
    for layer, candidates in options.items():
        if candidates:
            groups.setdefault(frozenset(candidates), []).append(layer)
    for places, layers in groups.items():
        claimed_by_others = any(places & other for other in groups if other != places)
        if len(places) == len(layers) and not claimed_by_others:
            pairs = _by_words(layers, [place for place in options[layers[0]] if place in places])
            if pairs:
                return pairs
    return {}


def _by_words(layers: Sequence[str], places: Sequence[str]) -> dict[str, str]:
    """Return the pairs of layers and places of which one shares a word with the other alone, and then a number."""
    ours, theirs = _classes(layers), _classes(places)
    if len(ours) == len(theirs) == 1:
        return _by_numbers(layers, places)
    common, shared = _common(ours), _common(theirs)
    scores = {
        (words, others): sum(any(_alike(a, b) for b in set(others) - shared) for a in set(words) - common)
        for words in ours
        for others in theirs
    }
    pairs = {}
    for words in ours:
        best = _best({others: scores[words, others] for others in theirs})
        if best is not None and _best({back: scores[back, best] for back in ours}) == words:
            pairs[words] = best
    rest = [words for words in ours if words not in pairs], [w for w in theirs if w not in pairs.values()]
    if pairs and len(rest[0]) == len(rest[1]) == 1:
        pairs[rest[0][0]] = rest[1][0]
    found: dict[str, str] = {}
    for words, others in pairs.items():
        if len(ours[words]) == len(theirs[others]):
            found |= _by_numbers(ours[words], theirs[others])
    return found


def _classes(paths: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    """Return the paths by the words in them, without the numbers."""
    classes: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", path)
        classes.setdefault(tuple(word.lower() for word in words), []).append(path)
    return classes


def _common(classes: Iterable[Sequence[str]]) -> set[str]:
    return set.intersection(*map(set, classes))


def _alike(word: str, other: str) -> bool:
    """Return whether one word is the other or its beginning, as `norm` is that of `normalization`."""
    short, long = sorted((word, other), key=len)
    return word == other or (len(short) > 2 and long.startswith(short))


def _best(scores: Mapping[tuple[str, ...], int]) -> tuple[str, ...] | None:
    """Return what has the highest score, if that is above zero and no other has it."""
    highest = max(scores.values())
    best = [words for words, score in scores.items() if score == highest]
    return best[0] if highest > 0 and len(best) == 1 else None


def _by_numbers(layers: Sequence[str], places: Sequence[str]) -> dict[str, str]:
    """Return the pairs in the order of the numbers in the names, which must be Keras's order too."""
    numbers = [_numbers(place) for place in places]
    if sorted(layers, key=_numbers) != list(layers) or len(set(numbers)) < len(numbers):
        return {}
    return dict(zip(layers, sorted(places, key=_numbers), strict=True))


def _numbers(path: str) -> tuple[int, ...]:
    """Return the last number in each part of a path, and -1 for a part without one."""
    return tuple(int((re.findall(r"\d+", part) or [-1])[-1]) for part in path.split("/"))


def _shortest(pairs: Mapping[str, str], paths: Sequence[str]) -> dict[str, str]:
    """Return the shortest `rename` that brings each layer to its place, without what has its name already."""
    short: dict[str, str] = {}
    for layer, place in pairs.items():
        ours, theirs = layer.split("/"), place.split("/")
        while len(ours) > 1 and same_layer(ours[-1], theirs[-1] if theirs else ""):
            ours, theirs = ours[:-1], theirs[:-1]
        key, value = "/".join(ours), "/".join(theirs)
        if short.setdefault(key, value) != value:
            short[layer] = place
    short = {key: value for key, value in short.items() if not _same_path(key, value)}
    return short if _leads(short, pairs, paths) else dict(pairs)


def _leads(rename: Mapping[str, str], pairs: Mapping[str, str], paths: Sequence[str]) -> bool:
    """Return whether `rename` brings the variables of each layer to its place."""
    for path in paths:
        layer, _, name = path.rpartition("/")
        [written] = renamed(path, rename)
        for given, rest in ((path, ""), (layer, name)):
            if given in pairs and not _same_path(written, "/".join(filter(None, (pairs[given], rest)))):
                return False
    return True


def _same_path(ours: str, theirs: str) -> bool:
    parts, others = ours.split("/"), theirs.split("/")
    return len(parts) == len(others) and all(map(same_layer, parts, others))
