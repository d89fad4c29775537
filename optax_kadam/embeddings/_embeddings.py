"""How a model uses tables: which feature reads which table, and one step of all tables together.

All tables take every step, so they have one count, one learning rate and one ring of missed steps between them: no two
of them can disagree. Their state is a `DeferredTable` whose arrays of rows are dicts by the name of the table.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optax_kadam import _check
from optax_kadam._gradients import RowUpdates, check_indices
from optax_kadam.embeddings._deferred import DeferredRows
from optax_kadam.embeddings._from_keras import Training
from optax_kadam.embeddings._row_gradients import add_gradients
from optax_kadam.embeddings._table import DeferredTable, joined, parts_of

_PART = 65536


class Embeddings:
    """The tables of a model, and the features that read them: several features, several tables, one step.

    Every function is pure: the state of all tables goes in and comes out, as a `DeferredTable` whose `values`, `mu`,
    `nu`, `nu_max` and `last_visit` are dicts by the name of a table. Its count, `tables.iterations`, and its learning
    rate are those of every table; `optax.tree.set(tables, learning_rate=3e-4)` sets the rate of all. Jit a step,
    donating the tables, to have them updated in place.

    A training step reads the rows, differentiates with respect to them, and updates:

        rows = tables_of.read(tables, ids)                                  # {feature: rows}
        of_params, of_rows = jax.grad(loss, (0, 1))(params, rows)
        gradients = {"tower": of_params, "tables": tables_of.gradients(ids, of_rows)}
        gradients, _ = clip.update(gradients, clip.init(None), {"tower": params, "tables": tables.values})
        tables = tables_of.update(tables, gradients["tables"])

    `clip` is one `clip_by_global_norm` over the tower and the tables, to which `tables.values` says how large the
    tables are: the values themselves are out of date, and only `read`, `values` and `flush` bring them up to date. The
    gradients of micro-batches are added up by `add_gradients`, and multiplied by `scale_gradients`.

    Args:
      of: what each table is: `deferred_rows(...)`.
      features: the name of the table that each feature reads; several features may read one table.

    Raises:
      ValueError: if there is no feature, or a function is handed a feature or a table of another name.
      TypeError: if `of` or `features` is something else, or a function is handed something else than tables.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_kadam import deferred_rows
      >>> tables_of = Embeddings(deferred_rows(0.1), {"seen": "items", "bought": "items", "user": "users"})
      >>> tables = tables_of.init({"items": jnp.ones((5, 2)), "users": jnp.zeros((3, 2))})
      >>> ids = {"seen": jnp.array([[4, 1]]), "bought": jnp.array([4])}
      >>> rows = tables_of.read(tables, ids)
      >>> print(rows["seen"].shape, rows["bought"].shape)
      (1, 2, 2) (1, 2)
      >>> gradients = tables_of.gradients(ids, rows)
      >>> print(gradients["items"].indices, gradients["users"])  # No feature of `users` is in this batch.
      [4 1 4] None
      >>> tables = tables_of.update(tables, gradients)
      >>> print(tables.iterations, tables_of.read(tables, ids)["bought"])
      1 [[0.9 0.9]]
    """

    def __init__(self, of: DeferredRows, features: Mapping[str, str]):
        if not isinstance(of, DeferredRows):
            raise TypeError(f"`of` must be `deferred_rows(...)`. Received: of={of!r}.")
        is_map = isinstance(features, Mapping)
        if not is_map or not all(isinstance(name, str) for pair in features.items() for name in pair):
            raise TypeError(
                f"`features` must map the name of each feature to that of its table. Received: features={features!r}."
            )
        if not features:
            raise ValueError("`features` must name a feature. Received: features={}. A table is there to be read.")
        self.of = of
        self.features = dict(features)
        self.names = tuple(sorted(set(features.values())))

    def __repr__(self) -> str:
        return f"Embeddings({self.features!r})"

    def init(self, values: Mapping[str, jax.typing.ArrayLike]) -> DeferredTable:
        """Return the state of new tables.

        Args:
          values: the rows of each table, by its name: shape=(rows, ...), dtype float32, bfloat16 or float16.

        Raises:
          ValueError: if a table lacks or is one too many, or has no rows.
          TypeError: if values are of another dtype.
        """
        self._check_names("values", values, self.names, all_of_them=True)
        return joined({name: self.of.init(jnp.asarray(values[name])) for name in self.names})

    def init_random(
        self,
        key: jax.Array,
        shapes: Mapping[str, tuple[int, ...]],
        initializer: jax.nn.initializers.Initializer,
        *,
        sharding: jax.sharding.Sharding | None = None,
    ) -> DeferredTable:
        """Return the state of new tables that an initializer fills.

        Args:
          key: a key of `jax.random`. The values of a table depend on the names of all, not on their order.
          shapes: the shape of each table by its name: `(rows, width)`.
          initializer: such as `jax.nn.initializers.normal(0.01)`: called with a key, a shape and float32.
          sharding: how tables lie on a mesh, such as `NamedSharding(mesh, PartitionSpec("data"))`, which divides rows.
            Each device makes its own part: no table is ever whole on one of them. None for the default device.

        Raises:
          ValueError: if a table lacks or is one too many.
        """
        self._check_names("shapes", shapes, self.names, all_of_them=True)

        def draw(key: jax.Array) -> dict[str, jax.Array]:
            keys = dict(zip(self.names, jax.random.split(key, len(self.names)), strict=True))
            return {name: initializer(keys[name], shapes[name], jnp.float32) for name in self.names}

        return jax.jit(self.init, donate_argnums=0)(jax.jit(draw, out_shardings=sharding)(key))

    def from_keras(
        self, training: Training, paths: Mapping[str, str], *, sharding: jax.sharding.Sharding | None = None
    ) -> DeferredTable:
        """Return the state of all tables as Keras left them; see `DeferredRows.from_keras`.

        Args:
          training: what `load_keras` gives.
          paths: Keras's path of each table, by its name.
          sharding: how tables lie on a mesh. None for the default device.

        Raises:
          ValueError: if a table lacks or is one too many, or cannot go on from the training.
        """
        self._check_names("paths", paths, self.names, all_of_them=True)
        return joined({name: self.of.from_keras(training, paths[name], sharding=sharding) for name in self.names})

    def read(self, tables: DeferredTable, ids: Mapping[str, jax.typing.ArrayLike]) -> dict[str, jax.Array]:
        """Return the rows of each feature as they are by now; see `deferred_rows`.

        Args:
          tables: their state.
          ids: the indices of each feature, integers of any shape. A feature may be left out. An index that is negative
            or past the end is padding, and reads as zeros.

        Returns:
          By feature: `shape=(*ids.shape, *row_shape)`, in the dtype of the table.
        """
        self._check_names("ids", ids, self.features)
        parts = parts_of(self._checked(tables))
        return {name: self.of.read(parts[self.features[name]], jnp.asarray(ids[name])) for name in ids}

    def gradients(
        self, ids: Mapping[str, jax.typing.ArrayLike], of_rows: Mapping[str, jax.Array]
    ) -> dict[str, RowUpdates | None]:
        """Return the gradient of each table from those of the rows that its features read.

        Args:
          ids: the indices of each feature, as `read` got them.
          of_rows: the gradient with respect to what `read` gave, by feature.

        Returns:
          By table: `RowUpdates` with the rows of all its features, one after the other; None for a table that no
          feature read. Their sum is not taken here: hand them to a clip, to `add_gradients`, or to `update`.
        """
        self._check_names("ids", ids, self.features)
        self._check_names("of_rows", of_rows, ids, all_of_them=True)
        indices = {name: jnp.asarray(of_feature) for name, of_feature in ids.items()}
        for array in indices.values():
            check_indices(array)
        wide = any(array.dtype.itemsize == 8 for array in indices.values())
        by_table: dict[str, Any] = dict.fromkeys(self.names)
        for name, array in indices.items():
            rows = RowUpdates(array.astype(jnp.int64 if wide else jnp.int32), of_rows[name])
            by_table[self.features[name]] = add_gradients(by_table[self.features[name]], rows)
        return by_table

    def update(self, tables: DeferredTable, gradients: Mapping[str, RowUpdates | None]) -> DeferredTable:
        """Take one step of all tables, one that has no gradient too: its rows go on on their momentum.

        Args:
          tables: their state. Donate it under `jit`, to have it updated in place.
          gradients: what `gradients` gives, clipped or added up: `RowUpdates` or None for each table.

        Raises:
          ValueError: if a table lacks or is one too many, or a shape does not fit.
          TypeError: if a gradient is no `RowUpdates`.
        """
        self._check_names("gradients", gradients, self.names, all_of_them=True)
        for name, gradient in gradients.items():
            if gradient is not None and not isinstance(gradient, RowUpdates):
                raise TypeError(
                    f"`gradients` must hold `RowUpdates` or None. Received: {type(gradient).__name__} for {name!r}. "
                    "Differentiate with respect to what `read` gives, and call `gradients(ids, of_rows)`."
                )
        return self.of.update(self._checked(tables), gradients)

    def flush(self, tables: DeferredTable) -> DeferredTable:
        """Return the tables with all rows as they are by now, for saving: `tables.values`, and their moments.

        It needs the memory of up to two tables more, while it runs, for each of them; `values` does not.
        """
        return self.of.flush(self._checked(tables))[1]

    def values(self, tables: DeferredTable, rows: int = _PART) -> Iterator[tuple[str, int, jax.Array]]:
        """Yield the rows of all tables as they are by now, a part at a time: no other memory is needed.

        Args:
          tables: their state; not traced.
          rows: how many rows a part has, the last of a table excepted.

        Yields:
          The name of the table, the index of the first row, and the rows.

        Raises:
          ValueError: if `rows` is less than 1.
          TypeError: if it is no integer.

        Example:
          >>> import jax.numpy as jnp
          >>> from optax_kadam import deferred_rows
          >>> tables_of = Embeddings(deferred_rows(), {"item": "items"})
          >>> for name, start, rows in tables_of.values(tables_of.init({"items": jnp.ones((5, 2))}), rows=3):
          ...     print(name, start, rows.shape)
          items 0 (3, 2)
          items 3 (2, 2)
        """
        size, read = _check.integer("rows", rows, 1), jax.jit(self.of.read)
        for name in self.names:
            table = self.table(tables, name)
            count = table.values.shape[0]
            for start in range(0, count, size):
                part = read(table, start + jnp.arange(min(size, count), dtype=jnp.int32))
                yield name, start, part[: count - start]

    def table(self, tables: DeferredTable, name: str) -> DeferredTable:
        """Return one of the tables by its name, as the functions of `deferred_rows` take it.

        Raises:
          ValueError: if no table has this name.
          TypeError: if `tables` are no tables.
        """
        parts = parts_of(self._checked(tables))
        self._check_names("name", {name: None}, self.names)
        return parts[name]

    def _checked(self, tables: DeferredTable) -> DeferredTable:
        """Return the state of all tables, or raise where it is none of these."""
        if not isinstance(tables, DeferredTable) or not isinstance(tables.values, dict):
            raise TypeError(
                f"`tables` must be what `init` of these `Embeddings` gives. Received: {type(tables).__name__}. If a "
                "checkpoint gave it, restore with what `init` gives as the template."
            )
        self._check_names("tables", tables.values, self.names, all_of_them=True)
        return tables

    def _check_names(
        self, argument: str, given: object, known: Mapping[str, object] | tuple[str, ...], *, all_of_them: bool = False
    ) -> None:
        """Raise if `given` is no mapping by some of the known names, or by all of them."""
        kind = "feature" if isinstance(known, Mapping) else "table"
        if not isinstance(given, Mapping):
            raise TypeError(
                f"`{argument}` must be a dict by the name of a {kind}. Received: {type(given).__name__}. "
                f"The {kind}s are {', '.join(map(repr, known))}."
            )
        wrong = sorted(map(repr, given.keys() - set(known)))
        lacking = sorted(map(repr, set(known) - given.keys())) if all_of_them else []
        if wrong or lacking:
            received = [f"{', '.join(wrong)}, which is none"] if wrong else []
            received += [f"no {', '.join(lacking)}"] if lacking else []
            raise ValueError(
                f"`{argument}` must name {'each' if all_of_them else 'a'} {kind}, and nothing else. "
                f"Received: {'; '.join(received)}. The {kind}s are {', '.join(map(repr, known))}."
            )
