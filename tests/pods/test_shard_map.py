"""Inside `shard_map`, where a transformation sees one shard, `axis_name` makes its sums those over all shards."""

import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_kadam as ok

from ..hlo import collectives
from ..sparing import mostly_slow, quick_jit
from .meshes import LEAST, MESHES, P, furthest, mesh_of, step_of, train, tree

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
# All leaves that are divided alike take one all-reduce, in the mixed mesh those over both axes and those over one;
# replicated ones take none.
SUMS = {"fsdp": 1, "tensor": 1, "mixed": 2}


def run(tx, kind, gradients, params, check_vma=True):
    axes, specs = MESHES[kind]
    specs = {name: specs[name] for name in params}

    def spec_of(path, leaf):
        if not leaf.shape:
            return P()  # A norm stands under the name of its parameter.
        return next((specs[key.key] for key in path if isinstance(key, jax.tree_util.DictKey)), P())

    of_state = jax.tree.map_with_path(spec_of, jax.eval_shape(tx.init, params))
    divided = lambda f, given, gives: quick_jit(  # noqa: E731
        jax.shard_map(f, mesh=mesh_of(axes), in_specs=given, out_specs=gives, check_vma=check_vma)
    )
    state = divided(tx.init, (specs,), of_state)(params)
    step = divided(step_of(tx), (specs, of_state, specs), (specs, of_state)).lower(gradients, state, params).compile()
    for _ in range(4):
        params, state = step(gradients, state, params)
    return params, state, step.as_text()


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("feature", "kind"),
    mostly_slow(
        itertools.product(FEATURES, MESHES), lambda feature, kind: kind == "mixed" or feature == "global_clipnorm"
    ),
)
def test_shards_give_the_whole(feature, kind):
    params, gradients = tree(0), tree(1)
    *found, text = run(FEATURES[feature](tuple(MESHES[kind][0])), kind, gradients, params)
    _, *expected, _ = train(FEATURES[feature](None), params, gradients, jit=quick_jit)
    assert furthest(found, expected) <= (5e-7 if "norm" in feature else LEAST)
    assert collectives(text) == ({} if feature == "plain" else {"all-reduce": SUMS[kind]})


@pytest.mark.compiler
@pytest.mark.parametrize("feature", ["clipnorm", "global_clipnorm", "loss scale"])
def test_without_check_vma_every_gradient_is_summed(feature):
    params, gradients = tree(0), tree(1)
    del params["scale"], gradients["scale"]
    *found, text = run(FEATURES[feature]("data"), "fsdp", gradients, params, check_vma=False)
    _, *expected, _ = train(FEATURES[feature](None), params, gradients, jit=quick_jit)
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
