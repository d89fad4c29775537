"""The trainable variables as the caller of `load_keras` knows them: by numbers, by paths, or from an order file.

An order file is what `python -m optax_kadam order` writes where Keras is, for a machine where it is not: JSON, with the
path and the digest of each trainable variable in the optimizer's order.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from optax_kadam.keras_files._json import read_json
from optax_kadam.keras_files._source import Files

Trainable: TypeAlias = Sequence[str | npt.ArrayLike] | str | os.PathLike[str]
_KIND = "trainable variables of Keras, in the order of the optimizer"
_LONGEST = 1 << 24  # Bytes; a variable takes about 200.


class Told(NamedTuple):
    """A trainable variable as the caller knows it: by its numbers, by its path or by both."""

    path: str | None
    digest: str | None  # Of its numbers: see `digest_of`.
    kind: str = ""  # Its shape and dtype, for a message.


def told(trainable: Trainable) -> list[Told]:
    """Return what `trainable` says of each variable, or raise if it is neither a list nor an order file."""
    if isinstance(trainable, str | os.PathLike) and pathlib.Path(trainable).exists():
        return _read(pathlib.Path(trainable))
    items = trainable if isinstance(trainable, Sequence) and not isinstance(trainable, str) else ()
    wrong = [v for v in items if not isinstance(v, str) and not hasattr(v, "__array__")]
    if items is not trainable or wrong:
        raise TypeError(
            "`trainable` must be a list of variables, as arrays or as paths, or the path of an order file. "
            f"Received: trainable={f'[..., {wrong[0]!r}, ...]' if wrong else repr(trainable)}. "
            "Hand over `model.trainable_variables` of the model as it was saved."
        )
    return [Told(v, None) if isinstance(v, str) else _variable(v) for v in items]


def digest_of(array: np.ndarray) -> str:
    """Return the digest of the numbers of an array, with its shape and its dtype."""
    digest = hashlib.blake2b(_kind(array).encode(), digest_size=32)
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def order_file(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the text of an order file for these variables: arrays by their paths, in the order of the optimizer."""
    variables = [{"path": path, "blake2b": digest_of(array)} for path, array in arrays.items()]
    return json.dumps({"kind": _KIND, "trainable": variables}, indent=1)


def _read(path: pathlib.Path) -> list[Told]:
    with Files() as files:
        content = read_json(files.open(path), _LONGEST)
    variables = content.get("trainable")
    items = variables if content.get("kind") == _KIND and isinstance(variables, list) else [None]
    pairs = [(v.get("path"), v.get("blake2b")) if isinstance(v, dict) else (None, None) for v in items]
    found = [Told(path, digest) for path, digest in pairs if isinstance(path, str) and isinstance(digest, str)]
    if len(found) < len(items):
        raise ValueError(
            f"`trainable` must be an order file. Received: {str(path)!r}, which is none. "
            "Write it where Keras is: `python -m optax_kadam order model.keras`."
        )
    return found


def _variable(variable: npt.ArrayLike) -> Told:
    """Return what is known of an array or of a variable, whose path Keras 3 calls `path` and TensorFlow `name`."""
    path = getattr(variable, "path", getattr(variable, "name", None))
    array = np.asarray(variable)
    return Told(path if isinstance(path, str) else None, digest_of(array), _kind(array))


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
