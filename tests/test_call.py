"""How a public function is called: what it answers to a foreign name, and what the transformation says of itself."""

import inspect
import re

import jax.numpy as jnp
import optax
import pytest

import optax_kadam as ok

CALLS = {
    "kadam(learning_rate=0.001)": lambda: ok.kadam(),
    "kadamw(learning_rate=0.1, weight_decay=0.02, amsgrad=True)": lambda: ok.kadamw(0.1, 0.02, amsgrad=True),
    "kadam(learning_rate=float32[], generation='legacy')": lambda: ok.kadam(jnp.float32(0.1), generation="legacy"),
    "clip_by_norm(clipnorm=1.0)": lambda: ok.clip_by_norm(1.0),
    "dynamic_loss_scale(inner=kadam(learning_rate=0.5))": lambda: ok.dynamic_loss_scale(ok.kadam(0.5)),
    "deferred_rows(learning_rate=0.001, beta_2=0.99)": lambda: ok.deferred_rows(beta_2=0.99),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_transformation_says_by_which_call_it_was_built(call):
    assert f"init=<function {call}.init at " in repr(CALLS[call]())
    assert type(ok.kadam()) is optax.GradientTransformationExtraArgs


def test_arguments_may_be_named():
    named = ok.clip_by_value(clipvalue=0.5).update(jnp.array([-2.0, 0.25]), optax.EmptyState())[0]
    assert named.tolist() == [-0.5, 0.25]
    with pytest.raises(ValueError, match="Received: beta_2=2.0."):
        ok.kadam(beta_2=2.0)


def test_the_signature_is_that_of_the_function():
    assert list(inspect.signature(ok.kadam).parameters)[:3] == ["learning_rate", "beta_1", "beta_2"]
    assert str(inspect.signature(ok.clip_by_value)).startswith("(clipvalue: ")


def test_a_name_that_is_misspelt_is_answered_with_the_right_one():
    with pytest.raises(TypeError, match=re.escape("Received: learning_rat. Use `learning_rate`.")):
        ok.kadam(learning_rat=0.1)  # pyright: ignore[reportCallIssue]


def test_a_name_that_nobody_has_is_answered_with_all_names():
    with pytest.raises(TypeError, match=re.escape("Received: zzz. It has clipnorm, axis_name.")):
        ok.clip_by_norm(1.0, zzz=1)  # pyright: ignore[reportCallIssue]
