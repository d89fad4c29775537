"""The order of a model's variables in its optimizer is looked for where the file only numbers them.

What `_layers` knows of the order holds. The rest must follow from the shapes of the optimizer's slots: if two orders
fit, neither is taken.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from optax_kadam.keras_files._contents import Variable, with_unique_paths
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files.layouts._layers import Layer

Shapes = Sequence[tuple[int, ...]]
# Linked lists: of the layers to visit, each with the children that were visited; and of the variables so far.
_Agenda: TypeAlias = "tuple[Layer, frozenset[int] | None, _Agenda] | None"
_Placed: TypeAlias = "tuple[Variable, _Placed] | None"
_MOST_STEPS = 200_000  # They take a few seconds; a model whose order is known takes one step for each layer.
_REMEDY = "Hand over the paths of `model.trainable_variables`, in order: `load_keras(path, trainable=[...])`."


class _Assumption(NamedTuple):
    """What a search assumes of the model."""

    names_are_in_order: bool = True
    others_were_frozen: bool = False
    frozen_were_trained: bool = False


_ASSUMPTIONS = (
    _Assumption(),
    _Assumption(others_were_frozen=True),
    _Assumption(frozen_were_trained=True),
    _Assumption(names_are_in_order=False),
)


def in_order(model: Layer, slots: Shapes | None, trainable: Sequence[str] | None = None) -> list[Variable]:
    """Return the variables of a model in Keras's order. The trainable ones have the shapes `slots`, in that order.

    Args:
      model: the model.
      slots: the shapes of the optimizer's first moments in its order. None if the file has no moments: every variable
        that may be trainable is then taken to be.
      trainable: the paths of the trainable variables in order, or None if they are not known.

    Raises:
      ValueError: if no order of the variables fits the slots, or several do.
    """
    if trainable is not None:
        return _in_given_order(model, slots, trainable)
    found: list[list[Variable]] = []
    for assumption in _ASSUMPTIONS[:1] if slots is None else _ASSUMPTIONS:
        found = found or _first_two(model, slots, assumption)
    if not found:
        shapes = [array.shape for _, array in model.all_own()]
        raise ValueError(
            "The optimizer's moments must have the shapes of the model's trainable variables, in some order. Received: "
            f"{_listed(slots or ())} in the optimizer, {_listed(shapes)} in the model. "
            "The file may hold another model's optimizer, or layers that save less than they train (LoRA)."
        )
    if len(found) > 1:
        paths = [[variable.path for variable in variables if variable.is_trainable] for variables in found]
        first, second = next(((a, b) for a, b in zip(*paths, strict=True) if a != b), ("one", "another of that path"))
        raise ValueError(
            "The order of the optimizer's moments must follow from the file. Received: a model whose moments could be "
            f"those of {first!r} or of {second!r} first. {_REMEDY}"
        )
    return found[0]


def _first_two(model: Layer, slots: Shapes | None, assumption: _Assumption) -> list[list[Variable]]:
    """Return the first two orders of the variables that fit, or fewer if there are not so many."""
    found: dict[tuple[int, ...], list[Variable]] = {}
    for variables in _orders(model, slots, assumption):
        found.setdefault(tuple(id(v.array) for v in variables if v.is_trainable), variables)
        if slots is None or len(found) > 1:
            break
    return list(found.values())


def _in_given_order(model: Layer, slots: Shapes | None, trainable: Sequence[str]) -> list[Variable]:
    """Return first the variables with the paths `trainable`, in that order, then the others."""
    others = with_unique_paths([Variable(path, array, False) for path, array in model.all_own()])
    named = []
    for path in trainable:
        # In the file, a variable of a custom layer has a number in the place of its name.
        numbers = f"{path.rpartition('/')[0]}/vars/"
        candidates = [v for v in others if v.path == path] or [v for v in others if v.path.startswith(numbers)]
        if not candidates:
            raise ValueError(
                f"`trainable` must name variables of the file. Received: {path!r} in it. "
                f"The variables of the file are {', '.join(variable.path for variable in others)}."
            )
        others.remove(candidates[0])
        named.append(Variable(path, candidates[0].array, is_trainable=True))
    shapes = [variable.array.shape for variable in named]
    if slots is not None and shapes != list(slots):
        raise ValueError(
            "`trainable` must name the variables in the order of the optimizer's moments. Received: "
            f"{_listed(shapes)}, where the moments are {_listed(slots)}."
        )
    return named + others


def _listed(shapes: Shapes) -> str:
    return f"{len(shapes)} of shapes {', '.join(map(str, shapes[:8]))}{', ...' if len(shapes) > 8 else ''}"


def _orders(model: Layer, slots: Shapes | None, assumption: _Assumption) -> Iterator[list[Variable]]:
    """Yield the variables in each order in which the trainable ones have the shapes `slots`, the likeliest first.

    This is a depth-first search with its own stack. A state of it is the agenda, the number of slots used, and the
    variables so far. The agenda is a linked list of the layers to visit, and of those with children still to visit.
    """
    stack: list[tuple[_Agenda, int, _Placed]] = [((model, None, None), 0, None)]
    for _ in range(_MOST_STEPS):
        if not stack:
            return
        agenda, used, placed = stack.pop()
        if agenda is None:
            if slots is None or used == len(slots):
                yield _unlinked(placed)
            continue
        layer, done, rest = agenda
        if done is None:
            agenda = _opened(layer, rest)
            for count in reversed(_counts(layer, slots, assumption)):
                shapes = [array.shape for _, array in layer.own[:count]]
                if slots is None or shapes == list(slots[used : used + count]):
                    stack.append((agenda, used + count, _with_own(placed, layer.own, count)))
            continue
        for index in reversed(_next(layer, done, slots is None, assumption)):
            after = done | {index}
            later = (layer, after, rest) if len(after) < len(layer.children) else rest
            stack.append(((layer.children[index], None, later), used, placed))
    raise ValueError(
        "The order of the optimizer's moments must follow from the file. Received: a model for which a search of "
        f"{_MOST_STEPS:,} steps did not find it. {_REMEDY}"
    )


def _opened(layer: Layer, rest: _Agenda) -> _Agenda:
    """Return the agenda that begins with the children of `layer`; each in turn, if their order is known."""
    if not layer.is_in_a_row:
        return (layer, frozenset(), rest)
    for child in reversed(layer.children):
        rest = (child, None, rest)
    return rest


def _counts(layer: Layer, slots: Shapes | None, assumption: _Assumption) -> Sequence[int]:
    """Return the numbers of the layer's own variables, from the first, that may be trainable."""
    if layer.is_frozen and not assumption.frozen_were_trained:
        return (0,)
    if slots is None:
        return layer.trainable_counts[:1]
    may_be_none = assumption.others_were_frozen and 0 not in layer.trainable_counts
    return [*layer.trainable_counts, *([0] if may_be_none else [])]


def _next(layer: Layer, done: frozenset[int], is_any_right: bool, assumption: _Assumption) -> list[int]:
    """Return the children that may come next. If one has no variables, only that one: it may come at any time."""
    following = [
        index
        for index in range(len(layer.children))
        if index not in done
        and layer.before[index] <= done
        and (layer.numbered_before[index] <= done or not assumption.names_are_in_order)
    ]
    empty = [index for index in following if not layer.children[index].has_variables]
    return (empty or following)[:1] if is_any_right or empty else following


def _with_own(placed: _Placed, own: Sequence[tuple[str, LazyArray]], count: int) -> _Placed:
    for index, (path, array) in enumerate(own):
        placed = (Variable(path, array, index < count), placed)
    return placed


def _unlinked(placed: _Placed) -> list[Variable]:
    variables = []
    while placed is not None:
        variable, placed = placed
        variables.append(variable)
    return variables[::-1]
