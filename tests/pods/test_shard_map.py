"""Inside `shard_map` a transformation sees one shard: what sums over leaves is told the axes of the mesh."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType

import optax_kadam as ok
from benchmarks._hlo import collectives

from .meshes import MESHES, P, furthest, mesh_of, step_of, train, tree

FEATURES = {
    "plain": lambda names: ok.kadam(0.01, amsgrad=True),
    "clipnorm": lambda names: ok.kadam(0.01, clipnorm=0.5, axis_name=names),
    "global_clipnorm": lambda names: ok.kadam(0.01, global_clipnorm=0.5, axis_name=names),
    "tf_keras norm": lambda names: ok.kadam(0.01, global_clipnorm=0.5, generation="tf_keras", axis_name=names),
    "legacy norm": lambda names: ok.kadam(0.01, clipvalue=1.0, clipnorm=0.5, generation="legacy", axis_name=names),
    "legacy global norm": lambda names: ok.kadam(0.01, global_clipnorm=0.5, generation="legacy", axis_name=names),
    "adamw norm": lambda names: ok.kadamw(0.01, clipnorm=0.5, use_ema=True, axis_name=names),
    "accumulated norm": lambda names: ok.kadam(0.01, clipnorm=0.5, gradient_accumulation_steps=2, axis_name=names),
    "loss scale": lambda names: ok.dynamic_loss_scale(ok.kadam(0.01), 4.0, 2, axis_name=names),
}
# One for all leaves that are divided alike: in the mixed mesh, over both axes and over one; none for replicated ones.
SUMS = {"fsdp": 1, "tensor": 1, "mixed": 2}


def run(tx, kind, gradients, params, check_vma=True):
    axes, specs = MESHES[kind]
    specs = {name: specs[name] for name in params}

    def spec_of(path, leaf):
        return next((specs[key.key] for key in path if isinstance(key, jax.tree_util.DictKey)), P())

    of_state = jax.tree.map_with_path(spec_of, jax.eval_shape(tx.init, params))
    divided = lambda f, given, gives: jax.jit(  # noqa: E731
        jax.shard_map(f, mesh=mesh_of(axes), in_specs=given, out_specs=gives, check_vma=check_vma)
    )
    state = divided(tx.init, (specs,), of_state)(params)
    step = divided(step_of(tx), (specs, of_state, specs), (specs, of_state)).lower(gradients, state, params).compile()
    for _ in range(4):
        params, state = step(gradients, state, params)
    return params, state, step.as_text()


@pytest.mark.parametrize("kind", MESHES)
@pytest.mark.parametrize("feature", FEATURES)
def test_shards_give_the_whole(feature, kind):
    params, gradients = tree(0), tree(1)
    *found, text = run(FEATURES[feature](tuple(MESHES[kind][0])), kind, gradients, params)
    _, *expected, _ = train(FEATURES[feature](None), params, gradients)
    assert furthest(found, expected) <= (5e-7 if "norm" in feature else 0.0)
    assert collectives(text) == ({} if feature == "plain" else {"all-reduce": SUMS[kind]})


@pytest.mark.parametrize("feature", ["clipnorm", "global_clipnorm", "loss scale"])
def test_without_check_vma_every_gradient_is_summed(feature):
    params, gradients = tree(0), tree(1)
    del params["scale"], gradients["scale"]
    *found, text = run(FEATURES[feature]("data"), "fsdp", gradients, params, check_vma=False)
    _, *expected, _ = train(FEATURES[feature](None), params, gradients)
    assert furthest(found, expected) <= 5e-7
    assert collectives(text) == {"all-reduce": 1}


@pytest.mark.parametrize("check_vma", [True, False])
def test_all_devices_skip_what_is_not_finite_on_one(check_vma):
    params, gradients = tree(0), tree(1)
    del params["scale"], gradients["scale"]
    gradients["in"][0, 0] = jnp.inf
    tx = FEATURES["loss scale"]("data")
    found, state, _ = run(tx, "fsdp", gradients, params, check_vma)
    assert furthest(found, params) == 0.0 and optax.tree.get(state, "dynamic_scale") == 4.0 / 2**4


@pytest.mark.parametrize("make", [ok.clip_by_norm, ok.clip_by_global_norm])
def test_axes_of_vmap(make):
    """The norm over the axis of a batch is that of the whole batch, as if it were one array."""
    gradients = jnp.asarray(tree(0)["in"])
    tx = make(0.5, axis_name="batch")
    found = jax.vmap(lambda g: tx.update(g, tx.init(None))[0], axis_name="batch")(gradients)
    expected = make(0.5).update(gradients, tx.init(None))[0]
    assert furthest(found, expected) <= 5e-7


CLIPS = {
    "each": lambda names: ok.clip_by_norm(1.0, axis_name=names),
    "global": lambda names: ok.clip_by_global_norm(1.0, axis_name=names),
    "loss scale": lambda names: ok.dynamic_loss_scale(optax.identity(), axis_name=names),
}


@pytest.mark.parametrize("name", CLIPS)
def test_messages(name):
    make = CLIPS[name]

    def update(g):
        tx = make(("data", "modle"))
        return tx.update(g, tx.init(None))[0]

    mesh = mesh_of({"data": 4, "model": 2}, AxisType.Auto)
    with pytest.raises(ValueError, match="which has 'data', 'model'. Received: axis_name='modle'. Leave it out under"):
        jax.shard_map(update, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(jnp.ones(8))
    with pytest.raises(
        ValueError, match="`axis_name` must name axes of the mesh .* no axis. Received: axis_name='data'"
    ):
        update(jnp.ones(8))
    for bad in (1, ("data", 1), ["data"]):
        with pytest.raises(
            TypeError, match="`axis_name` must be a string, a tuple of strings, or None. Received: axis_"
        ):
            make(bad)
    with pytest.raises(TypeError, match="`axis_name` must be a string"):
        ok.kadam(axis_name=1)
