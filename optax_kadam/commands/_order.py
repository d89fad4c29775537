"""`kadam order` writes in which order an optimizer keeps its variables, where Keras is installed."""

import importlib
import os
import pathlib
from collections.abc import Sequence

from optax_kadam.keras_files._told import order_file
from optax_kadam.keras_files._training import KerasTraining


def write_order(path: pathlib.Path, out: pathlib.Path, package: str, modules: Sequence[str]) -> str:
    """Load the model at `path` in Keras, and write the order of its trainable variables to `out`.

    Args:
      path: the path of a whole model that Keras can load.
      out: the path of the order file: see `load_keras`.
      package: the name of the Keras package, `keras` or `tf_keras`.
      modules: the names of modules to import first, which register the model's own classes.

    Returns:
      Two lines that say what was written.

    Raises:
      ImportError: if a module is missing.
      ValueError: if the model has no optimizer that was built, and as Keras does.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    for module in modules:
        importlib.import_module(module)
    model = importlib.import_module(package).models.load_model(path)
    training = KerasTraining.from_model(model)
    if training.mu is None:
        raise ValueError(
            f"The model must have an optimizer that was built. Received: {str(path)!r}, whose optimizer was not. "
            "Train it for a step, and save it again."
        )
    out.write_text(order_file({name: training.variables[name] for name in training.mu}))
    return (
        f"Wrote {out}: {len(training.mu)} variables.\n"
        "inspect and convert take it with --trainable, and load_keras as `trainable`."
    )
