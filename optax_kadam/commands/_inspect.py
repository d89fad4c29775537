"""`kadam inspect` shows what a file of Keras's holds, as plain text in aligned columns."""

import dataclasses
import inspect
import math
import pathlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from optax_kadam._kadam import kadam
from optax_kadam.commands._progress import size, watched
from optax_kadam.config._parse import parse
from optax_kadam.keras_files._contents import Contents, Hints
from optax_kadam.keras_files._open import opened
from optax_kadam.keras_files._training import EXCLUSIONS, KerasTraining, read

_CHUNK = 1 << 20  # How many elements are converted to float64 at a time.
_ORDERS = {
    "named": "the file names the variables of the moments",
    "listed": "the moments are in the order in which the configuration lists the layers",
    "shapes": "no other order of the variables has the shapes of the moments",
    "given": "as it was given",
    "live": "that of the live model",
}
_UNKNOWN = "not in the file"


def describe(path: pathlib.Path, hints: Hints, width: int) -> str:
    """Return a description of the file at `path`. At most one of its arrays is in memory at a time.

    Args:
      path: the path of the file: see `load_keras`.
      hints: what is known of it: the arguments of `load_keras`.
      width: how many columns a line may have. Paths are never broken.

    Raises:
      ValueError, FileNotFoundError, ImportError: as `load_keras` does.
    """
    with opened(path, hints) as contents, watched(contents) as contents:
        facts = _heading(path, read(_without_arrays(contents)), contents.slots is not None)
        return "\n".join([*_listed(facts, width), "", *_table(contents, width), "", *_listed(_totals(contents), width)])


def _without_arrays(contents: Contents) -> Contents:
    """Return `contents` without the variables and the arrays of the optimizer."""
    slots = contents.slots
    if slots is not None:
        slots = dataclasses.replace(slots, **dict.fromkeys(slots.arrays(), ()))
    return dataclasses.replace(contents, variables=(), slots=slots)


def _heading(path: pathlib.Path, scalars: KerasTraining, has_state: bool) -> dict[str, str]:
    heading = {"file": str(path), "generation": scalars.generation, "optimizer": optimizer_text(scalars.config)}
    if scalars.config is not None and parse(scalars.config).arguments.get("weight_decay"):
        heading["weight decay"] = f"of all parameters, as far as can be told: {EXCLUSIONS}"
    if not has_state:
        return heading | {"state": "none: the file holds weights alone"}
    if scalars.order is not None:
        heading["order"] = _ORDERS[scalars.order]
    heading["iterations"] = str(scalars.iterations)
    if scalars.learning_rate is not None:
        heading["learning rate"] = _shown(scalars.learning_rate)
    else:
        heading["learning rate"] = "follows from the schedule" if scalars.config else _UNKNOWN
    if scalars.dynamic_scale is not None:
        heading["loss scale"] = (
            f"{_shown(scalars.dynamic_scale)}, of {scalars.step_counter} finite steps since it changed"
        )
    return heading


def optimizer_text(config: Mapping[str, object] | None) -> str:
    """Return the class of the optimizer, and the arguments that differ from Keras's defaults."""
    if config is None:
        return f"{_UNKNOWN}: hand it over with --config"
    parsed = parse(config)
    defaults = inspect.signature(kadam).parameters
    differing = [
        f"{name}={_shown(value)}"
        for name, value in parsed.arguments.items()
        if name != "name" and _shown(value or None) != _shown(defaults[name].default or None)  # 0.0 is none.
    ]
    shown = f"{_class_name(config)}({', '.join(differing)})"
    if parsed.loss_scale is None:
        return shown
    scale, steps = parsed.loss_scale.initial_scale, parsed.loss_scale.dynamic_growth_steps
    return f"LossScaleOptimizer({shown}, initial_scale={_shown(scale)}, dynamic_growth_steps={steps})"


