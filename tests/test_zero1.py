"""ZeRO-1 divides the moments over the data axis and leaves the parameters whole: the same bits, less memory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding

import optax_kadam as ok

from .hlo import aliased, collectives
from .pods.meshes import LEAST, P, furthest, mesh_of, shardings_of, train, tree
from .sparing import mostly_slow, quick_jit

KEPT = {"in": True, "out": True, "bias": False}
TRANSFORMATIONS = {
    "plain": lambda: ok.kadam(0.01),
    "amsgrad": lambda: ok.kadam(0.01, amsgrad=True),
    "clipnorm": lambda: ok.kadam(0.01, clipnorm=0.5),
    "global_clipnorm": lambda: ok.kadam(0.01, global_clipnorm=0.5),
    "average": lambda: ok.kadam(0.01, use_ema=True, ema_overwrite_frequency=2),
    "accumulation": lambda: ok.kadam(0.01, gradient_accumulation_steps=2),
    "decay": lambda: ok.kadamw(0.01, weight_decay_mask=KEPT),
    "loss scale": lambda: ok.dynamic_loss_scale(ok.kadam(0.01), 4.0, 2),
    "inject_hyperparams": lambda: optax.inject_hyperparams(ok.kadam)(0.01),
    "masked": lambda: optax.masked(ok.kadam(0.01), KEPT),
    "partition": lambda: optax.partition(
        {"a": ok.kadam(0.01), "b": ok.kadamw(0.1)}, {"in": "a", "out": "b", "bias": "b"}
    ),
}


def trees():
    return tuple({name: x for name, x in tree(i).items() if name != "scale"} for i in (0, 1))


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("name", "axis_type"),
    mostly_slow(
        itertools.product(TRANSFORMATIONS, (AxisType.Auto, AxisType.Explicit)),
        lambda name, axis_type: axis_type is AxisType.Auto or name == "average",
    ),
)
def test_moments_take_an_eighth_of_the_memory_and_bits_are_the_same(name, axis_type):
    tx, mesh = TRANSFORMATIONS[name](), mesh_of({"data": 8}, axis_type)
    whole = NamedSharding(mesh, P())
    params, gradients = jax.device_put(trees(), whole)
    shardings = ok.zero1_shardings(tx, params, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(jax.eval_shape(tx.init, params))
    placed, *found, text = train(tx, params, gradients, state_shardings=shardings, shardings=whole)
    _, *expected, _ = train(tx, *jax.device_put(trees(), whole), state_shardings=whole, shardings=whole)
    assert furthest(found, expected) <= (5e-7 if "norm" in name else LEAST)
    assert placed == jax.tree.map(lambda leaf: leaf.sharding, found[1])
    for leaf in jax.tree.leaves(found[1]):
        assert leaf.addressable_shards[0].data.nbytes == (leaf.nbytes // 8 if leaf.ndim else leaf.nbytes)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found[0]))
    moved = 2 if name == "masked" else 3
    # A gradient that is whole on every device needs no sum, though the compiler may divide it before it takes one.
    assert collectives(text) == {"all-gather": moved}


@pytest.mark.compiler
def test_a_training_step_gathers_each_parameter_once():
    """The gradients are summed by one all-reduce, as without ZeRO-1; each parameter takes one all-gather."""
    mesh, tx = mesh_of({"data": 8}), ok.kadam(0.01)
    whole = NamedSharding(mesh, P())
    params = jax.device_put(trees()[0], whole)
    x, y = (jax.device_put(np.ones((64, n), np.float32), NamedSharding(mesh, P("data"))) for n in (16, 32))

    def step(params, state, x, y):
        def loss(params):
            return jnp.mean((jnp.tanh(x @ params["in"] + params["bias"][None]) @ params["out"] - y) ** 2)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for shardings, expected in ((whole, {}), (ok.zero1_shardings(tx, params, mesh), {"all-gather": 3})):
        state = quick_jit(tx.init, out_shardings=shardings)(params)
        compiled = jax.jit(step, donate_argnums=(0, 1), out_shardings=(whole, shardings)).lower(params, state, x, y)
        assert collectives(compiled.compile().as_text()) == {"all-reduce": 1} | expected


def test_a_division_of_the_parameters_is_kept():
    """Moments are divided as their parameters, and along one more dimension; mesh and parameters may be abstract."""
    mesh = AbstractMesh((4, 2), ("data", "model"))
    specs = {"in": P(None, "model"), "out": P("model"), "bias": P(("model", "data")), "scale": P()}
    shardings = shardings_of(mesh, specs)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree(0), shardings)
    found = ok.zero1_shardings(ok.kadam(), params, mesh, indivisible="replicate")
    mu = {name: sharding.spec for name, sharding in optax.tree.get(found, "mu").items()}
    assert mu == {"in": P("data", "model"), "out": P("model", "data"), "bias": P(("model", "data")), "scale": P()}
    elsewhere = jax.device_put(tree(0)["in"], NamedSharding(mesh_of({"model": 8}), P(None, "model")))
    assert optax.tree.get(ok.zero1_shardings(ok.kadam(), elsewhere, mesh), "mu").spec == P("data", None)


def test_what_is_divided_along_the_axis_already_stays_so():
    """As parameters of FSDP: such a leaf is no indivisible one, though none of its dimensions is free."""
    mesh = mesh_of({"data": 8})
    params = jax.device_put(trees()[0], shardings_of(mesh, {"in": P("data"), "out": P("data"), "bias": P("data")}))
    found = ok.zero1_shardings(ok.kadam(), params, mesh)
    mu = {name: sharding.spec for name, sharding in optax.tree.get(found, "mu").items()}
    assert mu == {"in": P("data", None), "out": P("data", None), "bias": P("data")}


@pytest.mark.compiler
@pytest.mark.parametrize("name", ["plain", "average", "global_clipnorm"])
def test_moments_in_the_memory_of_the_host(name):
    """What has the shape of a parameter is kept there, in place, and the bits are those of moments on the device."""
    tx, mesh = TRANSFORMATIONS[name](), mesh_of({"data": 8})
    whole = NamedSharding(mesh, P())
    params, gradients = jax.device_put(trees(), whole)
    on_device, in_host = (ok.zero1_shardings(tx, params, mesh, memory_kind=kind) for kind in (None, "pinned_host"))

    def fetching(gradients, state, params):
        return tx.update(gradients, jax.device_put(state, on_device), params)

    fetched = optax.GradientTransformationExtraArgs(tx.init, fetching)
    _, *expected, _ = train(tx, params, gradients, state_shardings=on_device, shardings=whole)
    placed, params, state, text = train(
        fetched, *jax.device_put(trees(), whole), state_shardings=in_host, shardings=whole
    )
    assert furthest((params, state), expected) == 0
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True):
        assert leaf.sharding == sharding
        assert sharding.memory_kind == ("pinned_host" if leaf.ndim else "device")
    assert aliased(text) == len(jax.tree.leaves((params, state)))
    assert all(leaf.sharding == whole for leaf in jax.tree.leaves(params))


def test_models_of_flax_are_divided():
    mesh = mesh_of({"data": 8})
    params = nnx.state(nnx.Linear(16, 8, rngs=nnx.Rngs(0)), nnx.Param)
    for of_model in (params, nnx.to_pure_dict(params)):
        shardings = ok.zero1_shardings(ok.kadam(), of_model, mesh)
        state = quick_jit(ok.kadam().init, out_shardings=shardings)(of_model)
        assert all(leaf.sharding.spec[:1] == (("data",) if leaf.ndim else ()) for leaf in jax.tree.leaves(state))


@pytest.mark.compiler
def test_nnx_jit_keeps_what_its_in_shardings_say_and_divides_the_parameters_without():
    """The recipe of docs/recipes/zero1.md: `in_shardings` of `nnx.jit` holds for what comes out of it, too."""
    mesh, tx = mesh_of({"data": 8}), ok.kadamw(0.01, amsgrad=True)
    whole = NamedSharding(mesh, P())
    x = jax.device_put(
        np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32), NamedSharding(mesh, P("data"))
    )

    def train(model, optimizer, x):
        loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - 1.0) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    def trained(divide, told):
        model = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
        nnx.update(model, jax.device_put(nnx.state(model), whole))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        shardings = nnx.as_pure(ok.zero1_shardings(tx, nnx.state(model, nnx.Param), mesh)) if divide else whole
        nnx.update(optimizer.opt_state, nnx.state(jax.device_put(nnx.as_pure(optimizer.opt_state), shardings)))
        optimizer.step[...] = jax.device_put(optimizer.step[...], whole)
        placed = nnx.StateSharding(jax.tree.map(lambda leaf: leaf.sharding, nnx.state(optimizer)))
        step = nnx.jit(train, in_shardings=(whole, placed, None), donate_argnums=(0, 1)) if told else nnx.jit(train)
        for _ in range(3):
            step(model, optimizer, x)
        ok.check_placed(nnx.as_pure(optimizer.opt_state), shardings)
        return nnx.state(model, nnx.Param)

    found, expected = trained(True, True), trained(False, True)
    ok.check_placed(found, whole)
    assert furthest(found, expected) <= LEAST
    with pytest.raises(ValueError, match=r"2 of 2 otherwise: P\('data',\) in 'device' instead of P\(\) in 'device' at"):
        ok.check_placed(trained(True, False), whole)


def test_bad_arguments_are_refused():
    tx, params, mesh = ok.kadam(), {"dense": {"kernel": jnp.ones((3, 6)), "bias": jnp.ones(8)}}, mesh_of({"data": 8})
    with pytest.raises(ValueError, match="must be an axis of the mesh, which has 'data'. Received: axis_name='batch'."):
        ok.zero1_shardings(tx, params, mesh, "batch")
    with pytest.raises(
        ValueError,
        match=r"size of axis 'data', 8, divides. Received: shape=\(3, 6\) at \"\['dense'\]\['kernel'\]\". Pass indiv",
    ):
        ok.zero1_shardings(tx, params, mesh)
    with pytest.raises(
        ValueError, match="`indivisible` must be 'error' or 'replicate'. Received: indivisible='whole'."
    ):
        ok.zero1_shardings(tx, params, mesh, indivisible="whole")
    with pytest.raises(
        ValueError, match="memory that the devices of the mesh can address. Received: memory_kind='host'. .*pinned_host"
    ):
        ok.zero1_shardings(tx, params, mesh, memory_kind="host")
    specs = jax.tree.map(lambda s: s.spec, ok.zero1_shardings(tx, params, mesh, indivisible="replicate"))
    assert optax.tree.get(specs, "mu") == {"dense": {"kernel": P(None, None), "bias": P("data")}}
