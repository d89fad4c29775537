"""A step that is exported for three platforms, written and read back gives the same bits here."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import optax_kadam as ok

from .meshes import step_of, tree

PLATFORMS = ("cpu", "cuda", "tpu")
TX = ok.kadam(0.01, amsgrad=True, clipnorm=0.5, weight_decay=0.1)


def classes_of(state):
    """Yield the classes of the named tuples in a state, from the outside in."""
    if not isinstance(state, tuple):
        return
    if hasattr(state, "_fields"):
        yield type(state)
    for field in state:
        yield from classes_of(field)


def read_back(exported):
    assert exported.platforms == PLATFORMS
    return export.deserialize(exported.serialize())


def assert_same_bits(call, step=jax.jit(step_of(TX))):  # noqa: B008
    params, gradients = (jax.tree.map(jnp.asarray, tree(i)) for i in (0, 1))
    state = TX.init(params)
    found = expected = params, state
    for _ in range(3):
        found, expected = call(gradients, found[1], found[0]), step(gradients, expected[1], expected[0])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_whose_classes_are_registered_is_exported():
    state = TX.init(tree(0))
    for kind in set(classes_of(state)):
        name = f"{kind.__module__}.{kind.__qualname__}"
        export.register_namedtuple_serialization(kind, serialized_name=name)
    exported = export.export(jax.jit(step_of(TX)), platforms=PLATFORMS)(tree(1), state, tree(0))
    assert_same_bits(read_back(exported).call)


def test_the_leaves_of_a_state_need_no_registration():
    leaves, structure = jax.tree.flatten(TX.init(tree(0)))

    def step(gradients, leaves, params):
        params, state = step_of(TX)(gradients, jax.tree.unflatten(structure, leaves), params)
        return params, jax.tree.leaves(state)

    called = read_back(export.export(jax.jit(step), platforms=PLATFORMS)(tree(1), leaves, tree(0))).call

    def call(gradients, state, params):
        params, leaves = called(gradients, jax.tree.leaves(state), params)
        return params, jax.tree.unflatten(structure, leaves)

    assert_same_bits(call)
