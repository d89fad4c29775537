"""How a public function is called: a foreign argument is answered by name, and what is built says how it was built."""

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import jax
import numpy as np
import optax

P = ParamSpec("P")
T = TypeVar("T")

_FOREIGN_NAMES = {  # What others call an argument of ours.
    "b1": ("beta_1",),
    "b2": ("beta_2",),
    "betas": ("beta_1", "beta_2"),
    "eps": ("epsilon",),
    "lr": ("learning_rate",),
    "mask": ("weight_decay_mask",),
    "exclude_from_weight_decay": ("weight_decay_mask",),
    "global_norm": ("global_clipnorm",),
    "max_norm": ("clipnorm", "global_clipnorm"),
    "max_delta": ("clipvalue",),
}


def named(factory: Callable[P, T]) -> Callable[P, T]:
    """Return `factory`, its signature unchanged, with a word on both of its ends.

    A keyword that it does not have is answered with the one that was meant. A transformation that it builds shows in
    its `repr` by which call: `kadam(learning_rate=0.001)`, with the arguments that are not the default.
    """
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in signature.parameters:
                raise TypeError(_unknown(factory.__name__, name, list(signature.parameters)))
        built = factory(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs)
        arguments.apply_defaults()
        shown = [
            f"{name}={_shown(value)}"
            for name, value in arguments.arguments.items()
            if name == "learning_rate" or value is not signature.parameters[name].default
        ]
        for name, function in getattr(built, "_asdict", dict)().items():
            function.__qualname__ = f"{factory.__name__}({', '.join(shown)}).{name}"
        return built

    return called


def _unknown(function: str, name: str, known: Sequence[str]) -> str:
    meant = [right for right in _FOREIGN_NAMES.get(name, ()) if right in known]
    meant = meant or difflib.get_close_matches(name, known, n=1)
    remedy = f"Use {' and '.join(f'`{right}`' for right in meant)}." if meant else f"It has {', '.join(known)}."
    return f"`{function}` must be called with arguments that it has. Received: {name}. {remedy}"


def _shown(value: object) -> str:
    """Return a short text; an array, maybe traced, is not looked at."""
    if isinstance(value, optax.GradientTransformation):
        return getattr(value.init, "__qualname__", repr(value)).removesuffix(".init")
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"{value.dtype.name}{list(value.shape)}"
    return getattr(value, "__name__", None) or repr(value)
