"""Tables of 10^7 rows over eight devices, run; and of 10^9 over 256 chips of a TPU, as its compiler has them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from .. import hlo
from .divided_tables import by_shard_map, by_the_compiler, embeddings_of, specs_of
from .meshes import mesh_of
from .test_tpu import mesh_of as tpu_mesh_of

ROWS, WIDTH, BATCH, STEPS = 10_000_000, 8, 2048, 6


class Figures(NamedTuple):
    """What a step of a large table needs of a chip."""

    paper: float  # Bytes of rows, moments and last visits.
    arguments: int  # Bytes.
    beyond: int  # Bytes that are needed beside the arguments.
    not_aliased: int
    copies: int  # Of whole tables.
    collectives: dict[str, int]
    sent: dict[str, int]


def loss_of(rows, clicks):
    logits = (rows["seen"] * rows["bought"]).sum(-1)
    return optax.sigmoid_binary_cross_entropy(logits, clicks).mean()


def batch_of(seed):
    """Return ids whose likelihood falls like 1 / id, some of padding, and clicks."""
    random = np.random.default_rng(seed)
    ids = {name: (ROWS ** random.random(BATCH)).astype(np.int32) - 2 for name in ("seen", "bought")}
    return ids, random.integers(0, 2, BATCH).astype(np.float32)


def all_shapes(text):
    return {array.shape for one in hlo.computations(text) for line in one.values() for array in line.results}


def begin(key, sharding):
    initializer = jax.nn.initializers.normal(1.0)
    return embeddings_of("seen", "bought").init_random(key, {"items": (ROWS, WIDTH)}, initializer, sharding=sharding)


def trained(tables, step, put):
    """Return the losses of some steps, one read at the end, and the last tables; the first are donated."""
    losses, step = [], jax.jit(step, donate_argnums=0)
    for seed in range(STEPS):
        tables, loss = step(tables, *jax.tree.map(put, batch_of(seed)))
        losses.append(float(loss))
    ids, _ = batch_of(0)
    rows = jax.jit(embeddings_of("seen", "bought").read)(tables, jax.tree.map(put, ids))
    return np.array(losses), np.asarray(rows["seen"]), tables


@pytest.mark.slow  # It makes tables of 1 GB, two at a time at most.
def test_ten_million_rows_over_eight_devices_train_as_on_one():
    embeddings, mesh = embeddings_of("seen", "bought"), mesh_of({"data": 8})
    divided = NamedSharding(mesh, P("data"))
    put = functools.partial(jax.device_put, device=divided)
    losses, rows, tables = trained(begin(jax.random.key(0), None), by_the_compiler(embeddings, loss_of), lambda x: x)
    del tables

    making = jax.jit(begin, static_argnums=1).lower(jax.random.key(0), divided).compile()
    assert not any(shape[:1] == (ROWS,) for shape in all_shapes(making.as_text()))  # It is never whole on a device.
    tables = begin(jax.random.key(0), divided)
    for field in (tables.values, tables.mu, tables.nu):
        assert {shard.data.shape for shard in field["items"].addressable_shards} == {(ROWS // 8, WIDTH)}
    assert {shard.data.shape for shard in tables.last_visit["items"].addressable_shards} == {(ROWS // 8,)}

    for step, most in (
        (by_the_compiler(embeddings, loss_of), 1.3e6),
        (by_shard_map(embeddings, loss_of, mesh, tables), 0.3e6),
    ):
        tables = begin(jax.random.key(0), divided)
        compiled = jax.jit(step, donate_argnums=0).lower(tables, *jax.tree.map(put, batch_of(0))).compile()
        text, memory = compiled.as_text(), compiled.memory_analysis()
        assert not any(shape[:1] == (ROWS,) for shape in all_shapes(text))  # No table is gathered,
        assert (ROWS // 8, WIDTH) not in hlo.shapes(text, "copy")  # nor copied, but updated in place.
        assert hlo.aliased(text) == len(jax.tree.leaves(tables))
        assert memory.temp_size_in_bytes < 0.02 * memory.argument_size_in_bytes
        assert sum(hlo.sent(text).values()) <= most  # The ids, rows and gradients of the batch alone are 0.28 MB.
        found_losses, found_rows, tables = trained(tables, step, put)
        assert np.abs(found_losses - losses).max() <= 5e-7  # 1.2e-7 was measured.
        assert np.abs(found_rows - rows).max() <= 1e-6  # 2.4e-7 was measured.


def tpu_case(width, how, layout):
    """Compile a step of 64 * 10^9 numbers over 256 chips and return its figures."""
    mesh, rows, batch = tpu_mesh_of("v5e:16x16", 1), 64 * 10**9 // width, 65536 // 2
    embeddings = embeddings_of("seen", "bought")
    tables = jax.eval_shape(embeddings.init, {"items": jax.ShapeDtypeStruct((rows, width), jnp.float32)})
    formats = jax.tree.map(functools.partial(NamedSharding, mesh), specs_of(tables))
    if layout == "by rows":  # In the order of the rows, whatever padding that takes.
        formats = jax.tree.map(
            lambda leaf, f: Format(Layout((0, 1)), f) if leaf.shape == (rows, width) else f, tables, formats
        )
    tables = jax.tree.map(lambda leaf, f: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=f), tables, formats)
    divided, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
    shape = lambda dtype: jax.ShapeDtypeStruct((batch,), dtype, sharding=divided)  # noqa: E731
    step = (
        by_the_compiler(embeddings, loss_of) if how == "compiler" else by_shard_map(embeddings, loss_of, mesh, tables)
    )
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(formats, whole))
    compiled = jitted.lower(tables, dict.fromkeys(("seen", "bought"), shape("int32")), shape("float32")).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    return Figures(
        rows * (3 * width * 4 + 4) / 256,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        hlo.aliased(text) - len(jax.tree.leaves(tables)),
        sum(shape == (rows // 256, width) for shape in hlo.shapes(text, "copy", "copy-start")),
        hlo.collectives(text),
        hlo.sent(text),
    )


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("width", "how", "layout", "arguments", "sent"),
    [
        (128, "shard_map", "default", 1.001, 67.5e6),
        (128, "compiler", "default", 1.001, 300e6),
        (64, "shard_map", "by rows", 2.0, 33.9e6),  # A row of 64 is padded to 128.
        (64, "compiler", "by rows", 2.0, 183e6),
    ],
)
def test_a_billion_rows_over_256_chips_are_updated_in_place(width, how, layout, arguments, sent):
    """256 GB of rows and their moments; a chip of v5e has 16 GB. The batch has 65,536 ids."""
    figures = tpu_case(width, how, layout)
    assert figures.not_aliased == figures.copies == 0
    assert figures.paper <= figures.arguments <= arguments * figures.paper
    assert figures.beyond < 0.11 * figures.paper
    assert set(figures.collectives) <= {"all-reduce", "all-gather", "reduce-scatter", "collective-permute"}
    assert sum(figures.sent.values()) <= sent


@pytest.mark.tpu
def test_a_width_that_does_not_fill_a_tile_costs_copies_of_the_table():
    """The compiler keeps such a table by columns, which needs no padding, and turns it over to look rows up."""
    figures = tpu_case(64, "shard_map", "default")
    assert figures.arguments <= 1.001 * figures.paper
    assert figures.copies == 6
    assert figures.beyond > 2 * figures.paper
