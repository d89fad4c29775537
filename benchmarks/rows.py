"""8,192 rows of 64 floats out of tables of 10^5 to 10^7: a step that reads them, and takes their gradient.

The rows are drawn uniformly, so that almost all differ and few are in a cache. Each peer takes turns with
`deferred_rows` alone, for two of the largest tables are all that fits in memory.

- "lazy Adam" is wrong, as LazyAdam and torch's SparseAdam are: a row without a gradient does not move. It is the least
  that can be done with the same gathers and scatters.
- `kadam` on `RowUpdates`, `optax.adam` and Keras move all rows at each step; the latter two make a dense gradient.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_kadam as ok
from benchmarks import _steps
from benchmarks._race import Contender, Session

WIDTH, BATCHES = 64, 16
OURS = "deferred_rows"
TABLES = ok.deferred_rows()
Batch = tuple[jax.Array, jax.Array]  # The indices, and what their rows should become.


def run(session: Session) -> None:
    """Measure each size beside the peers, and ours from size to size."""
    sizes = (100, 200, 300) if session.quick else (10**5, 10**6, 10**7)
    batches = {size: _batches(session, size) for size in sizes}
    # Each peer, and how many arrays of the table's size it holds, with the gradient and what XLA puts aside.
    peers = {
        "lazy Adam": (_lazy, 3),
        "torch SparseAdam": (_torch, 3),
        "kadam RowUpdates": (_row_updates, 4),
        "optax.adam": (_dense, 4),
        "Keras": (_keras, 4),
    }
    for size in sizes:
        for name, (build, arrays) in peers.items():
            builders = {
                OURS: partial(_deferred, session, size, batches[size]),
                name: partial(build, session, size, batches[size]),
            }
            session.race(_in_words(size), builders, [(OURS, name)], needs=(3 + arrays) * _bytes(size))
    names = {size: f"{OURS}, {_in_words(size)}" for size in (sizes[-1], sizes[0])}
    builders = {name: partial(_deferred, session, size, batches[size]) for size, name in names.items()}
    session.race("by size", builders, [(names[sizes[-1]], names[sizes[0]])], needs=3 * _bytes(sizes[0] + sizes[-1]))


def _in_words(size: int) -> str:
    return f"10^{len(str(size)) - 1} rows" if size >= 10**4 else f"{size} rows"


def _bytes(size: int) -> int:
    return 4 * WIDTH * size


def _batches(session: Session, size: int) -> list[Batch]:
    rng, count = np.random.default_rng(0), 8 if session.quick else 8192

    def batch() -> Batch:
        indices = rng.integers(size, size=count)
        return jnp.asarray(indices, jnp.int32), jnp.asarray(rng.standard_normal((count, WIDTH), np.float32))

    return [batch() for _ in range(BATCHES)]


def _start(size: int) -> jax.Array:
    return jnp.full((size, WIDTH), 0.1)


def _deferred(session: Session, size: int, batches: list[Batch]) -> Contender:
    table = jax.jit(TABLES.init, donate_argnums=0)(_start(size))
    return session.jitted(_deferred_step, table, *batches)


def _deferred_step(table: Any, batch: Batch) -> Any:  # A function of the module is compiled once for each size.
    indices, targets = batch
    return TABLES.update(table, indices, TABLES.read(table, indices) - targets)


def _lazy(session: Session, size: int, batches: list[Batch]) -> Contender:
    def step(state: Any, batch: Batch) -> Any:
        (indices, targets), (table, mu, nu, count) = batch, state
        distinct, places = jnp.unique(indices, size=indices.size, fill_value=size, return_inverse=True)
        p, m, v = (array.at[distinct].get(mode="fill", fill_value=0) for array in (table, mu, nu))
        gradients = table.at[indices].get(mode="fill", fill_value=0) - targets
        g = jax.ops.segment_sum(gradients, places, indices.size)
        count = count + 1
        t = count.astype(jnp.float32)
        m, v = m + (g - m) * 0.1, v + (g * g - v) * 0.001
        alpha = 0.001 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        p = p - m * alpha / (jnp.sqrt(v) + 1e-7)

        def put(array: jax.Array, new: jax.Array) -> jax.Array:
            return array.at[distinct].set(new, mode="drop", unique_indices=True, indices_are_sorted=True)

        return put(table, p), put(mu, m), put(nu, v), count

    table = _start(size)
    return session.jitted(
        step, (table, jnp.zeros_like(table), jnp.zeros_like(table), jnp.zeros((), jnp.int32)), *batches
    )


def _row_updates(session: Session, size: int, batches: list[Batch]) -> Contender:
    tx = ok.kadam()
    apply = _steps.apply(tx)

    def step(state: Any, batch: Batch) -> Any:
        indices, targets = batch
        return apply(state, ok.RowUpdates(indices, state[0][indices] - targets))

    return session.jitted(step, _steps.start(tx, _start(size)), *batches)


def _gradient(table: jax.Array, batch: Batch) -> jax.Array:
    indices, targets = batch
    return jax.grad(lambda table: jnp.sum((table[indices] - targets) ** 2) / 2)(table)


def _dense(session: Session, size: int, batches: list[Batch]) -> Contender:
    tx = optax.adam(1e-3)
    apply, table = _steps.apply(tx), _start(size)
    return session.jitted(
        lambda state, batch: apply(state, _gradient(state[0], batch)), (table, tx.init(table)), *batches
    )


def _keras(session: Session, size: int, batches: list[Batch]) -> Contender | None:
    if not (keras := session.peer("keras")):
        return None
    state, apply = _steps.keras_optimizer(keras, [_start(size)])
    return session.jitted(lambda state, batch: apply(state, [_gradient(state[0][0], batch)]), state, *batches)


def _torch(session: Session, size: int, batches: list[Batch]) -> Contender | None:
    if not (torch := session.peer("torch")) or not (device := _steps.torch_device(session, torch)):
        return None
    table = torch.full((size, WIDTH), 0.1, device=device, requires_grad=True)
    optimizer = torch.optim.SparseAdam([table])
    tensors = [[torch.tensor(np.array(array), device=device) for array in batch] for batch in batches]
    turns = itertools.cycle([(indices.long(), targets) for indices, targets in tensors])

    def advance() -> None:
        indices, targets = next(turns)
        gradients = table.detach()[indices] - targets
        table.grad = torch.sparse_coo_tensor(indices[None], gradients, table.shape, check_invariants=False)
        optimizer.step()
        _steps.synchronize(torch, device)

    return session.timed(advance)
