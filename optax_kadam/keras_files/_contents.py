"""What a Keras file holds, whatever its format, before an array of it is read."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optax_kadam.keras_files._lazy_array import LazyArray


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of the model."""

    path: str  # As Keras names it: `model/dense/kernel`, in tf_keras `dense/kernel:0`.
    array: LazyArray
    is_trainable: bool = True


NEEDS_CONFIG = "Hand its configuration: `load_keras(path, config=optimizer.get_config())`."
# Keras's optimizers that keep arrays like Adam's, by the names that they have unless they are given one.
_LIKE_ADAM = re.compile(r"(adadelta|adamax|ftrl|lamb|nadam)(_\d+)?", re.IGNORECASE)
_NOT_TRAINABLE = re.compile(r".*/(moving_mean|moving_variance)(:0)?")


def with_guessed_trainability(variable: Variable) -> Variable:
    """Return the variable of a model that was saved without its optimizer, trainable by what its name suggests."""
    return dataclasses.replace(variable, is_trainable=not _NOT_TRAINABLE.fullmatch(variable.path))


def check_name(optimizer: str) -> None:
    """Refuse an optimizer, of which no configuration is known, if its name is that of another than Adam."""
    if _LIKE_ADAM.fullmatch(optimizer):
        raise ValueError(
            f"The optimizer must be an Adam. Received: one that is called {optimizer!r}, without a configuration. "
            f"If it is an Adam: {NEEDS_CONFIG}"
        )


@dataclasses.dataclass(frozen=True)
class Slots:
    """The state of an Adam: its scalars, and for each trainable variable, in Keras's order, its arrays.

    None for what the optimizer does not have, or the format does not store.
    """

    iterations: LazyArray
    learning_rate: LazyArray | None
    mu: Sequence[LazyArray]
    nu: Sequence[LazyArray]
    nu_max: Sequence[LazyArray] | None = None
    average: Sequence[LazyArray] | None = None
    accumulator: Sequence[LazyArray] | None = None
    step_counter: LazyArray | None = None  # Of a loss scale around it, as is the next.
    dynamic_scale: LazyArray | None = None

    def arrays(self) -> dict[str, Sequence[LazyArray]]:
        """Return the lists that there are, by the names that they have in the state of `kadam`."""
        lists = {name: getattr(self, name) for name in ("mu", "nu", "nu_max", "average", "accumulator")}
        return {name: arrays for name, arrays in lists.items() if arrays is not None}


def with_unique_paths(variables: Iterable[Variable]) -> list[Variable]:
    """Tell apart the variables of nested models, to which Keras gives one path: the second is `path#2`."""
    seen: dict[str, int] = {}
    unique = []
    for variable in variables:
        count = seen[variable.path] = seen.get(variable.path, 0) + 1
        path = variable.path if count == 1 else f"{variable.path}#{count}"
        unique.append(dataclasses.replace(variable, path=path))
    return unique


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a Keras file holds."""

    generation: str
    config: Mapping[str, Any] | None  # The serialized optimizer.
    variables: Sequence[Variable]  # The trainable ones in the order of the slots.
    slots: Slots | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "variables", with_unique_paths(self.variables))
