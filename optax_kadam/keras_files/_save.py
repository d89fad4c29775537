"""`save_keras`: a training is written back into a copy of a file that Keras saved.

The copy keeps all that is neither a weight nor the optimizer's: the configuration of the model, its layers and metrics.
New arrays have the shapes and dtypes of the old ones, and stand in the same places: what Keras wrote is copied byte for
byte, but for the arrays and the learning rate.
"""

import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import IO, Any, BinaryIO

import numpy as np
import optax

from optax_kadam.keras_files._contents import Contents
from optax_kadam.keras_files._hdf5_attribute import attribute_patches
from optax_kadam.keras_files._json import parse_json
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._open import archive_contents, hdf5_contents, hints_of
from optax_kadam.keras_files._replacements import number_in, replacements
from optax_kadam.keras_files._source import Files, Source
from optax_kadam.keras_files._told import Trainable
from optax_kadam.keras_files._whole_file import whole_file
from optax_kadam.keras_files.containers._archive import WEIGHTS, Archive
from optax_kadam.keras_files.containers._hdf5 import SIGNATURE as HDF5_SIGNATURE
from optax_kadam.keras_files.containers._hdf5 import read_hdf5
from optax_kadam.keras_files.containers._zip import SIGNATURE as ZIP_SIGNATURE
from optax_kadam.keras_files.matching._rename import Rename

Replaced = list[tuple[LazyArray, np.ndarray]]

_CHUNK = 1 << 22


