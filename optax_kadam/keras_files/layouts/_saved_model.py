"""A SavedModel of tf_keras is a checkpoint, and a file with the configuration of each object, as JSON.

Since TensorFlow 2.5 that is `keras_metadata.pb`, which lists a message for each object, that of the model first.
Before, it was the graph of objects in `saved_model.pb`. Neither has a checksum.

Source: `tf_keras/protobuf/saved_metadata.proto`, `tf_keras/src/saving/legacy/saved_model/save.py` (tf_keras 2.21);
`tensorflow/core/protobuf/{saved_model,meta_graph,saved_object_graph}.proto` (2.4).
"""

import pathlib
from collections.abc import Mapping, Sequence

from optax_kadam.keras_files._contents import NEEDS_CONFIG, Contents, Hints
from optax_kadam.keras_files._json import parse_json
from optax_kadam.keras_files._named_arrays import Checkpoint
from optax_kadam.keras_files._protobuf import Message, read_fields
from optax_kadam.keras_files._source import UNTRUSTED, Files, Source
from optax_kadam.keras_files.layouts._graphs import graph_contents

# NASNetLarge, the largest model in Keras, has a configuration of 785,866 letters, with 14,491 objects and lists. It
# stands there twice.
_MOST_LETTERS, _MOST_PARTS = 1 << 22, 1 << 17
# Where the model is described in `saved_model.pb`: in meta_graphs, object_graph_def, nodes, user_object, metadata.
_MODEL = (2, 7, 1, 4, 3)


def saved_model_contents(checkpoint: Checkpoint, folder: pathlib.Path, files: Files, hints: Hints) -> Contents:
    """Return the contents of the SavedModel in `folder`. `checkpoint` is the one in it.

    Args:
      checkpoint: its variables.
      folder: the folder.
      files: the files of this load.
      hints: what the caller knows.

    Raises:
      ValueError: if the configuration cannot be read, or is missing though there is an optimizer.
    """
    if hints.config is not None:
        return graph_contents(checkpoint, hints)
    metadata = folder / "keras_metadata.pb"
    if metadata.exists():
        source = files.open(metadata)
        model = _described(source)
    elif any(node.slots for node in checkpoint.nodes):  # What is that old has a legacy optimizer, if it has one.
        source = files.open(folder / "saved_model.pb")
        model = _first(memoryview(source.read()), _MODEL, source)
    else:
        return graph_contents(checkpoint, hints)  # Keras 3's `export` has neither optimizer nor configuration.
    found = _optimizer_config(bytes(model), source) if model else None
    contents = graph_contents(checkpoint, hints._replace(config=found))
    if model and found is None and contents.slots is not None:
        raise ValueError(
            "A SavedModel with an optimizer must hold its configuration. "
            f"Received: {source.name!r}, without a `training_config`. {NEEDS_CONFIG}"
        )
    return contents


def _first(data: memoryview, fields: Sequence[int], source: Source) -> memoryview:
    """Return the first part of each of the fields, one inside the other; it is empty if there is none."""
    for field in fields:
        parts = (part for number, part in read_fields(data, source) if number == field and not isinstance(part, int))
        data = next(parts, memoryview(b""))
    return data


def _described(source: Source) -> bytes:
    """Return what `keras_metadata.pb` says of the model."""
    model = None
    for field, part in read_fields(memoryview(source.read()), source):
        if field != 1 or isinstance(part, int):
            raise source.refusal("A SavedModel's metadata must list objects.", f"field {field} in it")
        message = Message(bytes(part), source)
        if message.text(3) == "root" and model is None:
            model = message.part(5)
    if model is None:
        raise source.refusal("A SavedModel's metadata must describe the model.", "no object named 'root'")
    return model


def _optimizer_config(model: bytes, source: Source) -> Mapping[str, object] | None:
    """Return the serialized optimizer in what is said of the model, or None if it was saved without one."""
    parts = model.count(b"{") + model.count(b"[")
    if parts > _MOST_PARTS:
        must = f"A configuration must have at most {_MOST_PARTS} objects and lists."
        raise source.refusal(must, f"one with {parts}", UNTRUSTED)
    training = parse_json(model, source.name, _MOST_LETTERS).get("training_config")
    if training is None:
        return None
    config = training.get("optimizer_config") if isinstance(training, dict) else None
    if not isinstance(config, dict):
        raise source.refusal("A `training_config` must hold an `optimizer_config`.", f"{str(training)[:100]}")
    return config
