"""What XLA makes of a step on a CPU: kernels and the bytes they move, which do not depend on the machine's load."""

from functools import cache

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_kadam as ok
from benchmarks._hlo import Work, work

LEAVES, ELEMENTS = 3, 100_000
ARRAY = 4 * ELEMENTS * LEAVES  # The bytes of all leaves.
LEARNING_RATE = 1e-3


def transformation(name: str) -> optax.GradientTransformation:
    clips = {
        "clipnorm": {"clipnorm": 1.0},
        "global_clipnorm": {"global_clipnorm": 1.0},
        "clipvalue": {"clipvalue": 1.0},
    }
    clipped = optax.clip_by_global_norm(1.0)
    return {
        "adam": lambda: ok.kadam(),
        "amsgrad": lambda: ok.kadam(amsgrad=True),
        "accumulation": lambda: ok.kadam(gradient_accumulation_steps=8),
        "optax.adam": lambda: optax.adam(LEARNING_RATE),
        "optax.amsgrad": lambda: optax.amsgrad(LEARNING_RATE),
        "optax.adam clipped": lambda: optax.chain(clipped, optax.adam(LEARNING_RATE)),
        "optax.amsgrad clipped": lambda: optax.chain(clipped, optax.amsgrad(LEARNING_RATE)),
        "optax.MultiSteps": lambda: optax.MultiSteps(optax.adam(LEARNING_RATE), 8).gradient_transformation(),
        **{f"adam {clip}": lambda given=given: ok.kadam(**given) for clip, given in clips.items()},
        **{f"amsgrad {clip}": lambda given=given: ok.kadam(amsgrad=True, **given) for clip, given in clips.items()},
    }[name]()


@cache
def compiled(name: str) -> str:
    tx = transformation(name)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = {f"leaf{index}": jax.ShapeDtypeStruct((ELEMENTS,), jnp.float32) for index in range(LEAVES)}
    with jax.numpy_dtype_promotion("standard"):  # optax's own Adam mixes dtypes.
        state = jax.eval_shape(tx.init, params)
        return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile().as_text() or ""


def of(name: str, branch: int = 0) -> Work:
    return work(compiled(name), branch)


# How many kernels there are to a leaf, and how many arrays they read and write, at most. Adam has to move 7, AMSGrad 9,
# and a norm the gradient once more.
@pytest.mark.parametrize(
    ("name", "kernels", "arrays"),
    [
        ("adam", 3, 10),
        ("amsgrad", 4, 13),
        ("adam clipvalue", 3, 10),
        ("adam clipnorm", 4, 11),
        ("adam global_clipnorm", 4, 11),
        ("amsgrad clipvalue", 4, 13),
        ("amsgrad clipnorm", 5, 14),
        ("amsgrad global_clipnorm", 5, 14),
    ],
)
def test_a_step_has_few_kernels_and_copies_nothing(name: str, kernels: int, arrays: int):
    step = of(name)
    assert len(step.kernels) <= kernels * LEAVES
    assert step.bytes <= arrays * ARRAY * 1.001  # And some scalars.
    assert step.copies == 0
    ideal = 7 + 2 * name.startswith("amsgrad") + ("norm" in name)
    assert step.bytes >= ideal * ARRAY, "fewer bytes than a step must move: the count is wrong"


@pytest.mark.parametrize("algorithm", ["adam", "amsgrad"])
@pytest.mark.parametrize(("ours", "theirs"), [("", ""), (" clipnorm", " clipped"), (" global_clipnorm", " clipped")])
def test_no_more_kernels_and_bytes_than_optax(algorithm: str, ours: str, theirs: str):
    kadam, peer = of(algorithm + ours), of(f"optax.{algorithm}{theirs}")
    assert len(kadam.kernels) <= len(peer.kernels)
    assert kadam.bytes <= peer.bytes * 1.001


def test_a_call_that_accumulates_computes_nothing_of_adam():
    collecting, stepping, peer = of("accumulation"), of("accumulation", branch=1), of("optax.MultiSteps")
    assert "add" in collecting.operations
    assert not collecting.operations & {"sqrt", "divide", "multiply", "maximum"}
    assert {"sqrt", "divide"} <= stepping.operations and {"sqrt", "divide"} <= peer.operations
    assert (
        collecting.bytes <= 10 * ARRAY
    )  # 3 are needed, 4 with the updates; JAX wants these and the sum of parameters.
    assert collecting.bytes < peer.bytes / 2
