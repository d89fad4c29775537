"""`compare`: are two trainings the same, and where do they differ most?"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from optax_kadam._kadam import kadam
from optax_kadam.config._parse import OptimizerConfig
from optax_kadam.keras_files.comparing._comparison import ArrayDifference, Comparison, NumberDifference
from optax_kadam.keras_files.comparing._distance import distance, plain_array
from optax_kadam.keras_files.comparing._side import KEPT_NUMBERS, Side, Trained, side_of
from optax_kadam.keras_files.comparing._together import together
from optax_kadam.keras_files.matching._match import check_skip, model_name, starts_with
from optax_kadam.keras_files.matching._rename import Rename
from optax_kadam.keras_files.matching._words import bare

_ALONE = {side: f"in {side} alone" for side in "ab"}
_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


def compare(
    a: Trained, b: Trained, *, rename: Rename | None = None, skip: Sequence[str] = (), start: Trained | None = None
) -> Comparison:
    """Compare two trainings: weights, slots, counts, rates and configurations.

    Each is the path of a file that Keras saved, or of an Orbax checkpoint of `{"params": ..., "opt_state": ...}`; a
    `KerasTraining`; a tuple `(params, opt_state)` or `(params, opt_state, non_trainable)`, where the trees are as in
    `KerasTraining.restore`, and the state is that of any transformation, or an `nnx.Optimizer` that holds it; or
    parameters alone.

    One of Keras's and a tree are matched as `restore` matches them, and conversions are undone. Two trees, or two of
    Keras's, are matched by their paths. If they have none in common, or with `rename`, `b` is matched with `a` as a
    tree would be with Keras's. What one side alone has is listed, and the trainings are not equal then. NaN is at no
    distance from NaN, and 0 at none from -0. A configuration or a learning rate that one side alone has decides
    nothing, as most states have none.

    Args:
      a: a training.
      b: another.
      rename: what Keras's paths are called in the tree: see `KerasTraining.restore`.
      skip: what is left out: paths or their beginnings, in either side, or names of slots and numbers.
      start: a training that both began with. A share is of the largest change since then where `start` has the array,
        and of the largest number otherwise.

    Returns:
      A `Comparison`: to be printed, or to be asked for `equal` or `within(ulp=2)` or `within(share=1e-6)`.

    Raises:
      TypeError: if a leaf is no array, or `rename` or `skip` is of another kind.
      ValueError: if no leaf is matched, or a leaf may hold a kernel in two ways: the message says what to `rename`; if
        `skip` names nothing; if an Orbax checkpoint is no training; and as `load_keras` does.
      FileNotFoundError, ImportError: as `load_keras` does.

    Example:
      >>> import jax.numpy as jnp, optax_kadam as ok
      >>> training = ok.load_keras("tests/golden/files/k3j/adam.keras")
      >>> params, state = training.restore({path: training.variables[path] for path in training.mu})
      >>> compare(training, (params, state), skip=["m/bn/moving_mean", "m/bn/moving_variance"]).equal
      True
      >>> moved = params | {"m/d1/bias": jnp.nextafter(params["m/d1/bias"], 1.0)}
      >>> print(compare(training, moved, skip=["mu", "nu", "iterations", "m/bn"]))
      a  a training of Keras's (keras3)
      b  parameters
      <BLANKLINE>
                     a     b
      learning_rate  0.01  -  not compared
      <BLANKLINE>
      configurations: not in both
      <BLANKLINE>
      slot                ULP    share  array
      weights               1  6.1e-08  m/d1/bias
      A share is of the largest number in it.
      <BLANKLINE>
      5 arrays are in both, 4 of them equal.
      The trainings are not equal.
    """
    check_skip(skip)
    sides = [side_of(a, "a"), side_of(b, "b")]
    made = together(sides[1], sides[0], rename)
    begun = None if start is None else together(side_of(start, "start"), sides[0], rename).arrays
    used: set[str] = set()

    def is_skipped(*names: str) -> bool:
        found = {part for part in skip if any(name == part or starts_with(name, part) for name in names)}
        used.update(found)
        return bool(found)

    models = [model_name(side.leaves) if side.is_keras else None for side in sides]
    rows: list[ArrayDifference] = []
    for slot in dict.fromkeys((*sides[0].arrays, *sides[1].arrays)):
        if is_skipped(slot):
            continue
        first, second = sides[0].arrays.get(slot, {}), made.arrays.get(slot, {})
        paths = [p for p in (first | second) if not is_skipped(p, bare(p, models[0]), *made.names.get(p, ()))]
        rest = [path for path in made.rest.get(slot, ()) if not is_skipped(path, bare(path, models[1]))]
        begins = {} if begun is None else begun.get(slot, {})
        rows += [_row(slot, path, first.get(path), second.get(path), begins.get(path)) for path in paths]
        rows += [ArrayDifference(slot, path, problem=_ALONE["b"]) for path in rest]
    numbers = [n for n in _numbers(*sides) if not is_skipped(n.name.partition("#")[0])]
    if unused := [part for part in skip if part not in used]:
        raise ValueError(
            f"`skip` must name paths, slots or numbers of a side. Received: {unused[0]!r}. "
            f"The paths of `a` are {', '.join(sides[0].leaves)}."
        )
    rows = [row for slot in dict.fromkeys(row.slot for row in rows) for row in _shortened(slot, rows)]
    rows.sort(key=lambda row: (not row.problem, -(row.share or 0), -(row.ulp or 0)))
    configuration = _differing(sides[0].config, sides[1].config)
    return Comparison(sides[0].what, sides[1].what, tuple(rows), tuple(numbers), configuration, start is not None)


def _row(slot: str, path: str, a: Any, b: Any, begun: np.ndarray | None) -> ArrayDifference:
    """Return how far two arrays are apart, of which one may be None."""
    if a is None or b is None:
        return ArrayDifference(slot, path, problem=_ALONE["b" if a is None else "a"])
    a = plain_array(a)
    if a.shape != b.shape or a.dtype != b.dtype:
        kinds = [f"{array.dtype.name}{list(array.shape)}" for array in (a, b)]
        return ArrayDifference(slot, path, problem=f"{kinds[0]} in a, {kinds[1]} in b")
    if begun is not None and begun.shape != a.shape:
        raise ValueError(
            f"`start` must have the shapes of `a`. Received: {list(begun.shape)} for {path!r}, which is "
            f"{list(a.shape)} in `a`. Hand over the training that both began with."
        )
    return ArrayDifference(slot, path, *distance(a, b, begun))


def _shortened(slot: str, rows: Sequence[ArrayDifference]) -> list[ArrayDifference]:
    """Return the rows of a slot, and one alone for a slot that one side does not have at all."""
    found = [row for row in rows if row.slot == slot]
    problems = {row.problem for row in found}
    if len(found) == 1 or len(problems) > 1 or problems.isdisjoint(_ALONE.values()):
        return found
    return [ArrayDifference(slot, "", problem=f"{len(found)} arrays {found[0].problem}")]


def _numbers(a: Side, b: Side) -> Iterator[NumberDifference]:
    """Yield the numbers of both. One of several in a state, as `iterations#2`, may face the only one of the other."""
    for name in dict.fromkeys((*a.numbers, *b.numbers)):
        base = name.partition("#")[0]
        x, y = (side.numbers.get(name, side.numbers.get(base)) for side in (a, b))
        is_lone = x is None or y is None
        if base == "learning_rate":
            decides = not is_lone and not a.computes_rate and not b.computes_rate
        else:  # Keras keeps no number of `optax.MultiSteps` or `optax.inject_hyperparams`.
            decides = not is_lone or a.is_keras == b.is_keras or base in KEPT_NUMBERS
        yield NumberDifference(name, x, y, decides)


def _differing(a: OptimizerConfig | None, b: OptimizerConfig | None) -> tuple[NumberDifference, ...] | None:
    """Return the arguments of `kadam` that differ. A name does nothing, and a state holds a rate that is a number."""
    if a is None or b is None:
        return None
    known = {name: parameter.default for name, parameter in inspect.signature(kadam).parameters.items()}
    rows = [NumberDifference("generation", a.generation, b.generation)]
    for name, default in known.items():
        values = [config.arguments.get(name, default) for config in (a, b)]
        if name not in _CLIPS:  # Only a clip may do something at 0.
            values = [value or None for value in values]
        is_rate = name == "learning_rate" and all(isinstance(value, int | float | None) for value in values)
        if name not in ("name", "generation") and not is_rate:
            rows.append(NumberDifference(name, values[0], values[1]))
    rows.append(NumberDifference("loss_scale", a.loss_scale, b.loss_scale))
    return tuple(row for row in rows if not row.is_equal)
