"""`save_keras`: a training written back into a copy of a file that Keras saved.

The copy keeps everything that is not the optimizer's or a weight: the model's configuration, layers, metrics. Arrays
are written over the old ones, of the same shapes and dtypes, byte for byte in place.
"""

import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from optax_kadam.keras_files import _restore
from optax_kadam.keras_files._contents import Contents
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._match import Rename, leaf_path, match_leaves
from optax_kadam.keras_files._open import opened
from optax_kadam.keras_files.containers._archive import WEIGHTS

_BUILT = "Train it for a step in Keras, or call `optimizer.build(model.trainable_variables)`, and save it again."


def save_keras(
    path: str | pathlib.Path,
    params: Any,
    opt_state: optax.OptState,
    *,
    template: str | pathlib.Path,
    rename: Rename = None,
    non_trainable: Any = None,
    config: Mapping[str, Any] | None = None,
    trainable: Sequence[str] | None = None,
) -> None:
    """Write a training into a copy of `template`, from which Keras loads it and goes on.

    The file is written beside `path` and moved there when it is whole: a crash leaves what was there before.

    Args:
      path: of the file to write: `.keras`, `.weights.h5` or the whole-model `.h5`, as `template` is; or `.weights.h5`
        with a `.keras` template.
      params: the parameters: a tree as for `KerasTraining.restore`, which matches it likewise.
      opt_state: the state that belongs to them: of `kadam`, alone or inside of `optax.chain` and the like.
      template: a file of the model that Keras saved, with the same optimizer, after it was built; it may be `path`.
      rename: as for `KerasTraining.restore`.
      non_trainable: a tree of what is not trained but changes, as moving statistics; the template's are kept otherwise.
      config: as for `load_keras`, where `template` does not tell.
      trainable: likewise.

    Raises:
      FileNotFoundError: if there is no `template`.
      ValueError: if a variable is missing, left over, or of another shape or dtype; if the template's optimizer keeps
        other state, or none; if the formats do not go together.

    Example:
      >>> import tempfile, optax_kadam as ok
      >>> template = "tests/golden/files/k3j/adam.keras"
      >>> training = ok.load_keras(template)
      >>> params, state = training.restore({path: training.variables[path] for path in training.mu})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     ok.save_keras(f"{folder}/more.keras", params, state, template=template)
      ...     print(ok.load_keras(f"{folder}/more.keras").iterations)
      20
    """
    path, template = pathlib.Path(path), pathlib.Path(template)
    with (
        opened(template, config, trainable) as contents,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".kadam-") as folder,
    ):
        is_zip = zipfile.is_zipfile(template)
        _check_formats(path, template, is_zip)
        replaced = list(_replaced(contents, params, opt_state, rename, non_trainable))
        whole = weights = pathlib.Path(folder) / "weights"
        _copy_weights(template, weights, is_zip)
        with weights.open("r+b") as file:
            for old, array in replaced:
                file.seek(old.offset or 0)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        rate = _scalar(opt_state, "learning_rate")
        if path.name.endswith(".keras"):
            whole = pathlib.Path(folder) / "whole"
            _zip(template, weights, whole, rate)
        elif not path.name.endswith(".weights.h5"):
            _set_rate_in_hdf5(weights, rate)
        with whole.open("rb") as file:
            os.fsync(file.fileno())
        whole.replace(path)


def _check_formats(path: pathlib.Path, template: pathlib.Path, is_zip: bool) -> None:
    kinds = [".keras", ".weights.h5", ".h5"]
    kind, written = (next((kind for kind in kinds if p.name.endswith(kind)), None) for p in (template, path))
    if not template.is_file() or kind is None or is_zip != (kind == ".keras"):
        raise ValueError(
            f"`template` must be a `.keras`, `.weights.h5` or `.h5` file. Received: template={str(template)!r}. "
            "Save the model with `model.save('model.keras')`."
        )
    if written != kind and (kind, written) != (".keras", ".weights.h5"):
        raise ValueError(
            f"`path` must be of the format of `template`, {kind}. Received: path={str(path)!r}. "
            "Name it so, or take another template."
        )


