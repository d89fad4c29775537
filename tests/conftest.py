"""Every test runs under strict promotion of dtypes and without promotion of ranks; Keras runs under the usual rules."""

import importlib.util
import os

if importlib.util.find_spec("libtpu") or importlib.util.find_spec("jax_cuda13_plugin"):
    # These compile for a TPU or GPU that is not there. Without the settings JAX would look for it, and for its driver.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import pytest

collect_ignore = ["keras_files/killed_savers.py"]  # It is a program with arguments: test_save_keras.py runs it.


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