def _class_name(config: Mapping[str, object]) -> str:
    """Return the name of the class inside a LossScaleOptimizer; a bare `get_config()` holds none: it is Adam."""
    inside = config.get("config", config)
    inner = inside.get("inner_optimizer", inside.get("optimizer")) if isinstance(inside, Mapping) else None
    return (
        _class_name(inner) if isinstance(inner, Mapping) else str(config.get("class_name", "Adam")).rpartition(">")[2]
    )


def _shown(value: object) -> str:
    """Return a number as the user wrote it. In a config it may have more digits, if Keras kept it in float32."""
    if isinstance(value, Mapping):  # It is a schedule that is not Keras's own.
        return str(value.get("class_name"))
    if isinstance(value, float) and float(np.float32(value)) == value:
        return str(np.float32(value))
    return repr(value)


def _listed(facts: Mapping[str, str], width: int) -> Iterable[str]:
    """Yield the lines of facts, whose names have a column of their own."""
    margin = max(map(len, facts)) + 2
    wrap = textwrap.TextWrapper(width, subsequent_indent=" " * margin, break_long_words=False, break_on_hyphens=False)
    for name, fact in facts.items():
        wrap.initial_indent = name.ljust(margin)
        yield from wrap.wrap(fact)


def _table(contents: Contents, width: int) -> list[str]:
    """Return the lines of the table of the variables, with the norms of their weights and moments."""
    slots = contents.slots.arrays() if contents.slots else {}
    trainable = [variable for variable in contents.variables if variable.is_trainable]
    others = [variable for variable in contents.variables if not variable.is_trainable]
    dtype = ["dtype"] if len({variable.array.dtype for variable in contents.variables}) > 1 else []
    rows = [["variable", "shape", *dtype, "weights", *slots]]
    for i, variable in enumerate([*trainable, *others]):
        weights = variable.array
        kind = ["x".join(map(str, weights.shape)) or "()", *(str(weights.dtype) for _ in dtype)]
        norms = [_norm(arrays[i].read()) if variable.is_trainable else "-" for arrays in slots.values()]
        rows.append([variable.path, *kind, _norm(weights.read()), *norms])
    title = f"Norms of the weights{' and of their moments' if slots else ''}, in float64:"
    head, *lines = _aligned(rows, 2 + len(dtype), width)
    middle = ["not trainable:"] if others else []
    return [title, head, *lines[: len(trainable)], *middle, *lines[len(trainable) :]]


def _norm(array: np.ndarray) -> str:
    flat = array.reshape(-1)
    chunks = (flat[start : start + _CHUNK].astype(np.float64) for start in range(0, flat.size, _CHUNK))
    return f"{math.sqrt(sum(float(chunk @ chunk) for chunk in chunks)):.4g}"


def _aligned(rows: Sequence[Sequence[str]], texts: int, width: int) -> list[str]:
    """Return a text for each of `rows`, with their first cells, `texts` of them, to the left and numbers to the right.

    Where a line would be wider than `width`, the text has two: the first cell, and below it the others.
    """
    name_width, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    fits = name_width + sum(cell_width + 2 for cell_width in widths) <= width
    lines = []
    for name, *cells in rows:
        padded = [
            cell.ljust(cell_width) if i < texts - 1 else cell.rjust(cell_width)
            for i, (cell, cell_width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join([name.ljust(name_width) if fits else f"{name}\n", *padded]))
    return lines


def _totals(contents: Contents) -> dict[str, str]:
    weights = [variable.array for variable in contents.variables]
    trainable = [variable.array for variable in contents.variables if variable.is_trainable]
    parameters, trained = (sum(math.prod(array.shape) for array in arrays) for arrays in (weights, trainable))
    dtypes = " and ".join(sorted({str(array.dtype) for array in weights}))
    bytes_of = f"{sum(map(size, weights)):,} of the weights"
    if contents.slots is not None:
        state = sum(size(array) for arrays in contents.slots.arrays().values() for array in arrays)
        bytes_of += f", {state:,} of the optimizer's state"
    return {
        "variables": f"{len(weights)} of {dtypes}, {parameters:,} parameters, of which {trained:,} are trainable",
        "bytes": bytes_of,
    }
