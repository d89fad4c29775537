"""`Recording`: the first steps of an optimizer of Keras's, in an `.npz` file that holds numbers and JSON alone."""

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from optax_kadam.config._parse import parse
from optax_kadam.keras_files._restore import SLOTS
from optax_kadam.keras_files._training import KerasTraining

Rows = tuple[np.ndarray, np.ndarray]  # The indices and the values of a gradient of some rows.
Gradient = np.ndarray | Rows | None
_KIND, _HEADER = "the first steps of an optimizer of Keras's", "recording"
_NUMBERS = ("iterations", "learning_rate", "step_counter", "dynamic_scale")


class Step(NamedTuple):
    """A step of the optimizer."""

    gradients: dict[str, Gradient]  # As the optimizer was handed them, by the path of the variable.
    learning_rate: float | None  # The number that it held; None if it is computed.
    weights: dict[str, np.ndarray]  # After the step.


@dataclasses.dataclass(frozen=True)
class Recording:
    """The first steps of an optimizer of Keras's.

    Args:
      keras: the name and the version of Keras.
      start: the training before the first step. If the optimizer was not built yet, it has no slots.
      steps: the steps.
      end: the training after the last step.
      decayed: whether the weight decay is for a variable, by its path.
    """

    keras: str
    start: KerasTraining
    steps: list[Step]
    end: KerasTraining
    decayed: dict[str, bool]

    def write(self, file: BinaryIO) -> None:
        """Write the recording as an `.npz` file."""
        arrays: dict[str, np.ndarray] = {}
        steps = []
        for number, step in enumerate(self.steps):
            kinds: dict[str, str] = {}
            for index, (path, gradient) in enumerate(step.gradients.items()):
                parts = gradient if isinstance(gradient, tuple) else () if gradient is None else (gradient,)
                kinds[path] = ("none", "dense", "rows")[len(parts)]
                arrays |= {f"step{number}/gradient{index}/{i}": part for i, part in enumerate(parts)}
            arrays |= {f"step{number}/weight{i}": array for i, array in enumerate(step.weights.values())}
            steps.append({"gradients": kinds, "learning_rate": step.learning_rate, "weights": list(step.weights)})
        header = {
            "kind": _KIND,
            "keras": self.keras,
            "decayed": self.decayed,
            "steps": steps,
            "config": self.start.config,
        }
        header |= {name: _described(name, training, arrays) for name, training in self._trainings().items()}
        # numpy writes no dtype of ml_dtypes by its name.
        header["dtypes"] = {name: array.dtype.name for name, array in arrays.items() if array.dtype.kind == "V"}
        stored = {
            name: array.view(f"u{array.dtype.itemsize}") if name in header["dtypes"] else array
            for name, array in arrays.items()
        }
        text = np.frombuffer(json.dumps(header, default=float).encode(), np.uint8)
        np.savez(file, allow_pickle=False, **{_HEADER: text}, **stored)

    def _trainings(self) -> dict[str, KerasTraining]:
        return {"start": self.start, "end": self.end}


def read_recording(path: pathlib.Path) -> Recording:
    """Read a recording, or raise ValueError if the file is none, or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(stored[_HEADER].tobytes())
            if header["kind"] != _KIND:
                raise ValueError("another kind of file")
            arrays = {
                name: stored[name].view(jnp.dtype(header["dtypes"][name])) if name in header["dtypes"] else stored[name]
                for name in stored.files
                if name != _HEADER
            }
        trainings = [_training(name, header, arrays) for name in ("start", "end")]
        steps = [_step(number, described, arrays) for number, described in enumerate(header["steps"])]
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"The path must be that of a recording. Received: {str(path)!r}, which cannot be read as one: {error!r}. "
            "Write it with `optax_kadam.record`, and copy it again if it was copied."
        ) from error
    return Recording(header["keras"], trainings[0], steps, trainings[1], header["decayed"])


def _described(name: str, training: KerasTraining, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what is no array in a training, and put its arrays into `arrays`."""
    described: dict[str, Any] = {number: getattr(training, number) for number in _NUMBERS}
    for slot in ("variables", *SLOTS):
        named = getattr(training, slot)
        described[slot] = None if named is None else list(named)
        arrays |= {f"{name}/{slot}{i}": array for i, array in enumerate((named or {}).values())}
    return described


def _training(name: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> KerasTraining:
    described = header[name]
    slots: dict[str, Any] = {
        slot: None if paths is None else {path: arrays[f"{name}/{slot}{i}"] for i, path in enumerate(paths)}
        for slot in ("variables", *SLOTS)
        for paths in [described[slot]]
    }
    numbers: dict[str, Any] = {number: described[number] for number in _NUMBERS}
    config = header["config"]
    return KerasTraining(generation=parse(config).generation, config=config, **numbers, **slots, order="live")


def _step(number: int, described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Step:
    gradients: dict[str, Gradient] = {}
    for index, (path, kind) in enumerate(described["gradients"].items()):
        parts = [arrays[f"step{number}/gradient{index}/{i}"] for i in range(("none", "dense", "rows").index(kind))]
        gradients[path] = None if not parts else parts[0] if len(parts) == 1 else (parts[0], parts[1])
    weights = {path: arrays[f"step{number}/weight{i}"] for i, path in enumerate(described["weights"])}
    return Step(gradients, described["learning_rate"], weights)
