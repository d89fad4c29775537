"""Meshes of eight virtual devices, a tree of parameters, and a training on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..helpers import share
from ..sparing import quick_jit

P = PartitionSpec

# How far a sharded step is from one that is whole, as a share of the movement or of the largest entry. The LLVM of jax
# 0.12 contracts a multiply-add in the loop over full vectors and not in the rest, and shards have other rests: 9.7e-8
# measured, on some processors alone, Adam's own second moment.
LEAST = 0.0 if jax.__version_info__ < (0, 11) else 5e-7

# The axes of a mesh, and how the leaves of a tree are divided over them. In the mixed mesh they are so in three ways.
MESHES = {
    "fsdp": ({"data": 8}, {"in": P("data"), "out": P("data"), "bias": P("data"), "scale": P()}),
    "tensor": ({"model": 8}, {"in": P(None, "model"), "out": P("model"), "bias": P("model"), "scale": P()}),
    "mixed": (
        {"data": 4, "model": 2},
        {"in": P("data", "model"), "out": P("model", "data"), "bias": P("model"), "scale": P()},
    ),
}
SUMS = {"fsdp": 1, "tensor": 1, "mixed": 3}  # All-reduces of a norm: one for each way in which leaves are divided.


def tree(seed):
    """Return numpy's arrays: what is put on a mesh is donated, and might share its buffer with an array of JAX's."""
    random = np.random.default_rng(seed)
    shapes = {"in": (16, 8), "out": (8, 32), "bias": (8,), "scale": ()}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def mesh_of(axes, axis_type=AxisType.Auto):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(axis_type,) * len(axes))


def shardings_of(mesh, specs):
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def step_of(tx):
    def step(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(tx, params, gradients, steps=4, state_shardings=None, shardings=None, jit=jax.jit):
    """Return the shardings of the first state, parameters and state after the steps, and the step's HLO; it donates."""
    state = quick_jit(tx.init, out_shardings=state_shardings)(params)
    out = None if shardings is None else (shardings, state_shardings)
    step = jit(step_of(tx), donate_argnums=(1, 2), out_shardings=out).lower(gradients, state, params).compile()
    placed = jax.tree.map(lambda x: x.sharding, state)
    for _ in range(steps):
        params, state = step(gradients, state, params)
    return placed, params, state, step.as_text()


def furthest(found, wanted):
    """Return the largest distance of two trees, as a share of the largest number of each leaf."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    arrays = ((np.asarray(jnp.asarray(x), np.float64) for x in pair) for pair in pairs)
    return max(share(a, b, max(1e-30, np.abs(b).max())) for a, b in arrays)
