"""The recipe of `train.py` for a model with tables: what is killed comes back with every row where it was.

    python -m tests.pods.train_tables --checkpoints DIR --write FILE.npz --mesh 2x4

The tables are one more part of the state, and nothing else is to be saved: their rows as of their last visits, the
moments, the last visits, the count, the learning rate and the ring of the missed steps are its arrays. The betas are
not: the template that Orbax restores into is made by the same `deferred_rows`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import optax_kadam as ok
from tests.pods import train as recipe

SHAPES = {"users": (4096, 8), "items": (512, 8)}
FEATURES = {"user": "users", "item": "items", "liked": "items"}
RATE = ok.schedules.CosineDecay(0.03, 20)
EMBEDDINGS = ok.Embeddings(ok.deferred_rows(RATE, weight_decay=0.1), FEATURES)
TRANSFORMATION, CLIP = ok.kadam(RATE), ok.clip_by_global_norm(0.5)


def initial(seed):
    of_tables, of_tower = jax.random.split(jax.random.key(seed))
    tower = {"kernel": jax.nn.initializers.glorot_normal()(of_tower, (16, 8)), "bias": jnp.zeros(8)}
    tables = EMBEDDINGS.init_random(of_tables, SHAPES, jax.nn.initializers.normal(0.5))
    return tower, TRANSFORMATION.init(tower), tables


def batch(step, seed):
    """Return the ids and clicks of a step, by its number alone; most rows miss most steps."""
    random = np.random.default_rng([seed, step])
    shapes = {"user": (32,), "item": (32,), "liked": (32, 4)}
    ids = {name: random.integers(-1, SHAPES[FEATURES[name]][0], shape, np.int32) for name, shape in shapes.items()}
    return ids, random.integers(0, 2, 32).astype(np.float32)


def loss_of(tower, rows, clicks):
    items = jnp.concatenate([rows["item"], rows["liked"].mean(1)], -1) @ tower["kernel"] + tower["bias"][None]
    return optax.sigmoid_binary_cross_entropy((rows["user"] * items).sum(-1), clicks).mean()


def train(directory, mesh, steps, seed=0):
    abstract = jax.eval_shape(lambda: initial(seed))
    abstract = *recipe.with_shardings(abstract[:2], mesh), with_divided_rows(abstract[2], mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    @jax.jit(donate_argnums=0, out_shardings=shardings)
    def train_step(state, ids, clicks):
        tower, moments, tables = state
        of_tower, of_rows = jax.grad(loss_of, (0, 1))(tower, EMBEDDINGS.read(tables, ids), clicks)
        gradients = of_tower, EMBEDDINGS.gradients(ids, of_rows)
        (of_tower, of_tables), _ = CLIP.update(gradients, CLIP.init(None), (tower, tables.values))
        updates, moments = TRANSFORMATION.update(of_tower, moments, tower)
        return optax.apply_updates(tower, updates), moments, EMBEDDINGS.update(tables, of_tables)

    def next_state(state, step):
        return train_step(state, *jax.tree.map(lambda array: recipe.place(array, rows), batch(step, seed)))

    return recipe.go_on(directory, steps, abstract, jax.jit(lambda: initial(seed), out_shardings=shardings), next_state)


def with_divided_rows(tables, mesh):
    """Divide the rows of all tables over all devices; the ring and the scalars are whole on each."""
    lengths = [rows for rows, _ in SHAPES.values()]

    def place(leaf):
        is_by_row = leaf.ndim and leaf.shape[0] in lengths
        return leaf.update(
            sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp")) if is_by_row else PartitionSpec())
        )

    return jax.tree.map(place, tables)


if __name__ == "__main__":
    recipe.main(train)
