"""`kadam convert` writes a training of Keras's as an Orbax checkpoint in Flax's words.

The checkpoint is a tree `{"params": ..., "opt_state": ..., "non_trainable": ...}` of numpy arrays, so that it is bound
to no device. `params` and `non_trainable` are nested dicts; `opt_state` is what `KerasTraining.restore` returns for
`params`. The custom metadata are `{"generation": ..., "optimizer": ...}`, where `optimizer` is for `from_config`.
`kadam convert --help` says how a training goes on from it.
"""

import functools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from optax_kadam.commands._progress import bars, lazy_arrays, reporting, reporting_growth, size
from optax_kadam.keras_files._contents import Hints
from optax_kadam.keras_files._open import opened
from optax_kadam.keras_files._training import KerasTraining, read
from optax_kadam.keras_files.matching._match import model_name
from optax_kadam.keras_files.matching._rename import renamed, unused_keys
from optax_kadam.keras_files.matching._words import flax_path


def convert(path: pathlib.Path, out: pathlib.Path, hints: Hints, rename: Mapping[str, str]) -> str:
    """Write the training in the file at `path` to the Orbax checkpoint `out`, as a whole or not at all.

    Args:
      path: the path of the file: see `load_keras`.
      out: the folder of the checkpoint, which must not exist, in a folder that exists.
      hints: what is known of the file: the arguments of `load_keras`.
      rename: what parts of Keras's paths are called in the checkpoint: see `KerasTraining.restore`.

    Returns:
      Lines that say what was written.

    Raises:
      ValueError: if `out` exists, if `rename` does not fit, and as `load_keras` and `KerasTraining.restore` do.
      OSError, ImportError: if `out` cannot be written, and as `load_keras` does.
    """
    given, out = out, out.absolute()  # Orbax takes absolute paths only.
    _check_free(out)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".kadam-") as folder, opened(path, hints) as contents:
        needed = sum(map(size, lazy_arrays(contents)))
        _check_room(out.parent, needed)
        with bars(reading=needed, writing=needed) as report:
            training = read(reporting(contents, functools.partial(report, "reading")))
            with reporting_growth(pathlib.Path(folder), functools.partial(report, "writing")):
                _write(pathlib.Path(folder) / "whole", training, rename)
        _check_free(out)
        os.rename(pathlib.Path(folder) / "whole", out)
    trained = len(training.mu or ())
    others, steps = len(training.variables) - trained, training.iterations
    return (
        f"Wrote {given}:\n"
        f"{trained} trainable variables, {others} others, and the optimizer's state after {steps} steps.\n"
        + ("" if training.config else "The file holds no optimizer configuration: hand it over with --config.\n")
        + "`kadam convert --help` says how a training goes on from it."
    )


def _write(out: pathlib.Path, training: KerasTraining, rename: Mapping[str, str]) -> None:
    """Write the checkpoint.

    Orbax's StandardCheckpointer compresses, so that nobody knows how many bytes are left to write: weights shrink by 7%
    for twice the time. `test_the_bars_end_where_the_bytes_do` holds that this one does not.
    """
    metadata = {"generation": training.generation, "optimizer": training.config}
    with ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
        checkpointer.save(out, args=ocp.args.PyTreeSave(_tree(training, rename)), custom_metadata=metadata)
        checkpointer.wait_until_finished()


def _check_free(out: pathlib.Path) -> None:
    if os.path.lexists(out):
        raise ValueError(f"`OUT` must not exist. Received: OUT={str(out)!r}. Remove it, or name another.")
    if not out.parent.is_dir():
        raise ValueError(f"`OUT` must be in a folder that exists. Received: OUT={str(out)!r}. Make that.")


def _check_room(folder: pathlib.Path, needed: int) -> None:
    """Raise if the disk has no room, before Orbax fails on it with many lines of errors."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"There must be room for the {needed:,} bytes of the checkpoint. Received: {free:,} bytes free in "
            f"{str(folder)!r}. Name a folder on another disk."
        )


def _tree(training: KerasTraining, rename: Mapping[str, str]) -> dict[str, object]:
    """Return the tree of the checkpoint."""
    flax_path_of = flax_paths(training.variables, rename)
    trainable = training.mu or {}
    like = {flax_path_of[path]: jax.ShapeDtypeStruct(mu.shape, mu.dtype) for path, mu in trainable.items()}
    others = {flax_path_of[path]: array for path, array in training.variables.items() if path not in trainable}
    # JAX has arrays of 64 bits only if they are enabled.
    with jax.enable_x64(any(leaf.dtype.itemsize == 8 for leaf in like.values())):
        params, opt_state = training.restore(_nested(like), rename=flax_path_of.get)
        arrays = jax.tree.map(np.asarray, {"params": params, "opt_state": opt_state})
    return arrays | {"non_trainable": _nested(others)}


def flax_paths(variables: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Return the path in the checkpoint for each of Keras's: renamed, without the name of the model, in Flax's words.

    The first part of the paths is taken for the name of the model if all have the same, unless `rename` mentions it or
    no variable would be left in a layer.
    """
    paths = list(variables)
    if unused := unused_keys(rename, paths):
        raise ValueError(
            f"`--rename` must name parts of Keras's paths. Received: {unused[0]!r}. The paths are {', '.join(paths)}."
        )
    model = model_name(paths)
    if model in rename or all(path.count("/") == 1 for path in paths):
        model = None
    here = {path: next(iter(renamed(path, rename))) for path in paths}
    new_paths = {
        path: flax_path(new, without_model=model is not None and new.startswith(f"{model}/"))
        for path, new in here.items()
    }
    _check_nestable(new_paths)
    return new_paths


def _check_nestable(new_paths: Mapping[str, str]) -> None:
    """Raise if two variables have the same path, or if the path of one leads on to another."""
    owners: dict[str, str] = {}
    for path, new in new_paths.items():
        if new in owners:
            raise ValueError(
                f"Each variable must have a path of its own. Received: {new!r} for {owners[new]!r} and for {path!r}. "
                "Say what they are called with `--rename`."
            )
        owners[new] = path
    for new, path in owners.items():
        parts = new.split("/")
        for end in range(1, len(parts)):
            if (folder := "/".join(parts[:end])) in owners:
                raise ValueError(
                    f"A variable must not be a folder of another. Received: {folder!r} for {owners[folder]!r} and "
                    f"{new!r} for {path!r}. Say what they are called with `--rename`."
                )


def _nested(flat: Mapping[str, object]) -> dict[str, object]:
    """Return nested dicts of the values at the paths in `flat`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = value
    return tree
