"""An Orbax checkpoint is read as the tree that it holds, of numpy arrays, on whatever devices it was written."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np

_TREE, _CUSTOM = "_METADATA", "_CHECKPOINT_METADATA"  # The files of a tree, and of what was saved beside it.


def is_orbax(path: pathlib.Path) -> bool:
    """Return whether a folder is an Orbax checkpoint, or a step of a CheckpointManager, or a folder of such steps."""
    return path.is_dir() and bool(_trees(path) or [step for step in path.glob("*/*") if (step / _TREE).exists()])


def read_orbax(path: pathlib.Path) -> tuple[Any, Mapping[str, Any]]:
    """Return the tree in the checkpoint at `path`, and its custom metadata.

    Raises:
      ValueError: if the folder holds several checkpoints.
      ImportError: if Orbax is missing.
    """
    found = _trees(path)
    if len(found) != 1:
        several = sorted(str(tree.relative_to(path)) for tree in found or path.glob("*/*") if (tree / _TREE).exists())
        raise ValueError(
            f"The path must be that of one checkpoint. Received: {str(path)!r}, which holds {', '.join(several)}. "
            "Name the step, and the item in it."
        )
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError(
            f"{str(path)!r} is an Orbax checkpoint. Install what reads it: pip install 'orbax-checkpoint>=0.11.22'"
        ) from error
    handler, folder = ocp.PyTreeCheckpointHandler(), cast(Any, found[0].absolute())  # It asks for a path of etils.
    kind = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree)
    tree = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=kind))
    beside = folder / _CUSTOM
    custom = json.loads(beside.read_bytes()).get("custom_metadata") if beside.exists() else None
    return tree, custom or {}


def _trees(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders of the trees of a checkpoint, or of one step of a CheckpointManager."""
    return [path] if (path / _TREE).exists() else [item for item in path.glob("*") if (item / _TREE).exists()]
