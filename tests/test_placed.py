"""`check_placed` names what lies otherwise than it is meant to."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, SingleDeviceSharding

import optax_kadam as ok

from .pods.meshes import P, mesh_of, shardings_of, tree
from .sparing import quick_jit

SPECS = {"in": P("data"), "out": P(None, "data"), "bias": P("data"), "scale": P()}
TREE = r"Each leaf of `tree` must lie as `shardings` says. Received: "


@pytest.fixture
def mesh():
    return mesh_of({"data": 8})


def test_what_lies_as_meant_passes(mesh):
    shardings = shardings_of(mesh, SPECS)
    whole, arrays = NamedSharding(mesh, P()), jax.device_put(tree(0), shardings)
    ok.check_placed(arrays, shardings)
    ok.check_placed((arrays, [arrays["scale"], None, optax.EmptyState()]), (shardings, whole))  # A prefix does, too.
    ok.check_placed({}, {})
    # Another spec, or another mesh of the same devices, that puts the same numbers into the same places.
    twice = mesh_of({"data": 4, "model": 2})
    ok.check_placed(arrays["in"], NamedSharding(mesh, P("data", None)))
    ok.check_placed(arrays["in"], NamedSharding(twice, P(("data", "model"))))
    ok.check_placed(jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=whole), whole)


def test_each_leaf_that_lies_otherwise_is_named(mesh):
    shardings = shardings_of(mesh, SPECS)
    whole = NamedSharding(mesh, P())
    arrays = jax.device_put(tree(0), shardings)
    with pytest.raises(ValueError) as caught:
        ok.check_placed(arrays, whole)
    assert str(caught.value) == (
        "Each leaf of `tree` must lie as `shardings` says. Received: 3 of 4 otherwise: P('data',) in 'device' instead "
        "of P() in 'device' at \"['bias']\"; P('data',) in 'device' instead of P() in 'device' at \"['in']\"; "
        "P(None, 'data') in 'device' instead of P() in 'device' at \"['out']\". Give `shardings` to `out_shardings` of "
        "the `jax.jit` that returns them, or move them: `jax.device_put(tree, shardings)`."
    )
    with pytest.raises(ValueError, match=r"Received: 4 of 4 otherwise: .*; and 1 more. Give `shardings`"):
        ok.check_placed(jax.device_put(arrays, NamedSharding(mesh, P(), memory_kind="pinned_host")), whole)


def test_memory_devices_and_dimensions_are_compared(mesh):
    whole, host = (NamedSharding(mesh, P(), memory_kind=kind) for kind in ("device", "pinned_host"))
    x = jax.device_put(np.ones((8, 8), np.float32), whole)
    with pytest.raises(ValueError, match=re.escape("P() in 'device' instead of P() in 'pinned_host' at ''")):
        ok.check_placed(x, host)
    with pytest.raises(ValueError, match=r"P\('data', None\) in 'device' instead of P\(None, 'data'\)"):
        ok.check_placed(jax.device_put(x, NamedSharding(mesh, P("data", None))), NamedSharding(mesh, P(None, "data")))
    # Where two shardings differ in the mesh alone, the message shows the meshes.
    half = jax.make_mesh((4,), ("data",), devices=jax.devices()[4:])
    with pytest.raises(ValueError, match=r"Mesh\('data': 8.* instead of .*Mesh\('data': 4"):
        ok.check_placed(x, NamedSharding(half, P()))
    with pytest.raises(ValueError, match=r"SingleDeviceSharding\(.* instead of P\(\) in 'device'"):
        ok.check_placed(jax.device_put(x, jax.devices()[1]), whole)
    with pytest.raises(ValueError, match=r"P\(\) in 'device' instead of SingleDeviceSharding\("):
        ok.check_placed(x, SingleDeviceSharding(jax.devices()[0]))
    with pytest.raises(ValueError, match=r"1 of 1 otherwise: P\(\) in 'device' instead of P\('data',\)"):
        ok.check_placed(x[0, 0], NamedSharding(mesh, P("data")))


def test_what_lies_nowhere_is_refused(mesh):
    whole = NamedSharding(mesh, P())
    with pytest.raises(ValueError, match=TREE + r"1 of 1 otherwise: numpy.ndarray, which lies nowhere, instead of P"):
        ok.check_placed({"kernel": np.ones(8)}, whole)
    with pytest.raises(ValueError, match=r"float, which lies nowhere, instead of P\(\) in 'device' at '\[0\]'"):
        ok.check_placed([1.0], whole)
    with pytest.raises(ValueError, match=r"jax.*ShapeDtypeStruct, which lies nowhere"):
        ok.check_placed(jax.ShapeDtypeStruct((8,), jnp.float32), whole)
    with pytest.raises(ValueError, match=r"a traced array, which lies nowhere, instead of .* Give `shardings` to"):
        quick_jit(functools.partial(ok.check_placed, shardings=whole))(jax.device_put(np.ones(8), whole))


def test_shardings_must_fit(mesh):
    whole = NamedSharding(mesh, P())
    x = jax.device_put(np.ones(8), whole)
    for found, shardings in (({"a": x}, {"b": whole}), ([x, x], [whole]), ([x], (whole,)), ({"a": x}, {"a": None})):
        with pytest.raises(ValueError, match=r"`shardings` must be a tree like `tree`, or a prefix of one. Received"):
            ok.check_placed(found, shardings)
    for other in (P(), "data", jax.devices()[0]):
        with pytest.raises(TypeError, match=r"must hold shardings. Received: .* at \"\['a'\]\". Make one: `N"):
            ok.check_placed({"a": x}, {"a": other})


def model_on(mesh, tx):
    model = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
    nnx.update(model, jax.device_put(nnx.state(model), NamedSharding(mesh, P())))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def test_states_of_flax(mesh):
    model, optimizer = model_on(mesh, ok.kadam())
    whole = NamedSharding(mesh, P())
    ok.check_placed(nnx.state(model, nnx.Param), whole)
    ok.check_placed(optax.tree.get(optimizer.opt_state, "mu"), whole)
    shardings = ok.zero1_shardings(ok.kadam(), nnx.state(model, nnx.Param), mesh)
    with pytest.raises(ValueError, match=r"6 of 6 otherwise: SingleDevice.*at '\.iterations.*; and 3 more"):
        ok.check_placed(nnx.as_pure(optimizer.opt_state), nnx.as_pure(shardings))
