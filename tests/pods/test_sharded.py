"""Over eight devices every feature gives what it gives on one, and the state is divided as its parameters are."""

import functools
import itertools

import jax
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import optax_kadam as ok

from ..hlo import collectives
from ..sparing import mostly_slow, quick_jit
from .meshes import LEAST, MESHES, SUMS, P, furthest, mesh_of, shardings_of, step_of, train, tree

FEATURES = {
    "plain": lambda: ok.kadam(0.01),
    "amsgrad": lambda: ok.kadam(0.01, amsgrad=True),
    "low precision": lambda: ok.kadam(0.01, mu_dtype="bfloat16"),
    "clipvalue": lambda: ok.kadam(0.01, clipvalue=0.1),
    "clipnorm": lambda: ok.kadam(0.01, clipnorm=0.5),
    "global_clipnorm": lambda: ok.kadam(0.01, global_clipnorm=0.5),
    "average": lambda: ok.kadam(0.01, use_ema=True, ema_overwrite_frequency=2),
    "average from the start": lambda: ok.kadam(0.01, use_ema=True, generation="tf_keras"),
    "accumulation": lambda: ok.kadam(0.01, gradient_accumulation_steps=2),
    "decay": lambda: ok.kadamw(0.01, weight_decay_mask={"in": True, "out": True, "bias": False, "scale": False}),
    "loss scale": lambda: ok.dynamic_loss_scale(ok.kadam(0.01), 4.0, 2),
}
# A norm sums each shard first: 4.4e-7 was measured. With bfloat16 moments, jax 0.12 contracts other multiply-adds in a
# program for shards: 1.6e-8. All else is equal to the bit.
AXIS_TYPES = AxisType.Auto, AxisType.Explicit
BOUNDS = dict.fromkeys(["clipnorm", "global_clipnorm"], 5e-7) | {"low precision": 1e-7}


@functools.cache
def on_one_device(feature):
    return train(FEATURES[feature](), tree(0), tree(1))


def lies(shardings, path, leaf, sharding):
    """Return whether a leaf of the state is divided as its parameter; a number is whole on every device."""
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and leaf.ndim]
    expected = shardings[names[0]] if names else NamedSharding(shardings["scale"].mesh, P())
    return sharding.is_equivalent_to(expected, leaf.ndim)


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("feature", "kind", "axis_type"),
    mostly_slow(
        itertools.product(FEATURES, MESHES, AXIS_TYPES),
        lambda feature, kind, axis_type: (
            (kind == "mixed" and axis_type is AxisType.Auto)
            or (kind == "mixed" and feature in ("amsgrad", "accumulation", "average from the start", "loss scale"))
            or (kind == "fsdp" and feature == "global_clipnorm")
        ),
    ),
)
def test_sharded_is_unsharded(feature, kind, axis_type):
    axes, specs = MESHES[kind]
    shardings = shardings_of(mesh_of(axes, axis_type), specs)
    placed, params, state, text = train(FEATURES[feature](), *(jax.device_put(tree(i), shardings) for i in (0, 1)))
    _, *expected, _ = on_one_device(feature)
    assert furthest((params, state), tuple(expected)) <= max(LEAST, BOUNDS.get(feature, 0.0))
    for (path, leaf), at_first in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(placed), strict=True):
        assert lies(shardings, path, leaf, at_first) and lies(shardings, path, leaf, leaf.sharding)
    sums = SUMS[kind] if "norm" in feature or feature == "loss scale" else 0
    assert collectives(text) == ({"all-reduce": sums} if sums else {})


@pytest.mark.parametrize("axis_type", AXIS_TYPES)
def test_an_eager_state_and_a_set_learning_rate_lie_as_they_should(axis_type):
    axes, specs = MESHES["mixed"]
    mesh = mesh_of(axes, axis_type)
    params = jax.device_put(tree(0), shardings_of(mesh, specs))
    tx = ok.kadam(amsgrad=True, use_ema=True, gradient_accumulation_steps=2)
    for name in ("mu", "nu", "nu_max", "average", "accumulator"):
        for param, leaf in zip(params.values(), optax.tree.get(tx.init(params), name).values(), strict=True):
            assert leaf.sharding.is_equivalent_to(param.sharding, leaf.ndim)
    _, state = quick_jit(step_of(tx))(params, quick_jit(tx.init)(params), params)
    changed = optax.tree.set(state, learning_rate=0.5)
    assert jax.tree.map(lambda x: x.sharding, changed) == jax.tree.map(lambda x: x.sharding, state)
