"""`save_keras`: a training is written back into a copy of a file that Keras saved.

The copy keeps all that is neither a weight nor the optimizer's: the configuration of the model, its layers and metrics.
New arrays have the shapes and dtypes of the old ones, and are written over them in place.
"""

import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import optax

from optax_kadam.keras_files import _restore
from optax_kadam.keras_files._contents import Contents
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._match import Leaf, Rename, leaf_path, match_leaves
from optax_kadam.keras_files._open import opened
from optax_kadam.keras_files.containers._archive import WEIGHTS

_BUILT = "Train it for a step in Keras, or call `optimizer.build(model.trainable_variables)`, and save it again."


def save_keras(
    path: str | pathlib.Path,
    params: object,
    opt_state: optax.OptState,
    *,
    template: str | pathlib.Path,
    rename: Rename = None,
    non_trainable: object = None,
    config: Mapping[str, object] | None = None,
    trainable: Sequence[str] | None = None,
) -> None:
    """Write a training into a copy of `template`, which Keras can load and train on.

    The file is written beside `path`, and moved there once it is whole: a crash leaves the old file at `path`.

    Args:
      path: the path of the file to write. It has the format of `template`: `.keras`, `.weights.h5` or the whole-model
        `.h5`; or it is `.weights.h5` with a `.keras` template.
      params: the parameters: a tree as in `KerasTraining.restore`, whose leaves are matched in the same way.
      opt_state: the state of the optimizer for `params`: of `kadam`, alone or inside `optax.chain` and the like.
      template: a file that Keras saved of the model and of an optimizer with the same arguments, after the optimizer
        was built. It may be `path`.
      rename: what Keras's paths are called in `params`: see `KerasTraining.restore`.
      non_trainable: a tree of variables that are not trained but change, such as moving statistics; None keeps those of
        the template.
      config: `get_config()` of the optimizer, if `template` does not hold it: see `load_keras`.
      trainable: the paths of the trainable variables, if their order does not follow from `template`: see `load_keras`.

    Raises:
      FileNotFoundError: if there is no `template`.
      ValueError: if a variable is missing, left over, or of another shape or dtype; if the optimizer of the template
        keeps other state, or none; if the formats of `path` and `template` do not go together.

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
            f"Let the path end in {kind}, or take another template."
        )


def _replaced(
    contents: Contents, params: object, opt_state: optax.OptState, rename: Rename, non_trainable: object
) -> Iterator[tuple[LazyArray, np.ndarray]]:
    """Yield pairs of an array of the template and the one that takes its place."""
    slots = contents.slots
    if slots is None:
        raise ValueError(f"`template` must hold the state of an optimizer. Received: a template without one. {_BUILT}")
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
                raise ValueError(f"`{name}` must hold every variable. Received: no leaf for {path!r}.")
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


def _fitting(leaf: Leaf, old: LazyArray, path: str, name: str) -> np.ndarray:
    array = np.asarray(leaf)
    if array.shape != old.shape or array.dtype != old.dtype:
        raise ValueError(
            f"`{name}` must have the shapes and dtypes of the template. Received: {array.dtype}{list(array.shape)} "
            f"for {path!r}, which is {old.dtype}{list(old.shape)} there."
        )
    return array


def _scalar(opt_state: optax.OptState, name: str) -> float | None:
    """Return the number `name` of the state, or None. `nnx.Optimizer` wraps its array, hence the leaves."""
    leaves = jax.tree.leaves(_restore.get(opt_state, name))
    return np.asarray(leaves[0]).item() if leaves else None


def _copy_weights(template: pathlib.Path, weights: pathlib.Path, is_zip: bool) -> None:
    if not is_zip:
        shutil.copyfile(template, weights)
        return
    with zipfile.ZipFile(template) as zipped, zipped.open(WEIGHTS) as source, weights.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _zip(template: pathlib.Path, weights: pathlib.Path, whole: pathlib.Path, rate: float | None) -> None:
    """Write a copy of the archive `template` to `whole`, with other weights and another learning rate."""
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


def _set_rate(optimizer: object, rate: float | None) -> bool:
    """Set the learning rate in a serialized optimizer if it is a number there; return whether it has changed."""
    config = optimizer.get("config") if isinstance(optimizer, dict) else None
    if not isinstance(config, dict):
        return False
    if "inner_optimizer" in config:
        return _set_rate(config["inner_optimizer"], rate)
    if rate is None or not isinstance(config.get("learning_rate"), float) or config["learning_rate"] == rate:
        return False
    if config.get("decay"):  # The state holds the decayed rate, which follows from this one.
        return False
    config["learning_rate"] = rate
    return True


def _set_rate_in_hdf5(weights: pathlib.Path, rate: float | None) -> None:
    """Set the learning rate in the configuration of a whole-model `.h5`, with h5py, as its length may change."""
    import h5py

    with h5py.File(weights, "r+") as file:
        text = file.attrs.get("training_config")
        config = json.loads(text) if isinstance(text, str) else {}
        if _set_rate(config.get("optimizer_config"), rate):
            file.attrs["training_config"] = json.dumps(config)
