"""The order of a model's variables in its optimizer follows from the file, from the shapes of the moments, or is told.

What `_layers` knows of the order is certain. The rest must follow from the shapes of the optimizer's slots: if two
orders fit, neither is taken. Which variables are frozen is not asked of the file, since that may have changed after the
optimizer was built: any may have been, unless there are as many slots as variables.
"""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import TypeAlias

from optax_kadam.keras_files._contents import Slots, Variable, with_unique_paths
from optax_kadam.keras_files._told import Told, digest_of
from optax_kadam.keras_files.layouts._layers import Chain, Model, Stage, Unit

Shape: TypeAlias = tuple[int, ...]
_Placed: TypeAlias = "tuple[Unit, _Placed] | None"  # The layers so far, the last one first.
_MOST_WORK = 2_000_000  # Chains looked at, in about a second.

_ASK = (
    "Load the file in Keras, and hand over the variables: `load_keras(path, trainable=model.trainable_variables)`; or "
    "read that model itself, `KerasTraining.from_model(model)`, or a checkpoint or whole-model `.h5` of it."
)


def order_of(model: Model, slots: Sequence[Shape]) -> list[Variable] | None:
    """Return the variables to which moments of these shapes belong, in their order, or None if they fit none.

    Raises:
      ValueError: if they could belong to several.
    """
    candidates = model.candidates()
    if len(candidates) > len(slots):
        if model.is_known and model.is_a_row():
            return _some(candidates, slots)
        raise ValueError(
            f"What the optimizer trains must follow from the file. Received: moments for {len(slots)} of "
            f"{len(candidates)} variables, and layers whose order or configuration is not known. {_ASK}"
        )
    stages = [[chain for chain in map(_trained, stage) if chain] for stage in model.stages]
    sizes = [sum(len(unit) for chain in stage for unit in chain) for stage in stages]
    ends = list(itertools.accumulate(sizes))
    parts = [_merged(stage, slots[end - size : end]) for stage, size, end in zip(stages, sizes, ends, strict=True)]
    if len(candidates) < len(slots) or None in parts:
        return None
    return [variable for part in parts for variable in part or ()]


def is_certain(model: Model, trained: Sequence[object]) -> bool:
    """Return whether it is known without the shapes in which order so many variables are trained."""
    return len(model.candidates()) == len(trained) and model.is_a_row()


def in_given_order(model: Model, slots: Slots, trainable: Sequence[Told]) -> list[Variable]:
    """Return the variables that `trainable` names, by paths or by their numbers, in that order.

    Raises:
      ValueError: if one is not in the file or could be several, or if they are not those of the slots.
    """
    variables = with_unique_paths(model.candidates())
    named = _by_numbers(variables, None if model.is_a_row() else slots, trainable) | _by_path(variables, trainable)
    found = [named[index] for index in range(len(trainable))]
    counts = collections.Counter(id(variable.array) for variable in found)
    if twice := [variable.path for variable in found if counts[id(variable.array)] > 1]:
        raise ValueError(
            f"`trainable` must name each variable once. Received: {twice[0]!r} twice. "
            "Hand over `model.trainable_variables`."
        )
    shapes, wanted = _shapes(found), tuple(array.shape for array in slots.mu)
    if shapes != wanted:
        raise ValueError(
            "`trainable` must name the variables in the order of the optimizer's moments. Received: "
            f"{listed(shapes)}, where the moments are {listed(wanted)}. "
            "Hand over `model.trainable_variables` of the model as it was saved."
        )
    paths = [told.path or variable.path for told, variable in zip(trainable, found, strict=True)]
    return [dataclasses.replace(variable, path=path) for variable, path in zip(found, paths, strict=True)]


def listed(shapes: Sequence[Shape]) -> str:
    """Return a list of shapes for a message."""
    return f"{len(shapes)} of shapes {', '.join(map(str, shapes[:8]))}{', ...' if len(shapes) > 8 else ''}"


def _trained(chain: Chain) -> Chain:
    """Return a chain without what cannot be trained."""
    units = [[variable for variable in unit if variable.is_trainable] for unit in chain]
    return [unit for unit in units if unit]


def _shapes(variables: Sequence[Variable]) -> tuple[Shape, ...]:
    return tuple(variable.array.shape for variable in variables)


def _merged(stage: Stage, slots: Sequence[Shape]) -> list[Variable] | None:
    """Return the order in which the layers of all chains have the shapes `slots`.

    A state says how many layers of each chain have been placed, and has at most two of the ways that lead to it. States
    are gone through by the number of slots that they fill.
    """
    alike: dict[tuple[tuple[Shape, ...], ...], Chain] = {}
    for chain in stage:
        twin = alike.setdefault(tuple(map(_shapes, chain)), chain)
        if twin is not chain:
            raise _ambiguous(twin[0], chain[0])
    frontier: dict[int, dict[tuple[int, ...], list[_Placed]]] = {0: {(0,) * len(stage): [None]}}
    work = 0
    for place in range(len(slots)):
        for state, ways in frontier.pop(place, {}).items():
            work += len(stage)
            if work > _MOST_WORK:
                raise ValueError(
                    "The order of the optimizer's moments must follow from the file. Received: a model for which a "
                    f"long search did not find it. {_ASK}"
                )
            for index, chain in enumerate(stage):
                unit = chain[state[index]] if state[index] < len(chain) else []
                if unit and _shapes(unit) == tuple(slots[place : place + len(unit)]):
                    after = (*state[:index], state[index] + 1, *state[index + 1 :])
                    known = frontier.setdefault(place + len(unit), {}).setdefault(after, [])
                    known += [(unit, way) for way in ways][: 2 - len(known)]
    whole = frontier.get(len(slots), {}).get(tuple(map(len, stage)), [])
    return _the_one([_unlinked(way) for way in whole])


