"""A table that goes on from where Keras left it: Keras sweeps all rows at every step, so none has missed any."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from optax_kadam.embeddings._table import ComputedDeferredTable, DeferredTable, MadeBy, made_by_of

_Arrays = Mapping[str, np.ndarray]


class Training(Protocol):
    """What a table needs of a `KerasTraining`."""

    @property
    def config(self) -> Mapping[str, Any] | None: ...
    @property
    def iterations(self) -> int: ...
    @property
    def learning_rate(self) -> float | None: ...
    @property
    def variables(self) -> _Arrays: ...
    @property
    def mu(self) -> _Arrays | None: ...
    @property
    def nu(self) -> _Arrays | None: ...
    @property
    def nu_max(self) -> _Arrays | None: ...
    @property
    def average(self) -> _Arrays | None: ...
    @property
    def accumulator(self) -> _Arrays | None: ...


def table_from_keras(
    init: Callable[[jax.Array], DeferredTable], training: Training, path: str, sharding: jax.sharding.Sharding | None
) -> DeferredTable:
    """Return a table with the rows, moments and count of a training; see `DeferredRows.from_keras`."""
    mu, nu = training.mu, training.nu
    if mu is None or nu is None:
        raise ValueError(
            "`training` must hold the state of an optimizer. Received: mu=None, for a file of weights alone. "
            "Call `init(training.variables[path])`, whose moments begin at zero."
        )
    if path not in mu:
        near = difflib.get_close_matches(path, mu, 1, 0.3)
        raise ValueError(
            f"`path` must be that of a variable that Keras trains. Received: path={path!r}"
            f"{f', near {near[0]!r}' if near else ''}. `training.mu` has all of them."
        )
    for name, feature in (("average", "use_ema"), ("accumulator", "gradient_accumulation_steps")):
        if getattr(training, name) is not None:
            raise ValueError(
                f"`training` must be one that a table can go on from. Received: one with {feature}, whose {name} a "
                "table does not keep. Use `kadam`, which sweeps the table."
            )

    def placed(array: np.ndarray) -> jax.Array:
        return jax.device_put(array, sharding, may_alias=False)  # The table may be donated; the file's arrays may not.

    table = init(placed(training.variables[path]))
    _check_same(made_by_of(table), training)
    moments = {"mu": placed(mu[path]).astype(jnp.float32), "nu": placed(nu[path]).astype(jnp.float32)}
    if training.nu_max is not None:
        moments["nu_max"] = placed(training.nu_max[path]).astype(jnp.float32)
    count = jnp.asarray(training.iterations, jnp.int32)
    table = table._replace(**moments, last_visit=table.last_visit + count, iterations=count)
    if training.learning_rate is None or isinstance(table, ComputedDeferredTable):
        return table
    return table._replace(learning_rate=training.learning_rate)


def _check_same(made_by: MadeBy, training: Training) -> None:
    """Raise if Keras went by other numbers, as far as its configuration tells."""
    config = training.config or {}
    config = config.get("config", config)
    config = config.get("inner_optimizer", {}).get("config", config)
    wanted = {name: getattr(made_by, name) for name in ("beta_1", "beta_2", "epsilon")}
    found = {name: config.get(name) for name in wanted}
    wanted["amsgrad"], found["amsgrad"] = made_by.amsgrad, training.nu_max is not None
    if made_by.weight_decay:  # Where it is off here, Keras may leave this variable out of it: no file says so.
        wanted["weight_decay"], found["weight_decay"] = made_by.weight_decay, config.get("weight_decay", 0.0) or 0.0
    for name, value in wanted.items():
        if value is not None and found[name] is not None and np.float32(value) != np.float32(found[name]):
            raise ValueError(
                f"`training` must be one by the same `{name}` as the table's, {value}. Received: {found[name]}. "
                f"Call `deferred_rows` with {name}={found[name]}."
            )