def save_keras(
    path: str | pathlib.Path,
    params: object,
    opt_state: optax.OptState,
    *,
    template: str | pathlib.Path,
    rename: Rename | None = None,
    non_trainable: object = None,
    tables: Mapping[str, Any] | None = None,
    config: Mapping[str, object] | None = None,
    trainable: Trainable | None = None,
    optimizer: str = "optimizer",
) -> None:
    """Write a training into a copy of `template`, which Keras can load and train on.

    The file is written beside `path` under another name, and moved there once it is on the disk as a whole. A crash, a
    full disk or an error at any time leaves the old file at `path`. What a process that was killed leaves behind,
    `.kadam-*.tmp`, is removed by the next save into the folder. If two processes save to one path at once, the file of
    the last one to end stays, as a whole. The permissions of the old file are kept, and a symbolic link stays one.

    Args:
      path: the path of the file to write. It has the format of `template`: `.keras`, `.weights.h5` or the whole-model
        `.h5`; or it is `.weights.h5` with a `.keras` template.
      params: the parameters: a tree as in `KerasTraining.restore`, whose leaves are matched in the same way, and
        converted back.
      opt_state: the state of the optimizer for `params`, or an `nnx.Optimizer` that holds it: of `kadam` or
        `optax.adam`, alone or inside `optax.chain` and the like. The `count` of optax is written as `iterations`.
      template: a file that Keras saved of the model and of an optimizer with the same arguments, after the optimizer
        was built. It may be `path`. It is opened once, so that it may be replaced meanwhile.
      rename: what Keras's paths are called in `params`: see `KerasTraining.restore`.
      non_trainable: a tree of variables that are not trained but change, such as moving statistics; None keeps those of
        the template.
      tables: what `flush` of `deferred_rows` gives, by Keras's path, for the variables that are not among `params`.
      config: `get_config()` of the optimizer, if `template` does not hold it: see `load_keras`.
      trainable: the trainable variables of the template, if their order does not follow from it: see `load_keras`.
      optimizer: the attribute of the model that its optimizer is: see `load_keras`.

    Raises:
      FileNotFoundError: if there is no `template`, or no folder for `path`.
      TypeError: if a leaf is not an array.
      ValueError: if a variable is missing, left over, or of another shape or dtype; if the optimizer of the template
        keeps other state, or none; if `opt_state` says no number of steps, or several; if a table was not flushed, or
        took other steps than `params`; if the formats of `path` and `template` do not go together.
      OSError: if the system refuses to write: its `errno` says why, and its `filename` is `path`.
      ImportError: if h5py is missing, which is needed for another learning rate in a whole-model `.h5`.

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
    ending = _checked_ending(path, template)
    hints = hints_of(config, trainable, optimizer)
    with whole_file(path) as file, Files() as files:
        source = files.open(template)
        signature = ZIP_SIGNATURE if ending == ".keras" else HDF5_SIGNATURE
        if source.read(0, min(len(signature), source.size)) != signature:
            raise _not_a_template(template)
        rate = number_in(opt_state, "learning_rate")
        if ending == ".keras":
            archive = Archive.zipped(source, files)
            contents = archive_contents(archive, hints)
            replaced = list(replacements(contents, params, opt_state, rename, non_trainable, tables=tables))
            if WEIGHTS not in archive.names():
                raise ValueError(
                    f"`template` must hold its weights in one file, {WEIGHTS!r}. "
                    f"Received: template={str(template)!r}, with shards. Save the model without `max_shard_size`."
                )
            weights_alone = path.name.endswith(".weights.h5")
            _write_from_archive(file, archive, contents, replaced, rate, weights_alone=weights_alone)
        else:
            root = read_hdf5(source)
            contents = hdf5_contents(root, hints)
            replaced = list(replacements(contents, params, opt_state, rename, non_trainable, tables=tables))
            text = root.attrs.get("training_config") if ending == ".h5" else None
            _write_from_hdf5(file, source, replaced, text, rate)
        files.check_unchanged()


def _checked_ending(path: pathlib.Path, template: pathlib.Path) -> str:
    """Return the ending of `template`, or raise if a template cannot have it or `path` cannot be written from it."""
    endings = [".keras", ".weights.h5", ".h5"]
    ending, written = (next((e for e in endings if p.name.endswith(e)), None) for p in (template, path))
    if ending is None or template.is_dir():
        raise _not_a_template(template)
    if not template.exists():
        raise FileNotFoundError(
            f"There must be a file at `template`. Received: template={str(template)!r}. "
            "Save the model with `model.save('model.keras')`."
        )
    if written != ending and (ending, written) != (".keras", ".weights.h5"):
        raise ValueError(
            f"`path` must be of the format of `template`, {ending}. Received: path={str(path)!r}. "
            f"Let the path end in {ending}, or take another template."
        )
    return ending


def _not_a_template(template: pathlib.Path) -> ValueError:
    return ValueError(
        f"`template` must be a `.keras`, `.weights.h5` or `.h5` file. Received: template={str(template)!r}. "
        "Save the model with `model.save('model.keras')`."
    )


def _write_from_archive(
    file: BinaryIO,
    archive: Archive,
    contents: Contents,
    replaced: Replaced,
    rate: np.ndarray | None,
    *,
    weights_alone: bool,
) -> None:
    """Write a copy of `archive`, or of its weights alone, with other arrays and another learning rate."""
    if weights_alone:
        _copy(archive.read(WEIGHTS), file, replaced)
        return
    with zipfile.ZipFile(file, "w") as new:
        for name in archive.names():
            old = archive.read(name)
            info = zipfile.ZipInfo(name)
            info.file_size = old.size  # From this, zipfile sees whether it needs 64 bits for the size.
            with new.open(info, "w") as member:
                if name == "config.json":
                    keys = ("compile_config", "optimizer")
                    is_kept = contents.generation == "keras3"  # With the moments.
                    member.write(_with_rate(old.read(), old.name, keys, rate, is_kept=is_kept))
                else:
                    _copy(old, member, replaced if name == WEIGHTS else [])


def _write_from_hdf5(file: BinaryIO, source: Source, replaced: Replaced, text: object, rate: np.ndarray | None) -> None:
    """Write a copy of the HDF5 file `source` with other arrays, and another rate in the configuration `text`."""
    patches, size = [], source.size
    if isinstance(text, str):
        changed = _with_rate(text.encode(), source.name, ("optimizer_config",), rate, is_kept=True).decode()
        if changed != text:
            patches, size = attribute_patches(source, {"training_config": changed})
    _copy(source, file, replaced)
    for place, patch in patches:
        file.seek(place)
        file.write(patch)
    file.truncate(size)


def _copy(old: Source, new: IO[bytes], replaced: Replaced) -> None:
    """Copy all bytes of `old`, with other arrays in the places of those in `replaced`."""
    at = 0
    for array, values in sorted(replaced, key=lambda pair: pair[0].offset or 0):
        if values.size:  # What has no element has no place either.
            place = array.offset or 0
            _copy_part(old, new, at, place)
            new.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
            at = place + values.nbytes
    _copy_part(old, new, at, old.size)


def _copy_part(old: Source, new: IO[bytes], start: int, end: int) -> None:
    for place in range(start, end, _CHUNK):
        new.write(old.read(place, min(_CHUNK, end - place)))


def _with_rate(text: bytes, where: str, keys: Sequence[str], rate: np.ndarray | None, *, is_kept: bool) -> bytes:
    """Return the JSON object `text` with another learning rate in the serialized optimizer that `keys` lead to.

    It is written by `json.dumps`, as Keras does, and is unchanged if there is no other number to set. In the place of
    the optimizer its name may stand, which has the default rate; `is_kept` says whether the file holds the rate itself
    too.
    """
    whole = optimizer = parse_json(text, where, len(text))
    for key in keys:
        optimizer = optimizer.get(key) if isinstance(optimizer, dict) else None
    if isinstance(optimizer, str) and not is_kept and rate is not None and rate != rate.dtype.type(0.001):
        raise ValueError(
            "`template` must hold the learning rate, so that another can stand there. Received: "
            f"learning_rate={rate.item()} in `opt_state`, and a template whose optimizer is the name {optimizer!r}. "
            "Compile its model with `keras.optimizers.Adam()`, and save it again."
        )
    return json.dumps(whole).encode() if rate is not None and _set_rate(optimizer, rate) else text


def _set_rate(optimizer: object, rate: np.ndarray) -> bool:
    """Set the learning rate in a serialized optimizer if it is a number there; return whether it has changed."""
    config = optimizer.get("config") if isinstance(optimizer, dict) else None
    if not isinstance(config, dict):
        return False
    if "inner_optimizer" in config:
        return _set_rate(config["inner_optimizer"], rate)
    old = config.get("learning_rate")
    if not isinstance(old, float | int) or rate.dtype.type(old) == rate:
        return False
    if config.get("decay"):  # The state holds the decayed rate, which follows from this one.
        return False
    if not np.isfinite(rate):
        raise ValueError(
            "The learning rate in a configuration must be a finite number. "
            f"Received: learning_rate={rate.item()} in `opt_state`. "
            "Set it: `optax.tree.set(opt_state, learning_rate=0.001)`."
        )
    config["learning_rate"] = rate.item()
    return True