def _unlinked(placed: _Placed) -> list[Variable]:
    units: list[Unit] = []
    while placed is not None:
        unit, placed = placed
        units.append(unit)
    return [variable for unit in reversed(units) for variable in unit]


def _some(variables: Sequence[Variable], slots: Sequence[Shape]) -> list[Variable] | None:
    """Return those of the variables, which are in order, that have the shapes `slots`.

    They are certain if each slot, taken as early as possible and as late as possible, is of the same variable.
    """
    early, late = _earliest(variables, slots), _earliest(variables[::-1], slots[::-1])
    return None if early is None or late is None else _the_one([early, late[::-1]])


def _earliest(variables: Sequence[Variable], slots: Sequence[Shape]) -> list[Variable] | None:
    """Return the first variable for each slot that comes after that of the slot before, or None if one finds none."""
    following = iter(variables)
    found = [next((v for v in following if v.array.shape == shape), None) for shape in slots]
    return [v for v in found if v is not None] if None not in found else None


def _the_one(ways: Sequence[Sequence[Variable]]) -> list[Variable] | None:
    """Return the order that all of `ways` are, or None if there is none; raise if there are two."""
    for variables in zip(*ways, strict=True):
        if any(variable is not variables[0] for variable in variables):
            raise _ambiguous([variables[0]], [variables[1]])
    return list(ways[0]) if ways else None


def _ambiguous(first: Sequence[Variable], second: Sequence[Variable]) -> ValueError:
    return ValueError(
        "The order of the optimizer's moments must follow from the file. Received: moments that could be those of "
        f"{first[0].path!r} or those of {second[0].path!r}, which has their shape too. {_ASK}"
    )


def _by_path(variables: Sequence[Variable], trainable: Sequence[Told]) -> dict[int, Variable]:
    """Return the variables that are named by their paths, by their indices in `trainable`."""
    by_path = {variable.path: variable for variable in variables}
    paths = {index: told.path for index, told in enumerate(trainable) if told.path and told.digest is None}
    unknown = collections.defaultdict(list)
    for index, path in paths.items():
        if path not in by_path:
            unknown[path.rpartition("/")[0]].append(index)
    found = {index: by_path[path] for index, path in paths.items() if path in by_path}
    for scope, indices in unknown.items():
        # The file numbers the variables of a layer that is not Keras's own. If all are named, that is their order.
        numbers = [v for v in variables if v.path.startswith(f"{scope}/vars/")]
        if len(numbers) != len(indices):
            raise ValueError(
                f"`trainable` must name variables of the file. Received: {paths[indices[0]]!r} in it. "
                f"The variables of the file are {', '.join(by_path)}. Hand over the "
                "variables themselves: `trainable=model.trainable_variables`."
            )
        found |= dict(zip(indices, numbers, strict=True))
    return found


def _by_numbers(variables: Sequence[Variable], slots: Slots | None, trainable: Sequence[Told]) -> dict[int, Variable]:
    """Return the variables that are handed over as arrays, by their indices in `trainable`.

    If several hold the same numbers, it must not matter for `slots` which is which; None if their order is known.
    """
    wanted: dict[str, list[int]] = collections.defaultdict(list)
    for index, told in enumerate(trainable):
        if told.digest is not None:
            wanted[told.digest].append(index)
    holders: dict[str, list[Variable]] = collections.defaultdict(list)
    for variable in variables if wanted else ():
        holders[digest_of(variable.array.read())].append(variable)
    found: dict[int, Variable] = {}
    for digest, indices in wanted.items():
        same = holders.get(digest, [])
        if not same:
            raise ValueError(
                "`trainable` must hold the variables of the model as it was saved. Received: "
                f"trainable[{indices[0]}], {trainable[indices[0]].kind}, whose numbers no variable of the file has. "
                "Load the file in Keras, and hand over the variables of that model. If a layer trains what this format "
                "does not hold (LoRA, int8), save a checkpoint or a whole-model `.h5`."
            )
        by_path = {variable.path: variable for variable in same}
        if len(same) == len(indices) and (len(same) == 1 or slots is None or _is_same(slots, indices)):
            found |= dict(zip(indices, same, strict=True))
        elif all(trainable[index].path in by_path for index in indices):
            found |= {index: by_path[trainable[index].path or ""] for index in indices}
        else:
            raise ValueError(
                "The arrays in `trainable` must tell the variables apart. Received: "
                f"trainable[{indices[0]}], whose numbers are those of {' and of '.join(v.path for v in same)}. "
                "Put the path of the variable there, in the place of its numbers."
            )
    return found


def _is_same(slots: Slots, indices: Sequence[int]) -> bool:
    """Return whether variables have the same slots, so that it does not matter which is which."""
    lists = slots.arrays().values() if len(indices) > 1 else ()
    return all(
        len({digest_of(arrays[index].read()) for index in indices if index < len(arrays)}) == 1 for arrays in lists
    )
