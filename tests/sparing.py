"""How the tests spare time: programs that are compiled in a hurry, and cases that are left to the slow tests."""

import functools

import jax
import pytest

# With these XLA compiles in a third of the time, to slower code that may round otherwise. So `quick_jit` is for tests
# that look neither at the bits nor at the kernels of a program.
OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
# jax 0.12 does not know the last of them, and with the others a sharded step rounds otherwise than one that is whole.
quick_jit = functools.partial(jax.jit, compiler_options=OPTIONS) if jax.__version_info__ < (0, 11) else jax.jit


def mostly_slow(cases, daily):
    """Return all cases as parameters of a test; those that `daily` does not choose are among the slow tests."""
    return [pytest.param(*case, marks=() if daily(*case) else pytest.mark.slow) for case in cases]
