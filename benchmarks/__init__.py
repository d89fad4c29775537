"""Measurements beside the peers: `python -m benchmarks --help`."""

import os

# Before anything imports them: Keras on JAX, and memory of a GPU left for PyTorch.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
