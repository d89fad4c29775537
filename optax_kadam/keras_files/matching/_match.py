"""Each leaf of a tree is matched with one of Keras's variables or a part of one: by path, or in a list by position."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax

from optax_kadam.keras_files.matching._leaves import is_flat, leaf_path, leaves_of
from optax_kadam.keras_files.matching._origin import Origin, check_moves_only, origin_of
from optax_kadam.keras_files.matching._pairs import paired
from optax_kadam.keras_files.matching._rename import Rename, check_rename, renamed
from optax_kadam.keras_files.matching._words import LeafShape, Names, Shape, bare, flax_path, library_names


def match_leaves(
    tree: object,
    shapes: Mapping[str, Shape],
    rename: Rename | None,
    required: Sequence[str],
    skip: Sequence[str] = (),
) -> list[Origin | None]:
    """Return the origin of each leaf of `tree`, and None for one that is skipped.

    Args:
      tree: a tree of arrays; the leaves of a flat list are matched by position.
      shapes: the shapes of Keras's variables by path, in Keras's order, first those in `required`.
      rename: what Keras's paths are called in `tree`, and how they are held there: see `KerasTraining.restore`.
      required: the paths of the variables that must be in `tree`.
      skip: leaves and variables that need no counterpart: see `KerasTraining.restore`.

    Raises:
      ValueError: if a leaf or a variable has no counterpart, or more than one; or if a conversion cannot be undone.
      TypeError: if `rename` or `skip` is of another kind.
    """
    check_skip(skip)
    check_rename(rename, shapes)
    leaves = leaves_of(tree)
    if is_flat(tree):
        if len(leaves) not in (len(shapes), len(required)) or skip:
            wanted = required or list(shapes)
            raise ValueError(
                f"A list must hold an array for each of Keras's trainable variables. Received: {len(leaves)} arrays "
                f"for {len(wanted)} variables: {', '.join(wanted)}."
                + (" Hand a tree with names over, of which `skip` can name some." if skip else "")
            )
        return [Origin(path) for path in list(shapes)[: len(leaves)]]
    matching = _Matching(leaves, shapes, rename, required, skip)
    if matching.problems:
        raise _unmatched(
            matching, "The leaves must be Keras's variables, and among them all trainable ones, one for one."
        )
    origins = matching.origins()
    return [origins.get(leaf_path(path)) for path, _ in jax.tree.leaves_with_path(tree)]


def match_some(
    leaves: Mapping[str, LeafShape], shapes: Mapping[str, Shape], rename: Rename | None, at_least: int = 1
) -> dict[str, Origin]:
    """Return the origins of the leaves that are variables of Keras's, by path; the others are left out.

    Args:
      leaves: what is known of the leaves, by path.
      shapes: the shapes of Keras's variables by path.
      rename: what Keras's paths are called among `leaves`: see `match_leaves`.
      at_least: how many leaves must be a variable.

    Raises:
      ValueError: if too few leaves are a variable, a leaf could be several, a variable is held several times or in
        part, or it is not known how.
      TypeError: if `rename` is of another kind.
    """
    check_rename(rename, shapes)
    matching = _Matching(leaves, shapes, rename, ())
    doubtful = matching.problems[1:] if None in matching.candidates.values() else matching.problems
    if doubtful or sum(map(bool, matching.candidates.values())) < at_least:
        raise _unmatched(matching, "The variables must be leaves, each once.")
    return matching.origins()


def suggest(tree: object, shapes: Mapping[str, Shape], required: Sequence[str]) -> dict[str, str]:
    """Return a `rename` with which `match_leaves` matches `tree`: see `suggest_rename`."""
    if is_flat(tree):
        raise TypeError(
            f"`params` must be a tree with names. Received: params={type(tree).__name__} of arrays. "
            "Those of a list are in Keras's order, and need no `rename`."
        )
    leaves = leaves_of(tree)
    matching = _Matching(leaves, shapes, None, required)
    proposal, undecided = matching.proposal() if matching.problems else ({}, {})
    tried = _Matching(leaves, shapes, proposal, required)
    if undecided or tried.problems:
        raise ValueError(
            "Shapes, names and order must tell which of Keras's layers is which part of `params`. "
            f"Received: {'; '.join(tried.problems)}. Write a `rename`{_shown(proposal, undecided)}."
        )
    try:
        tried.origins()
    except ValueError as error:
        raise ValueError(f"{error} The rest is rename={proposal}.") from None
    return proposal


def _unmatched(matching: "_Matching", must: str) -> ValueError:
    counts = f"{len(matching.leaves)} leaves for {len(matching.shapes)} variables"
    return ValueError(
        f"{must} Received: {'; '.join(matching.problems)}; {counts}. "
        f"Say what Keras's paths are called here with `rename`{_shown(*matching.proposal())}."
    )


def _shown(proposal: Mapping[str, str], undecided: Mapping[str, Sequence[str]]) -> str:
    """Return what is known of a `rename`, as the end of a sentence."""
    open_ = [f"{layer!r} may be {' or '.join(map(repr, places))}" for layer, places in undecided.items()]
    return f": rename={dict(proposal)}" * bool(proposal) + f"; {'; '.join(open_)}" * bool(open_)


class _Matching:
    """Leaves and variables, brought together as far as they go."""

    def __init__(
        self,
        leaves: Mapping[str, LeafShape],
        shapes: Mapping[str, Shape],
        rename: Rename | None,
        required: Sequence[str],
        skip: Sequence[str] = (),
    ):
        known = _known_as(shapes, rename)
        kept, self.unwanted = _skipped(skip, leaves, known)
        self.leaves = {path: leaf for path, leaf in leaves.items() if path not in kept}
        self.shapes = shapes
        self.required = [path for path in required if path not in self.unwanted]
        self.candidates = {path: _candidate(known.get(path, []), path, self.leaves) for path in self.leaves}
        self.problems = _problems(self.candidates, self.required, list(shapes))

    def origins(self) -> dict[str, Origin]:
        """Return the origins of the leaves by path."""
        origins: dict[str, Origin] = {}
        for path, candidate in self.candidates.items():
            if candidate:
                variable, given = candidate.variable, candidate.names[path]
                shape = self.shapes[variable]
                origins[path] = (
                    Origin(variable, given) if given else origin_of(path, self.leaves[path], variable, shape)
                )
        for variable in {c.variable for c in self.candidates.values() if c and c.is_given}:
            parts = [origin.conversion for origin in origins.values() if origin.variable == variable]
            check_moves_only(variable, parts, self.shapes[variable])
        return origins

    def proposal(self) -> tuple[dict[str, str], dict[str, list[str]]]:
        """Return a `rename` as far as it can be told, and the candidates of the layers that it leaves out."""
        shapes = {path: shape for path, shape in self.shapes.items() if path not in self.unwanted}
        return paired(self.leaves, shapes, self.required, model_name(self.shapes))


class _Candidate(NamedTuple):
    """A variable that a leaf may hold: alone or with the other leaves in `names`, which `rename` may have given."""

    variable: str
    names: Names
    is_given: bool


def _known_as(shapes: Mapping[str, Shape], rename: Rename | None) -> dict[str, list[_Candidate]]:
    """Return Keras's variables by every path that may mean them.

    A path of Keras's goes before one in Flax's words, and that before the parts and transposes of a library's.
    """
    model = model_name(shapes)
    levels: list[dict[str, list[_Candidate]]] = [{}, {}, {}]
    for path in shapes:
        written = renamed(path, rename)
        is_given = any(written.values())
        for form in [written, {bare(name, model): given for name, given in written.items()}]:
            form = {name.removesuffix(":0"): given for name, given in form.items()}
            _add(levels[0], _Candidate(path, form, is_given))
            if not is_given:
                for name in form:
                    _add(levels[1], _Candidate(path, {flax_path(name): None}, False))
                    for names in library_names(path, name, shapes):
                        _add(levels[2], _Candidate(path, names, False))
    return {**levels[2], **levels[1], **levels[0]}


def _add(known: dict[str, list[_Candidate]], candidate: _Candidate) -> None:
    for name in candidate.names:
        listed = known.setdefault(name, [])
        if not any(
            other.variable == candidate.variable and other.names.keys() == candidate.names.keys() for other in listed
        ):
            listed.append(candidate)


def model_name(paths: Iterable[str]) -> str | None:
    """Return the name of the model: the first part of the paths, if it is the same in all and more follows in each."""
    firsts = {path.partition("/")[0] if "/" in path else None for path in paths}
    return firsts.pop() if len(firsts) == 1 else None


def _skipped(
    skip: Sequence[str], leaves: Collection[str], known: Mapping[str, Sequence[_Candidate]]
) -> tuple[set[str], set[str]]:
    """Return the leaves and the variables that `skip` names."""
    kept, unwanted = set(), set()
    for part in skip:
        named = {path for path in leaves if starts_with(path, part)}
        variables = {c.variable for name, listed in known.items() for c in listed if starts_with(name, part)}
        variables |= {c.variable for listed in known.values() for c in listed if starts_with(c.variable, part)}
        if not named and not variables:
            raise ValueError(
                f"`skip` must name leaves or Keras's variables, by their paths or how these begin. Received: {part!r}. "
                f"The leaves are {', '.join(leaves)}."
            )
        kept, unwanted = kept | named, unwanted | variables
    return kept, unwanted


def starts_with(path: str, part: str) -> bool:
    """Return whether `part` is a path or its beginning."""
    return f"{path.removesuffix(':0')}/".startswith(f"{part.removesuffix(':0').strip('/')}/")


def check_skip(skip: object) -> None:
    """Raise if `skip` is no list of paths."""
    if isinstance(skip, str) or not isinstance(skip, Sequence) or not all(isinstance(part, str) for part in skip):
        raise TypeError(f"`skip` must be a list of paths. Received: skip={skip!r}. Hand over a list of strings.")


def _candidate(listed: Sequence[_Candidate], path: str, leaves: Collection[str]) -> _Candidate | None:
    """Return the candidate for a leaf, or None without one; rather one all of whose leaves are there."""
    variables = list(dict.fromkeys(candidate.variable for candidate in listed))
    if len(variables) > 1:
        raise ValueError(
            f"A leaf must be one of Keras's variables. Received: {path!r}, which could be "
            f"{' or '.join(variables)}. Say which with `rename`."
        )
    whole = [candidate for candidate in listed if all(name in leaves for name in candidate.names)]
    return next(iter([*whole, *listed]), None)


def _problems(
    candidates: Mapping[str, _Candidate | None], required: Sequence[str], variables: Sequence[str]
) -> list[str]:
    """Return what keeps leaves and variables from being matched one for one."""
    holders: dict[str, list[str]] = {}
    for path, candidate in candidates.items():
        if candidate:
            holders.setdefault(candidate.variable, []).append(path)
    problems = []
    for missing, others, what in (
        ([path for path, candidate in candidates.items() if candidate is None], variables, "variable"),
        ([path for path in required if path not in holders], list(candidates), "leaf"),
    ):
        if missing:
            near = difflib.get_close_matches(missing[0], others, 1, 0.3)
            listed = ", ".join(map(repr, missing))
            problems.append(f"no {what} for {listed}{f' (near: {near[0]!r})' if near else ''}")
    for variable, paths in sorted(holders.items()):
        names = {name: None for path in paths for name in getattr(candidates[path], "names", ())}
        absent = [name for name in names if name not in candidates]
        several = len({id(getattr(candidates[path], "names", None)) for path in paths}) > 1
        if several:
            problems.append(f"several leaves for {variable!r}")
        elif absent:
            problems.append(f"no leaf {', '.join(map(repr, absent))} for a part of {variable!r}")
    return problems