def _replaced(
    contents: Contents, params: Any, opt_state: Any, rename: Rename, non_trainable: Any
) -> Iterator[tuple[LazyArray, np.ndarray]]:
    """Yield the arrays of the template with what takes their place."""
    slots = contents.slots
    if slots is None:
        raise ValueError(f"`template` must hold the state of an optimizer. Received: one without. {_BUILT}")
    trainable = {variable.path: variable.array for variable in contents.variables if variable.is_trainable}
    others = {variable.path: variable.array for variable in contents.variables if not variable.is_trainable}
    paths = list(trainable)
    keras_paths = match_leaves(params, [*paths, *others], rename, paths)
    leaves = [leaf_path(path) for path, _ in jax.tree.leaves_with_path(params)]
    variable_of = dict(zip(leaves, keras_paths, strict=True))
    in_state = {name for name in _restore.SLOTS if _restore.get(opt_state, name) is not None}
    if in_state != set(slots.arrays()):
        raise ValueError(
            f"`opt_state` must be what the template's optimizer keeps: {', '.join(slots.arrays())}. "
            f"Received: {', '.join(sorted(in_state)) or 'none of it'}. "
            "Take a template whose optimizer has the arguments of yours."
        )
    trees = {"params": (params, list(trainable.values()))}
    trees |= {name: (_restore.get(opt_state, name), arrays) for name, arrays in slots.arrays().items()}
    for name, (tree, arrays) in trees.items():
        by_path = dict(zip(paths, arrays, strict=True))
        found = {variable_of[leaf_path(path)]: leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        for path in paths:
            if path not in found:
                raise ValueError(f"`{name}` must hold every variable. Received: none for {path!r}.")
            yield by_path[path], _fitting(found[path], by_path[path], path, name)
    for name in ("iterations", "learning_rate", "step_counter", "dynamic_scale"):
        old, value = getattr(slots, name), _scalar(opt_state, name)
        if old is not None and value is not None:
            yield old, np.asarray(value, old.dtype)
    for path, leaf in zip(keras_paths, jax.tree.leaves(params), strict=True):
        if path in others:
            yield others[path], _fitting(leaf, others[path], path, "params")
    if non_trainable is not None:
        keras_paths = match_leaves(non_trainable, list(others), rename, ())
        for path, leaf in zip(keras_paths, jax.tree.leaves(non_trainable), strict=True):
            yield others[path], _fitting(leaf, others[path], path, "non_trainable")


def _fitting(leaf: Any, old: LazyArray, path: str, name: str) -> np.ndarray:
    array = np.asarray(leaf)
    if array.shape != old.shape or array.dtype != old.dtype:
        raise ValueError(
            f"`{name}` must have the shapes and dtypes of the template. Received: {array.dtype}{list(array.shape)} "
            f"for {path!r}, which is {old.dtype}{list(old.shape)} there."
        )
    return array


def _scalar(opt_state: Any, name: str) -> Any:
    """Return a number of the state; Flax NNX wraps its array."""
    leaves = jax.tree.leaves(_restore.get(opt_state, name))
    return np.asarray(leaves[0]).item() if leaves else None


def _copy_weights(template: pathlib.Path, weights: pathlib.Path, is_zip: bool) -> None:
    if not is_zip:
        shutil.copyfile(template, weights)
        return
    with zipfile.ZipFile(template) as zipped, zipped.open(WEIGHTS) as source, weights.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _zip(template: pathlib.Path, weights: pathlib.Path, whole: pathlib.Path, rate: float | None) -> None:
    """Write the archive `template` once more, with other weights and another learning rate."""
    with zipfile.ZipFile(template) as old, zipfile.ZipFile(whole, "w") as new:
        for member in old.infolist():
            if member.filename == WEIGHTS:
                new.write(weights, WEIGHTS)
            elif member.filename == "config.json":
                config = json.loads(old.read(member))
                compiled = config.get("compile_config")
                _set_rate(compiled.get("optimizer") if isinstance(compiled, dict) else None, rate)
                new.writestr("config.json", json.dumps(config))
            else:
                new.writestr(member.filename, old.read(member))


def _set_rate(optimizer: Any, rate: float | None) -> bool:
    """Set the learning rate in a serialized optimizer, if it is a number there; tell whether it changed."""
    config = optimizer.get("config") if isinstance(optimizer, dict) else None
    if not isinstance(config, dict):
        return False
    if "inner_optimizer" in config:
        return _set_rate(config["inner_optimizer"], rate)
    if rate is None or not isinstance(config.get("learning_rate"), float) or config["learning_rate"] == rate:
        return False
    if config.get("decay"):  # The state has the decayed one, which follows from this one and the step count.
        return False
    config["learning_rate"] = rate
    return True


def _set_rate_in_hdf5(weights: pathlib.Path, rate: float | None) -> None:
    """Set the learning rate in the configuration that a whole-model `.h5` holds, by h5py: its length may change."""
    import h5py

    with h5py.File(weights, "r+") as file:
        text = file.attrs.get("training_config")
        config = json.loads(text) if isinstance(text, str) else {}
        if _set_rate(config.get("optimizer_config"), rate):
            file.attrs["training_config"] = json.dumps(config)
