"""The configuration in a SavedModel of tf_keras is JSON inside `keras_metadata.pb`, which has no checksum."""

import json
import pathlib
from collections.abc import Mapping

from optax_kadam.keras_files._source import Files


def optimizer_config(folder: pathlib.Path, files: Files) -> Mapping[str, object] | None:
    """Return the serialized optimizer of the SavedModel in `folder`, or None if it was saved without one.

    The file lists a message for each object, with a JSON text in it. The first is that of the model.

    Raises:
      ValueError: if the JSON text cannot be read.
    """
    metadata = folder / "keras_metadata.pb"
    if not metadata.exists():  # Keras 3's `export` writes none.
        return None
    text = files.open(metadata).read().decode(errors="replace")
    try:
        model, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
        config = (model.get("training_config") or {}).get("optimizer_config")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"A SavedModel's metadata must hold the model's configuration as JSON: {error}. "
            f"Received: {str(metadata)!r}. The file is damaged: copy it again."
        ) from error
    return config if isinstance(config, dict) else None
