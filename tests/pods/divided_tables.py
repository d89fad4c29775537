"""A step of tables whose rows are divided over devices, in two forms: by the compiler, and by `jax.shard_map`.

Left to the compiler, every device looks up all rows of the batch, most of which it has not, and all that a row has goes
to all devices: its value, its moments, the step of its last visit. With `shard_map` the moments stay where they are:
each device steps its own rows. What is sent are the ids, the rows that the model reads, and their gradients.
"""

import jax
from jax.sharding import PartitionSpec as P

import optax_kadam as ok


def by_the_compiler(embeddings, loss_of):
    """Return a step of tables: for one device, or for many with whatever collectives the compiler finds best."""

    def step(tables, ids, labels):
        loss, of_rows = jax.value_and_grad(loss_of)(embeddings.read(tables, ids), labels)
        return embeddings.update(tables, embeddings.gradients(ids, of_rows)), loss

    return step


def by_shard_map(embeddings, loss_of, mesh, tables):
    """Return a step in which each device reads and steps its own rows. `loss_of` is a mean over its part of a batch."""
    count = mesh.shape["data"]

    def step(tables, ids, labels):
        device = jax.lax.axis_index("data")
        ids = {
            feature: jax.lax.all_gather(part, "data", tiled=True)
            - device * tables.values[embeddings.features[feature]].shape[0]  # In a row of another device: padding.
            for feature, part in ids.items()
        }
        rows = {
            feature: jax.lax.psum_scatter(rows, "data", tiled=True)  # One device has the row, and all others zeros.
            for feature, rows in embeddings.read(tables, ids).items()
        }
        loss, of_rows = jax.value_and_grad(loss_of)(rows, labels)
        of_rows = {feature: jax.lax.all_gather(g / count, "data", tiled=True) for feature, g in of_rows.items()}
        return embeddings.update(tables, embeddings.gradients(ids, of_rows)), jax.lax.pmean(loss, "data")

    specs = specs_of(tables)
    return jax.shard_map(
        step, mesh=mesh, in_specs=(specs, P("data"), P("data")), out_specs=(specs, P()), check_vma=False
    )


def specs_of(tables):
    """Return how tables lie: all that is kept by row is divided, all that tables share is whole on each device."""
    shared = ("iterations", "learning_rate", "missed")
    return type(tables)(
        *(
            jax.tree.map(lambda _, name=name: P() if name in shared else P("data"), field)
            for name, field in zip(tables._fields, tables, strict=True)
        )
    )


def embeddings_of(*features):
    """Return one table that several features share."""
    return ok.Embeddings(ok.deferred_rows(0.01), dict.fromkeys(features, "items"))
