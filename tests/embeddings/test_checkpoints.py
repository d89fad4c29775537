"""Tables that come back from an Orbax checkpoint in the middle of a training end with the bits of one left alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optax_kadam as ok

from ..pods.meshes import furthest, mesh_of
from ..sparing import mostly_slow

SHAPES = {"users": (64, 4), "items": (32, 8)}
FEATURES = {"user": "users", "item": "items", "liked": "items"}


def batch_of(step):
    """Return the ids of a step, which follow from its number; most rows miss many steps."""
    random = np.random.default_rng(step)
    sizes = {"user": (4,), "item": (4,), "liked": (4, 2)}
    return {name: random.integers(-1, SHAPES[FEATURES[name]][0], size).astype(np.int32) for name, size in sizes.items()}


def build(weight_decay):
    schedule = ok.schedules.CosineDecay(0.05, 40)
    return ok.Embeddings(ok.deferred_rows(schedule, weight_decay=weight_decay), FEATURES)


def divided(devices):
    return NamedSharding(mesh_of({"data": devices}), P("data"))


def begun(embeddings, devices):
    initializer = jax.nn.initializers.normal(1.0)
    return embeddings.init_random(jax.random.key(0), SHAPES, initializer, sharding=divided(devices))


def trained(embeddings, tables, steps):
    @jax.jit
    def step(tables, ids):
        return embeddings.update(tables, embeddings.gradients(ids, embeddings.read(tables, ids)))

    for i in steps:
        tables = step(tables, batch_of(i))
    return tables


@pytest.mark.parametrize(
    ("devices", "weight_decay"), mostly_slow(itertools.product((8, 2), (None, 0.1)), lambda *case: case == (8, 0.1))
)
def test_a_training_that_comes_back_ends_as_one_left_alone(tmp_path, devices, weight_decay):
    """On the mesh that it was saved from with the same bits, on another one within 1e-6."""
    embeddings = build(weight_decay)
    start = begun(embeddings, 8)
    alone = trained(embeddings, start, range(20))
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(12, args=ocp.args.StandardSave(trained(embeddings, start, range(12))))

    again = build(weight_decay)
    shape_of = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    template = jax.tree.map(shape_of, begun(again, devices))
    with ocp.CheckpointManager(tmp_path) as manager:
        tables = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(template))
    assert len(tables.mu["users"].sharding.device_set) == devices
    found = trained(again, tables, range(int(tables.iterations), 20))
    if devices == 8:
        jax.tree.map(np.testing.assert_array_equal, found, alone)
    assert furthest(found, alone) <= 1e-6


@pytest.mark.parametrize(
    ("saved", "other", "stored"),
    [
        ({"beta_1": 0.8}, {"beta_1": 0.8 + 1e-9}, "beta_1=0.8,"),  # Rings of one size.
        ({}, {"amsgrad": True}, "amsgrad=False"),
        ({"weight_decay": 0.1}, {}, "some weight decay"),
    ],
)
def test_a_checkpoint_of_another_algorithm_is_refused(tmp_path, saved, other, stored):
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=ocp.args.StandardSave(ok.deferred_rows(**saved).init(jnp.ones((3, 2)))))
        manager.wait_until_finished()
        template = ok.deferred_rows(**other).init(jnp.zeros((3, 2)))
        with pytest.raises(ValueError, match=rf"structures do not match:[\s\S]*missed.*{stored}"):
            manager.restore(0, args=ocp.args.StandardRestore(template))


def test_a_checkpoint_restored_without_a_template_is_refused(tmp_path):
    embeddings = build(None)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=ocp.args.StandardSave(begun(embeddings, 8)))
        manager.wait_until_finished()
        restored = manager.restore(0, args=ocp.args.StandardRestore())
    with pytest.raises(TypeError, match="`tables` must be what `init`.*Received: dict. .* as the template"):
        embeddings.read(restored, {"user": jnp.array([0])})


def test_what_all_tables_share_is_kept_once():
    """The ring costs 4 bytes for each of its steps and of its nodes, 3 for Keras's betas: not for each table."""
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    tables = begun(build(None), 8)
    assert size(tables.missed) == 1024 * 3 * 4
    assert size(begun(build(0.1), 8).missed) == 1024 * (3 + 2) * 4
    rows = sum(shape[0] * (3 * shape[1] * 4 + 4) for shape in SHAPES.values())
    assert size(tables) == size(tables.missed) + rows + 4 + 4
