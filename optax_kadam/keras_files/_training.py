"""`load_keras`: what Keras's own files hold of a training, of every generation and format, and `KerasTraining`."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optax

from optax_kadam._hyperparameter import Hyperparameter
from optax_kadam._kadam import kadam
from optax_kadam.config._config import OptimizerConfig, parse
from optax_kadam.keras_files import _restore
from optax_kadam.keras_files._contents import Contents
from optax_kadam.keras_files._open import opened

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class KerasTraining:
    """A training as Keras saved it. Arrays stand under Keras's paths, in the order of `model.trainable_variables`.

    Keras 3's paths are those of `variable.path`, as `model/dense/kernel`; tf_keras's and legacy Keras's are the names
    of their variables, as `dense/kernel:0`. `.weights.h5` of tf_keras names nothing: there the names are those that
    layers have without one of their own.

    Args:
      generation: `"keras3"`, `"tf_keras"` or `"legacy"`.
      config: the serialized optimizer; None where the file holds none.
      iterations: steps so far, Keras's raw counter: with accumulation, of micro-steps.
      learning_rate: what the file stores, or its configuration says; None for a schedule, or where neither does.
      variables: the weights: the trainable ones, then the others.
      mu: the first moments of the trainable variables; None where the file holds no optimizer state, as for each below.
      nu: the second moments.
      nu_max: their running maxima, of AMSGrad.
      average: the averages of `use_ema`.
      accumulator: the accumulated gradients.
      step_counter: of a LossScaleOptimizer: finite steps since its scale last changed.
      dynamic_scale: its scale.
    """

    generation: str
    config: Mapping[str, Any] | None
    iterations: int
    learning_rate: float | None
    variables: Arrays
    mu: Arrays | None = None
    nu: Arrays | None = None
    nu_max: Arrays | None = None
    average: Arrays | None = None
    accumulator: Arrays | None = None
    step_counter: int | None = None
    dynamic_scale: float | None = None

    def __repr__(self) -> str:
        slots = [name for name in _restore.SLOTS if getattr(self, name) is not None]
        rate = "" if self.learning_rate is None else f"learning_rate={self.learning_rate}, "
        return (
            f"KerasTraining(generation={self.generation!r}, iterations={self.iterations}, {rate}"
            f"variables: {len(self.variables)}, slots: {', '.join(slots) or 'none'})"
        )

    def transformation(
        self, *, learning_rate: Hyperparameter | None = None, weight_decay_mask: Any = None
    ) -> optax.GradientTransformationExtraArgs:
        """Build the transformation that goes on as Keras's optimizer would; the arguments are `from_config`'s.

        Raises:
          ValueError: if the file holds no configuration, or one that cannot be honoured.
        """
        return self._parsed().transformation(learning_rate=learning_rate, weight_decay_mask=weight_decay_mask)

    def restore(
        self,
        params: Any,
        *,
        tx: optax.GradientTransformation | None = None,
        rename: Mapping[str, str] | Callable[[str], str | None] | None = None,
    ) -> tuple[Any, Any]:
        """Return `(params, opt_state)`: Keras's weights in the tree `params`, and Keras's state for it.

        Leaves are matched with Keras's trainable variables by path. Of a path in `params`, a leading `params` does not
        count; of Keras's, the name of the model, `:0`, and the words in which Flax differs: `embeddings` is
        `embedding`, `gamma` is `scale`, `beta` is `bias`. A flat list of arrays has no names: handing one in asks for
        Keras's order. It is all or nothing. A leaf that Keras did not train is filled too; its moments begin at zero.

        Args:
          params: a tree of what is to be trained: of arrays or `jax.ShapeDtypeStruct`s, whose sharding is kept: a Flax
            NNX state, a Linen tree, nested dicts, or a flat list.
          tx: the transformation that is to go on: by default `transformation()` or, where the file holds no
            configuration, the plainest `kadam` that keeps this state. One with more around it has more state.
          rename: from Keras's paths to those in `params`: a function, or a mapping of whole parts of paths, of which
            the longest that is found is replaced: `{"m/d1": "Dense_0"}`.

        Returns:
          The tree, and the state of `tx` for it. On a CPU they may share memory with this object, which JAX never
          writes to.

        Raises:
          ValueError: naming both paths, where a variable is missing, left over, or of another shape or dtype, and where
            the file holds no optimizer state or another than `tx` keeps.
        """
        if self.mu is None:
            raise ValueError(
                "The file must hold the state of an optimizer. Received: weights alone. "
                "Use `fill(params)` for those, or save the model after it was compiled and trained."
            )
        slots = {name: arrays for name in _restore.SLOTS if (arrays := getattr(self, name)) is not None}
        numbers = {
            name: getattr(self, name) for name in ("iterations", "learning_rate", "step_counter", "dynamic_scale")
        }
        scalars = {name: number for name, number in numbers.items() if number is not None}
        return _restore.restore(self.variables, slots, scalars, params, tx or self._plainest(), rename)

    def fill(self, tree: Any, *, rename: Mapping[str, str] | Callable[[str], str | None] | None = None) -> Any:
        """Return Keras's weights in `tree`, trainable or not: for moving statistics, `mean` and `var` in Flax.

        Args:
          tree: as `params` of `restore`; not all of Keras's variables need be in it.
          rename: as in `restore`.

        Raises:
          ValueError: where a leaf has no counterpart, or one of another shape or dtype.
        """
        return _restore.fill(self.variables, tree, rename)

    def _plainest(self) -> optax.GradientTransformation:
        """Return Keras's transformation; where the file does not tell it, the plainest that keeps the same state."""
        if self.config is not None:
            return self.transformation()
        steps = None if self.accumulator is None else 2
        return kadam(
            amsgrad=self.nu_max is not None, use_ema=self.average is not None, gradient_accumulation_steps=steps
        )

    def _parsed(self) -> OptimizerConfig:
        if self.config is None:
            raise ValueError(
                "The file must hold the optimizer's configuration. Received: a format that does not. "
                "Hand it over: `load_keras(path, config=optimizer.get_config())`."
            )
        return parse(self.config)


