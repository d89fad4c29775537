"""`Contents`: what a Keras file of any format holds, before any of its arrays is read."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Self, TypeVar

from optax_kadam._generations import Generation
from optax_kadam.config._parse import OTHERS
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._told import Told


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of the model."""

    path: str  # Keras's own name for it: `model/dense/kernel`; in tf_keras `dense/kernel:0`.
    array: LazyArray
    is_trainable: bool = True


Order = Literal["named", "listed", "shapes", "given", "live"]


class Hints(NamedTuple):
    """What the caller of `load_keras` knows of a file."""

    config: Mapping[str, object] | None = None  # The optimizer's, in the place of the one in the file.
    trainable: Sequence[Told] | None = None  # The trainable variables in order.
    optimizer: str = "optimizer"  # The attribute of the model that it is.


# How Keras 3 calls a slot: the name of its variable, and one of these endings.
KERAS3_SLOTS = {
    "_momentum": "mu",
    "_velocity": "nu",
    "_velocity_hat": "nu_max",
    "_average": "average",
    "_gradient_accumulator": "accumulator",
}
NEEDS_CONFIG = "Hand over its configuration: `load_keras(path, config=optimizer.get_config())`."
_NOT_TRAINABLE = re.compile(r".*/(moving_mean|moving_variance)(:0)?")


def with_guessed_trainability(variable: Variable) -> Variable:
    """Return `variable`, marked as not trainable if it has the name of a moving statistic.

    A model that was saved without its optimizer does not say which variables are trained.
    """
    return dataclasses.replace(variable, is_trainable=not _NOT_TRAINABLE.fullmatch(variable.path))


def check_name(optimizer: str) -> None:
    """Raise if `optimizer` is the name of another optimizer than Adam; only needed where there is no configuration."""
    if OTHERS.fullmatch(optimizer):
        raise ValueError(
            f"The optimizer must be an Adam. Received: one that is called {optimizer!r}, without a configuration. "
            f"If it is an Adam: {NEEDS_CONFIG}"
        )


@dataclasses.dataclass(frozen=True)
class Slots:
    """The state of an Adam: its scalars, and its arrays for the trainable variables, in Keras's order.

    A field is None where the optimizer does not have it, or the format does not store it.
    """

    iterations: LazyArray
    learning_rate: LazyArray | None
    mu: Sequence[LazyArray]
    nu: Sequence[LazyArray]
    nu_max: Sequence[LazyArray] | None = None
    average: Sequence[LazyArray] | None = None
    accumulator: Sequence[LazyArray] | None = None
    step_counter: LazyArray | None = None  # This and the next belong to the `LossScaleOptimizer` around it.
    dynamic_scale: LazyArray | None = None

    @classmethod
    def from_lists(
        cls,
        iterations: LazyArray,
        learning_rate: LazyArray | None,
        lists: Mapping[str, Sequence[LazyArray]],
        step_counter: LazyArray | None = None,
        dynamic_scale: LazyArray | None = None,
    ) -> Self:
        """Return the slots with the arrays of `lists`, which are named like the fields; both moments must be there."""
        nu_max, average, accumulator = (lists.get(name) for name in ("nu_max", "average", "accumulator"))
        moments = lists["mu"], lists["nu"]
        return cls(iterations, learning_rate, *moments, nu_max, average, accumulator, step_counter, dynamic_scale)

    def arrays(self) -> dict[str, Sequence[LazyArray]]:
        """Return the lists that are not None by their names, which are those in the state of `kadam`."""
        lists = {name: getattr(self, name) for name in ("mu", "nu", "nu_max", "average", "accumulator")}
        return {name: arrays for name, arrays in lists.items() if arrays is not None}


def with_unique_paths(variables: Sequence[Variable]) -> list[Variable]:
    """Return the variables with distinct paths: of those that Keras gives the same path, the second has `path#2`."""
    taken = {variable.path for variable in variables}
    counts: dict[str, int] = {}
    unique = []
    for variable in variables:
        path = variable.path
        count = counts.get(path, 0) + 1
        while count > 1 and f"{path}#{count}" in taken:
            count += 1
        counts[path] = count
        unique.append(dataclasses.replace(variable, path=path if count == 1 else f"{path}#{count}"))
        taken.add(unique[-1].path)
    return unique


def check_shapes(variables: Sequence[Variable], moments: Sequence[LazyArray], remedy: str) -> None:
    """Raise, naming the variable, if a moment does not have the shape of its variable."""
    for variable, moment in zip(variables, moments, strict=True):
        if variable.array.shape != moment.shape:
            raise ValueError(
                f"A moment must have the shape of its variable. Received: {moment.shape} for {variable.path!r} "
                f"of shape {variable.array.shape}. {remedy}"
            )


_Key = TypeVar("_Key")


def missing_slot(slots: Mapping[str, Collection[_Key]]) -> tuple[str, _Key] | None:
    """Return a slot and a variable that lacks it, though it has another, or None if there is no such variable.

    Args:
      slots: the variables that have it, for each slot. Every variable must have a first and a second moment.
    """
    variables = dict.fromkeys(variable for owners in slots.values() for variable in owners)
    pairs = ((slot, variable) for slot in ("mu", "nu", *slots) for variable in variables)
    return next(((slot, variable) for slot, variable in pairs if variable not in slots.get(slot, ())), None)


def counted(slots: Mapping[str, Collection[object]]) -> str:
    """Return how many arrays there are of each slot, for a message."""
    return ", ".join(f"{len(arrays)} of {slot}" for slot, arrays in slots.items()) or "no slots"


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a Keras file holds."""

    generation: Generation
    config: Mapping[str, object] | None  # The serialized optimizer.
    variables: Sequence[Variable]  # The trainable ones are in the order of the slots.
    slots: Slots | None
    order: Order | None  # How the order of the variables is known; None if it is not.

    def __post_init__(self) -> None:
        object.__setattr__(self, "variables", with_unique_paths(self.variables))
