"""The tricks played on the compiler change no value; what each is for is held by the tests that its docstring names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_kadam import _xla

NUMBERS = np.array([0.0, -0.0, np.finfo(np.float32).tiny, -1.5, 3.4028235e38, np.inf, -np.inf, np.nan], np.float32)
SAME = {
    "rounded": _xla.rounded,
    "kept_apart": lambda x: jnp.stack([_xla.kept_apart(one) for one in x]),
    "opaque": lambda x: _xla.opaque(x),
    "moved_in_vectors": _xla.moved_in_vectors,
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("trick", SAME)
def test_numbers_pass_as_they_are(trick, jit):
    function = jax.jit(SAME[trick]) if jit else SAME[trick]
    np.testing.assert_array_equal(np.asarray(function(NUMBERS)).view(np.int32), NUMBERS.view(np.int32))


@pytest.mark.parametrize("jit", [False, True])
def test_zeros_are_zeros_whatever_they_are_computed_from(jit):
    zero = jax.jit(_xla.zero_after) if jit else _xla.zero_after
    integers = jnp.array([np.iinfo(np.int32).min, 7])
    assert int(zero(jnp.asarray(NUMBERS), integers)) == 0 and zero(integers).dtype == jnp.int32
    zeros = (jax.jit(_xla.zeros_like, static_argnums=1) if jit else _xla.zeros_like)(NUMBERS, "bfloat16")
    assert zeros.dtype == jnp.bfloat16 and not np.asarray(zeros, np.float32).view(np.int32).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_of_many_keeps_its_dtype(dtype):
    with jax.enable_x64(True):
        total = jax.jit(_xla.sum_of_many)([jnp.asarray(1.5, dtype)] * 250)
        assert total.dtype == dtype and total == 375.0


def test_a_known_condition_is_not_handed_to_the_compiler():
    called = []
    assert _xla.cond(jnp.array(True), lambda: called.append(1) or 1, lambda: called.append(2) or 2) == 1
    assert called == [1]
