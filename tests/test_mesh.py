"""The names of mesh axes: a sum goes over those that are named, and bad names are refused."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType

import optax_kadam as ok

from .pods.meshes import P, furthest, mesh_of, tree


@pytest.mark.parametrize("make", [ok.clip_by_norm, ok.clip_by_global_norm])
def test_a_norm_goes_over_an_axis_of_vmap(make):
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
def test_bad_axis_names_are_refused(name):
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
