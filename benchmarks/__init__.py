"""Measurements beside the peers: `python -m benchmarks --help`."""

import os

# These are set before Keras and JAX are imported: Keras runs on JAX, and JAX leaves memory of a GPU to PyTorch.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