def load_keras(
    path: str | pathlib.Path, *, config: Mapping[str, Any] | None = None, trainable: Sequence[str] | None = None
) -> KerasTraining:
    """Read a training from a file that Keras saved: weights, moments, step count, learning rate, configuration.

    Taken are, of Keras 3, `.keras` (zipped or a folder), `.weights.h5`, the `.weights.json` of shards, the whole-model
    `.h5`, and `tf.train.Checkpoint`; of tf_keras, `.keras`, `.weights.h5`, `.h5`, checkpoints, SavedModels and
    `save_weights(save_format="tf")`; of the legacy optimizers, `.h5`, checkpoints and SavedModels. Files are told apart
    by what is in them. Neither Keras nor TensorFlow is imported, and nothing that a file holds is run.

    A `.keras` file and a checkpoint carry checksums, which are verified; `.h5`, `.weights.h5`, `.weights.json` and the
    configuration of a SavedModel carry none: there a flipped bit in a number goes unnoticed. A `.weights.h5` of
    tf_keras does not say which optimizer it is of: one with two slots a variable is taken for Adam.

    Args:
      path: of the file, of the folder of a SavedModel, or of a checkpoint as TensorFlow names it, without `.index`.
      config: `get_config()` of the optimizer, for formats that do not store it (`.weights.h5`, checkpoints).
      trainable: the paths of `model.trainable_variables` in order, where the file does not tell (see the error).

    Returns:
      A `KerasTraining`.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if it is damaged, unsafe, no file of Keras's, or of an optimizer other than Adam.
      ImportError: if h5py is missing.

    Example:
      >>> training = load_keras("tests/golden/files/tfk/adam.keras")
      >>> training.generation, training.iterations, list(training.mu)[:2]
      ('tf_keras', 20, ['emb/embeddings:0', 'd1/kernel:0'])
      >>> import jax
      >>> like = {path: jax.ShapeDtypeStruct(mu.shape, mu.dtype) for path, mu in training.mu.items()}
      >>> params, state = training.restore(like)
      >>> print(optax.tree.get(state, "iterations"), params["d1/kernel:0"].shape)
      20 (20, 6)
    """
    if config is not None:
        parse(config)
    with opened(pathlib.Path(path), config, trainable) as contents:
        return read(contents)


def read(contents: Contents) -> KerasTraining:
    """Read everything that a file holds: all of it or, with a ValueError, nothing."""
    trainable = [variable for variable in contents.variables if variable.is_trainable]
    others = [variable for variable in contents.variables if not variable.is_trainable]
    variables = {variable.path: _frozen(variable.array.read()) for variable in [*trainable, *others]}
    slots = contents.slots
    if slots is None:
        return KerasTraining(contents.generation, contents.config, 0, _configured_rate(contents), variables)
    arrays: dict[str, Any] = {
        name: {v.path: _frozen(array.read()) for v, array in zip(trainable, arrays, strict=True)}
        for name, arrays in slots.arrays().items()
    }
    scalars: dict[str, Any] = {
        name: None if scalar is None else scalar.read().item()
        for name, scalar in {
            "iterations": slots.iterations,
            "learning_rate": slots.learning_rate,
            "step_counter": slots.step_counter,
            "dynamic_scale": slots.dynamic_scale,
        }.items()
    }
    if scalars["learning_rate"] is None:
        scalars["learning_rate"] = _configured_rate(contents)
    return KerasTraining(contents.generation, contents.config, variables=variables, **scalars, **arrays)


def _configured_rate(contents: Contents, default: Any = None) -> float | None:
    """Return the learning rate that the configuration says, if it is a number."""
    rate = parse(contents.config).arguments.get("learning_rate") if contents.config else None
    return float(rate) if isinstance(rate, float | int | np.floating) else default


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False  # It may be shared with an array of JAX, which never changes.
    return array
