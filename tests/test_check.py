"""Trees that do not belong together are refused, by the path of the leaf."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_kadam as ok

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


@pytest.mark.parametrize(
    ("gradients", "match"),
    [
        (
            {"dense": {"kernel": jnp.ones((2, 3))}},
            r"must have the leaves of `(mu|accumulator)`. Received: none at \"\['dense'\]\['bias'\]",
        ),
        (
            {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}},
            r"the shape of its leaf in `(mu|accumulator)`, \(2, 3\). Received: \(3, 2\) at .*kernel.*Call `init`",
        ),
        ({"dense": {**PARAMS["dense"], "scale": jnp.ones(3)}}, r"Received: one more at \"\['dense'\]\['scale'\]"),
    ],
)
@pytest.mark.parametrize("make", [ok.kadam, ok.kadamw, lambda: ok.kadam(gradient_accumulation_steps=2)])
def test_gradients_that_do_not_fit_are_named_by_path(gradients, match, make):
    tx = make()
    with pytest.raises(ValueError, match=match):
        tx.update(gradients, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("name", ["mu", "nu", "nu_max", "average", "accumulator", "params"])
@pytest.mark.parametrize("shape", [(4,), (1,), (3, 1)])
@pytest.mark.parametrize("jit", [False, True])
def test_a_state_of_other_shapes_is_refused(name, shape, jit):
    """Each of these shapes would broadcast, and the training would go on."""
    tx = ok.kadam(amsgrad=True, use_ema=True, gradient_accumulation_steps=2 if name == "accumulator" else None)
    state, params = tx.init(PARAMS), PARAMS
    other = {"dense": {**PARAMS["dense"], "bias": jnp.ones(shape)}}
    if name == "params":
        params = other
    else:
        state = optax.tree.set(state, **{name: other})
    shapes = rf"{re.escape(str(shape))}. Received: \(3,\)|\(3,\). Received: {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=rf"must have the shape of its leaf in `.*`, ({shapes}) at .*\['bias'\].*Call"):
        (jax.jit(tx.update) if jit else tx.update)(PARAMS, state, params)


@pytest.mark.parametrize(
    ("tx", "match"),
    [
        (ok.kadamw(), "`params` must be given: weight decay decays the parameters themselves. Received: params=None."),
        (ok.kadam(use_ema=True), "`params` must be given: the moving average averages the parameters themselves."),
    ],
)
def test_missing_parameters_are_said_to_be_needed_by_a_stage(tx, match):
    with pytest.raises(ValueError, match=match):
        tx.update(PARAMS, tx.init(PARAMS))


def test_parameters_are_not_needed_where_no_stage_reads_them():
    tx = ok.kadam(clipnorm=1.0, gradient_accumulation_steps=2)
    tx.update(PARAMS, tx.init(PARAMS))


def test_no_gradient_at_all_is_refused():
    tx = ok.kadam()
    with pytest.raises(ValueError, match="At least one gradient must be given. Received: None for every parameter."):
        tx.update(jax.tree.map(lambda _: None, PARAMS), tx.init(PARAMS), PARAMS)
