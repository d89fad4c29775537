"""`opened`: a path is opened by the container and the layout of the format that is found there.

This is the only file that knows both: a container reads named arrays out of bytes, a layout makes `Contents` of them.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from optax_kadam.config._parse import parse
from optax_kadam.keras_files._contents import Contents, Hints
from optax_kadam.keras_files._json import read_json
from optax_kadam.keras_files._named_arrays import Group
from optax_kadam.keras_files._source import Files, Source
from optax_kadam.keras_files._told import Trainable, told
from optax_kadam.keras_files.containers._archive import Archive
from optax_kadam.keras_files.containers._hdf5 import SIGNATURE, read_hdf5
from optax_kadam.keras_files.containers._shards import read_shards
from optax_kadam.keras_files.containers._tf_checkpoint import read_checkpoint
from optax_kadam.keras_files.containers._zip import SIGNATURE as ZIP_SIGNATURE
from optax_kadam.keras_files.layouts._graphs import graph_contents
from optax_kadam.keras_files.layouts._named import named_contents
from optax_kadam.keras_files.layouts._numbered import numbered_contents
from optax_kadam.keras_files.layouts._saved_model import saved_model_contents

_LONGEST_LINE = 10_000  # Bytes that the first line of a `checkpoint` may have,
_LONGEST_NAME = 249  # and the name in it, as file systems take names of 255 with `.index`.


def hints_of(
    config: Mapping[str, object] | None = None, trainable: Trainable | None = None, optimizer: str = "optimizer"
) -> Hints:
    """Return the arguments of `load_keras`, or raise if they cannot be right."""
    if config is not None:
        parse(config)
    if not isinstance(optimizer, str):
        raise TypeError(
            f"`optimizer` must be the name of an attribute of the model. Received: optimizer={optimizer!r}. "
            "Hand over `'optimizer'`, or what the model calls it: `'d_optimizer'`."
        )
    return Hints(config, None if trainable is None else told(trainable), optimizer)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str] | BinaryIO, hints: Hints) -> Iterator[Contents]:
    """Yield the contents of the file at `path`. Their arrays can be read until the context is left."""
    with Files() as files:
        if isinstance(path, str | os.PathLike):
            contents, name = _contents(pathlib.Path(path), hints, files), str(path)
        else:
            source = files.given(path)
            contents, name = _contents_of_one(source, hints, files), source.name
        if contents is None:
            raise ValueError(
                f"`path` must be a file that Keras saved. Received: path={name!r}, which has none of Keras's formats. "
                "Save the model with `model.save('model.keras')`."
            )
        if not contents.variables:
            raise ValueError(
                f"A Keras file must hold the variables of a model. Received: {name!r}, which holds none. "
                "Save the model with `model.save('model.keras')`."
            )
        yield contents
        files.check_unchanged()


def archive_contents(archive: Archive, hints: Hints) -> Contents:
    """Return the contents of a `.keras` archive."""
    version = archive.keras_version()
    model = archive.json("config.json")
    compiled = model.get("compile_config")
    found = compiled.get("optimizer") if isinstance(compiled, dict) else None
    if isinstance(found, str):
        found = _defaults_of(found, version)
    return numbered_contents(archive.weights(), model, version, hints._replace(config=hints.config or found))


def hdf5_contents(root: Group, hints: Hints) -> Contents:
    """Return the contents of a `.h5` or a `.weights.h5` file."""
    is_named = root.at("model_weights") or "layer_names" in root.attrs or "layer_names0" in root.attrs
    return named_contents(root, hints.config) if is_named else numbered_contents(root, None, None, hints)


def _defaults_of(name: str, keras_version: str) -> Mapping[str, object]:
    """Return the configuration of an optimizer that was handed to `compile` by its name, with its default arguments.

    Keras 3.0 and 3.3, and TensorFlow 2.12 to 2.15, save what `compile` was given: `"adam"`.
    """
    arguments: dict[str, object] = {"learning_rate": 0.001}
    if not keras_version.startswith("3."):
        arguments["is_legacy_optimizer"] = False
    return {"module": "keras.optimizers", "class_name": name, "config": arguments}


def _contents_of_one(source: Source, hints: Hints, files: Files) -> Contents | None:
    """Return the contents of a format that is one file, or None if it is none of these."""
    signature = source.read(0, min(8, source.size))
    if signature[:4] == ZIP_SIGNATURE:
        return archive_contents(Archive.zipped(source, files), hints)
    return hdf5_contents(read_hdf5(source), hints) if signature == SIGNATURE else None


def _contents(path: pathlib.Path, hints: Hints, files: Files) -> Contents | None:
    if path.is_dir() and (path / "saved_model.pb").exists():
        return saved_model_contents(read_checkpoint(path / "variables" / "variables", files), path, files, hints)
    if path.is_dir() and (path / "config.json").exists():
        return archive_contents(Archive.unpacked(path, files), hints)
    if path.is_dir() and (path / "checkpoint").exists():
        return graph_contents(read_checkpoint(_latest(path, files), files), hints)
    if path.suffix == ".index" and path.exists():
        return graph_contents(read_checkpoint(path.with_suffix(""), files), hints)
    if not path.exists() and path.with_name(f"{path.name}.index").exists():
        return graph_contents(read_checkpoint(path, files), hints)
    if not path.exists():
        raise FileNotFoundError(
            f"There must be a file, a SavedModel's folder or a checkpoint at `path`. Received: path={str(path)!r}."
        )
    if path.is_dir():
        return None
    source = files.open(path)
    contents = _contents_of_one(source, hints, files)
    if contents is not None or not path.name.endswith(".json"):
        return contents
    index = read_json(source)
    shards = read_shards(index, source.name, lambda name: read_hdf5(files.open(_beside(path, name))))
    return numbered_contents(shards, None, None, hints)


def _beside(path: pathlib.Path, name: str) -> pathlib.Path:
    shard = path.with_name(name)
    if not shard.is_file():
        raise ValueError(
            f"A shard must stand beside its index. Received: {str(path)!r} without {name!r}. Copy the shard there too."
        )
    return shard


def _latest(folder: pathlib.Path, files: Files) -> pathlib.Path:
    """Return the prefix of the checkpoint that is named in the file `checkpoint` of a folder."""
    path = folder / "checkpoint"
    line = b""
    if path.is_file():
        source = files.open(path)
        line = source.read(0, min(source.size, _LONGEST_LINE)).partition(b"\n")[0]
    name = line.decode(errors="replace").removeprefix('model_checkpoint_path: "').removesuffix('"')
    is_inside = name not in ("", "..") and pathlib.PurePath(name).name == name and len(name.encode()) <= _LONGEST_NAME
    if not is_inside or not (folder / f"{name}.index").is_file():
        raise ValueError(
            f"`checkpoint` must name a checkpoint in its folder. Received: {name[:200]!r} in {str(folder)!r}. "
            "Hand over the path of the checkpoint itself, without `.index`."
        )
    return folder / name
