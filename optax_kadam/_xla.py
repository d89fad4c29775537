"""Every trick played on the compiler, each under a name, with its symptom, its cause and the test that holds it.

None of them changes a value. Each was seen to be needed with jax 0.10.2 and 0.12.0.1, on XLA's CPU compiler where no
other one is named. `reduce_precision` and `optimization_barrier` were tried in the place of each that is an arithmetic
expression here, and XLA either removes them or pays a copy for them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

T = TypeVar("T")

_NORMS_AT_A_TIME = 200


def is_traced(x: object) -> bool:
    """Return whether `x` is traced, so that its value is not known and a compiler will see what is done to it."""
    return isinstance(x, jax.core.Tracer)


def cond(condition: jax.Array, on_true: Callable[[], T], on_false: Callable[[], T]) -> T:
    """Return `lax.cond`, or call one of the two functions at once where the condition is known.

    Symptom: an eager step differs from eager Keras in the last bit, and takes a second.
    Cause: `lax.cond` compiles both branches also in an eager run, multiply-adds and all, at every call.
    Test: `tests/test_oracle.py`, op by op, in the cases that accumulate.
    """
    if is_traced(condition):
        return lax.cond(condition, on_true, on_false)
    return on_true() if condition else on_false()


def rounded(x: jax.Array) -> jax.Array:
    """Return `x`, rounded to its dtype before anything is added to it.

    Symptom: a product that is added to something differs from Keras's in the last bit, under `jit` alone.
    Cause: LLVM contracts a multiplication and an addition to a multiply-add, which rounds once. It does not look
    through this clip, which keeps every finite number, nor through the selection, which keeps infinities and NaN.
    `reduce_precision` and `optimization_barrier` do not help, and `where(isnan(x), nan, x)` does not where the compiler
    can prove that there is no NaN.
    Test: `tests/test_schedules.py::test_jitted_is_eager_keras`, `tests/stages/test_accumulate.py`.
    """
    if not is_traced(x):
        return x
    finfo = jnp.finfo(x.dtype)
    return jnp.where(jnp.isinf(x), x, jnp.clip(x, finfo.min, finfo.max))


def opaque(constant: float | jax.Array) -> jax.Array:
    """Return a constant in float32 that the compiler does not know.

    Symptom: a staircase or a restart of a schedule comes a whole period early or late under `jit`.
    Cause: XLA divides by a known constant through its reciprocal, which rounds otherwise than the division.
    Test: `tests/test_schedules.py::test_jitted_is_eager_keras`.
    """
    return lax.optimization_barrier(jnp.asarray(constant, jnp.float32))


def kept_apart(scalar: jax.Array) -> jax.Array:
    """Return a scalar that is computed before the kernels that use it, and not within them.

    Symptom: the step after a clip by the global norm takes three passes over HBM instead of one: 1.26 times the bytes
    on two slices of a TPU.
    Cause: a bare scalar that comes from another slice keeps the TPU compiler from merging the updates of m, v and p.
    An `optimization_barrier` on the scalar itself does not help; one on an array of one element does.
    Test: `pytest -m tpu`, `test_nothing_is_copied_gathered_or_read_again`.
    """
    return lax.optimization_barrier(scalar.reshape(1)).reshape(())


def known_nonnegative(x: jax.Array) -> jax.Array:
    """Return `x`, which is never negative, as a maximum with the constant 0.

    Symptom: the step of AMSGrad takes up to 9% longer.
    Cause: XLA compiles a kernel of a maximum alone with its slower emitter, unless an operand is a constant.
    Test: `tests/test_compiled.py::test_the_maximum_is_in_a_kernel_with_a_scalar`.
    """
    return jnp.maximum(x, 0.0)


def zeros_like(x: jax.Array, dtype: np.dtype | type | None = None) -> jax.Array:
    """Return `jnp.zeros_like(x, dtype)`, computed from `x` where it is traced.

    Symptoms: moments out of `jax.jit(tx.init)` lie whole on every device; an accumulator is not emptied in place.
    Cause: `jnp.zeros_like` is a constant under `jit`. Sharding reaches an array only from those that it is computed
    from, and XLA reuses a buffer only for what is computed after its last use. `shard_alike`, which would say the
    former, went with jax 0.12. No number is NaN and finite, but the compiler does not know.
    Test: `tests/pods/test_sharded.py::test_sharded_is_unsharded`,
    `tests/test_compiled.py::test_a_call_that_accumulates_computes_nothing_of_adam`.
    """
    if not is_traced(x):
        return jnp.zeros_like(x, dtype)
    return (jnp.isnan(x) & jnp.isfinite(x)).astype(x.dtype if dtype is None else dtype)


def moved_in_vectors(rows: jax.Array) -> jax.Array:
    """Return `rows`, which were looked up in a table.

    Symptom: looking up 8,192 rows of 64 numbers takes three to four times as long as it must.
    Cause: XLA's CPU compiler makes a gather that has several users a kernel of its own, which only moves numbers, and
    LLVM unrolls the moves of a row of up to 64 of them before it looks for vectors. The row divided by 1 stays a loop
    over vectors. Multiplied by 1, it does not: XLA repeats the product in each user, and leaves the gather alone.
    Test: `tests/embeddings/test_deferred.py::test_moments_are_looked_up_in_vectors`.
    """
    if not is_traced(rows):
        return rows
    # The divisor is 1, but for NaN. A division on another device need not be exact.
    return lax.platform_dependent(rows, cpu=lambda x: x / (~jnp.isnan(x)).astype(x.dtype), default=lambda x: x)


def zero_after(*arrays: jax.Array) -> jax.Array:
    """Return the int32 0, computed from each of these arrays, so that all of them are read before it is used.

    Symptom: a step that writes a few rows of a donated table copies the table, and each of its moments.
    Cause: XLA updates a buffer in place only if it knows that all reads come before the write. Reading rows of a table
    and writing rows of it are unordered, unless what is written is computed from what was read.
    Half of 0 or of 1, rounded down, is 0 either way, but the compiler does not know.
    Test: `tests/test_compiled.py::test_a_gradient_of_rows_costs_one_pass_over_the_table`,
    `tests/embeddings/test_deferred.py::test_donated_tables_are_updated_in_place`.
    """
    is_special = functools.reduce(jnp.logical_or, (jnp.any(_is_special(x)) for x in arrays))
    return jnp.floor(is_special.astype(jnp.float32) / 2).astype(jnp.int32)


def _is_special(x: jax.Array) -> jax.Array:
    """Return what is true of some numbers, so that the compiler must look at each."""
    return jnp.isnan(x) if jnp.issubdtype(x.dtype, jnp.floating) else x == jnp.iinfo(x.dtype).min


def sum_of_many(scalars: Sequence[jax.Array]) -> jax.Array:
    """Return `jnp.sum(jnp.stack(scalars))`, with no more than 200 of them in one kernel.

    Symptom: the global norm of 2,000 gradients takes minutes to compile.
    Cause: XLA fuses the sum with each norm that it adds up, and its compile time is quadratic in their number.
    Collected 200 at a time, they are added up in the same order, which
    `test_a_global_norm_of_many_gradients_is_summed_up_as_keras_does` holds.
    Test: `tests/stages/test_clip.py::test_a_compiled_sum_of_many_norms_takes_200_at_a_time`.
    """
    if len(scalars) <= _NORMS_AT_A_TIME or not is_traced(scalars[0]):
        return jnp.sum(jnp.stack(scalars))
    collected = jnp.zeros(len(scalars), scalars[0].dtype)
    for start in range(0, len(scalars), _NORMS_AT_A_TIME):
        some = jnp.stack(scalars[start : start + _NORMS_AT_A_TIME])
        collected = lax.dynamic_update_slice(collected, some, (start,))
    return functools.reduce(jnp.add, list(collected))
