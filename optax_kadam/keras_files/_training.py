"""`load_keras` reads a training from a file of any generation of Keras, as a `KerasTraining`."""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import optax

from optax_kadam._hyperparameter import Hyperparameter
from optax_kadam._kadam import kadam
from optax_kadam.config._parse import Generation, OptimizerConfig, parse
from optax_kadam.keras_files import _restore
from optax_kadam.keras_files._contents import Contents, Order
from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._live import live_contents
from optax_kadam.keras_files._open import hints_of, opened
from optax_kadam.keras_files._restore import Tree
from optax_kadam.keras_files._told import Trainable
from optax_kadam.keras_files.matching._leaves import is_flat
from optax_kadam.keras_files.matching._rename import Rename
from optax_kadam.stages._weight_decay import Mask

Arrays = dict[str, np.ndarray]
EXCLUSIONS = "what `exclude_from_weight_decay` excluded is in no file"


@dataclasses.dataclass(frozen=True, eq=False)
class KerasTraining:
    """A training as Keras saved it: arrays by Keras's paths, in the order of `model.trainable_variables`.

    A path of Keras 3 is `variable.path`, such as `model/dense/kernel`; a path of tf_keras and of legacy Keras is the
    name of the variable, such as `dense/kernel:0`. A `.weights.h5` file of tf_keras, or of Keras 3.3 and older, has no
    names: its paths are made of the default names of the layers.

    Args:
      generation: `"keras3"`, `"tf_keras"` or `"legacy"`.
      config: the serialized optimizer; None if the file holds none.
      iterations: the number of steps so far as Keras counts them: with accumulation, it counts micro-steps.
      learning_rate: the number that the file stores, or else that of its configuration; None if there is neither, or a
        schedule.
      variables: the weights: first the trainable ones, then the others.
      mu: the first moments of the trainable variables. This and what follows is None if the file does not hold it.
      nu: the second moments.
      nu_max: the running maxima of the second moments, with AMSGrad.
      average: the moving averages of the weights, with `use_ema`.
      accumulator: the gradients accumulated so far, with `gradient_accumulation_steps`.
      step_counter: the number of finite steps since the scale of a LossScaleOptimizer last changed.
      dynamic_scale: the scale of a LossScaleOptimizer.
      order: how the order of the trainable variables is known: `"named"` if the file names them, `"listed"` if the
        configuration of the model lists its layers, `"shapes"` if no other order fits the moments, `"given"` if
        `trainable` said it, `"live"` if it is that of a live model. None if it is not known, in a file without moments.
    """

    generation: Generation
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
    order: Order | None = None

    @classmethod
    def from_model(cls, model: Any, *, optimizer: Any = None) -> "KerasTraining":
        """Read a training out of a live Keras model, as `load_keras` reads it out of the model's file.

        The optimizer itself says in which order it keeps its arrays. All arrays are copied, so that the model may train
        on. The way back is `update_model`.

        Args:
          model: a built and compiled model of Keras 3, on any backend, or of tf_keras; in a callback too.
          optimizer: the optimizer to read, if it is not `model.optimizer`: a GAN has two. The variables that it does
            not train are among the others then.

        Returns:
          A `KerasTraining`. If the optimizer was not built yet, `mu` and the other slots are None.

        Raises:
          TypeError: if `model` is no Keras model.
          ValueError: if it is not built or not compiled, or its optimizer is no Adam, or that of another model.

        Example:
          >>> import os
          >>> os.environ["KERAS_BACKEND"] = "jax"
          >>> import keras
          >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="net")
          >>> model.compile("adam", "mse")
          >>> model.optimizer.build(model.trainable_variables)
          >>> KerasTraining.from_model(model)
          KerasTraining(generation='keras3', iterations=0, learning_rate=0.001, variables: 2, slots: mu, nu)
        """
        return read(live_contents(model, optimizer))

    def __repr__(self) -> str:
        slots = [name for name in _restore.SLOTS if getattr(self, name) is not None]
        rate = "" if self.learning_rate is None else f"learning_rate={self.learning_rate}, "
        decay = None if self.config is None else self._parsed().arguments.get("weight_decay")
        return (
            f"KerasTraining(generation={self.generation!r}, iterations={self.iterations}, {rate}"
            f"variables: {len(self.variables)}, slots: {', '.join(slots) or 'none'}"
            f"{f', weight_decay={decay}: {EXCLUSIONS}' if decay else ''})"
        )

    def transformation(
        self, *, learning_rate: Hyperparameter | None = None, weight_decay_mask: Mask | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """Build the transformation that goes on as Keras's optimizer would. The arguments are those of `from_config`.

        With weight decay, hand a `weight_decay_mask` over if Keras was told `exclude_from_weight_decay`: no file holds
        what was excluded, so that without a mask all parameters decay here.

        Raises:
          ValueError: if the file holds no configuration, or one that cannot be honoured.
        """
        return self._parsed().transformation(learning_rate=learning_rate, weight_decay_mask=weight_decay_mask)

    def restore(
        self,
        params: Tree,
        *,
        tx: optax.GradientTransformation | None = None,
        rename: Rename | None = None,
        skip: Sequence[str] = (),
    ) -> tuple[Tree, optax.OptState]:
        """Return `(params, opt_state)`: the tree `params` filled with Keras's weights, and Keras's state for it.

        Each leaf is matched with one of Keras's trainable variables by its path. A leading `params` in the path of a
        leaf is ignored; so are the name of the model and `:0` in Keras's path. Flax's and Equinox's words stand for
        Keras's: `embedding` or `weight` for `embeddings`, `scale` or `weight` for `gamma`, `bias` for `beta`. Where
        these lay a kernel out otherwise, it is converted, and its slots with it: a `weight` of Equinox, a depthwise
        kernel, the gates of a recurrent cell. A square kernel that may be transposed is refused until `rename` says how
        it is held: a `weight`, and that of a convolution whose name here or in Keras has `transpose`, `deconv` or `up`.
        A flat list of arrays has no paths: its arrays must be in Keras's order. If anything does not fit, nothing is
        restored. A leaf that Keras did not train is filled too, and its moments begin at zero.

        Args:
          params: a tree of the parameters to train, as arrays or `jax.ShapeDtypeStruct`s, whose sharding is kept: a
            Flax NNX state, a Linen tree, nested dicts, or a flat list.
          tx: the transformation that goes on. The default is `transformation()` or, if the file holds no configuration,
            the plainest `kadam` that keeps this state. It may be `optax.adam` or a chain, and stand inside `partition`,
            `masked`, `inject_hyperparams` or `MultiSteps`: each count of the steps is Keras's then, and a number that
            Keras does not keep is as `tx.init` makes it.
          rename: what Keras's paths are called in `params`: a function from a path of Keras's, which returns None for
            one that keeps its name; or a mapping of parts of paths, such as `{"m/d1": "Dense_0"}`. All that are found
            in a path are replaced; where two overlap, the longer is. Instead of a name a mapping may have
            `{name: conversion}`, which says how the leaf holds the array, with several names for a variable that is
            held in parts: see `optax_kadam.conversions`. `suggest_rename` proposes one.
          skip: what is not carried over, by paths or their beginnings, as they are in `params` or in Keras. A leaf that
            it names keeps its value, and its moments begin at zero; a variable of Keras's that it names needs no leaf.
            Where both have the name, as a head that is replaced, both are meant. `save_keras` needs all of them again.

        Returns:
          The filled tree, and the state of `tx` for it. On a CPU they may share memory with this object, which JAX
          never writes to.

        Raises:
          ValueError: if a variable is missing, left over, or of another shape or dtype: the message names both paths,
            and proposes a `rename`; if `rename` or `skip` names what is not there; or if `tx` keeps other arrays than
            the file holds, such as those of `optax.trace`.
          TypeError: if `rename` is no mapping or function, or `skip` no list of paths.

        Example:
          >>> import jax
          >>> training = load_keras("tests/golden/files/k3j/adam.keras")
          >>> shapes = {"fc": {"weight": (6, 20), "bias": (6,)}, "bn": {"weight": (6,), "bias": (6,)}, "head": (6, 9)}
          >>> params = jax.tree.map(jax.numpy.zeros, shapes, is_leaf=lambda x: type(x) is tuple)
          >>> params, state = training.restore(params, rename={"d1": "fc"}, skip=["head", "emb", "d2"])
          >>> bool((params["fc"]["weight"] == training.variables["m/d1/kernel"].T).all())
          True
        """
        if self.mu is None:
            raise ValueError(
                "The file must hold the state of an optimizer. Received: mu=None, for a file of weights alone. "
                "Use `fill(params)` for the weights, or save the model after it was compiled and trained."
            )
        slots = {name: arrays for name in _restore.SLOTS if (arrays := getattr(self, name)) is not None}
        numbers = {
            name: getattr(self, name) for name in ("iterations", "learning_rate", "step_counter", "dynamic_scale")
        }
        scalars = {name: number for name, number in numbers.items() if number is not None}
        return _restore.restore(self.variables, slots, scalars, params, tx or self._plainest(), rename, skip)

    def fill(self, tree: Tree, *, rename: Rename | None = None) -> Tree:
        """Return `tree` filled with Keras's weights, whether they are trained or not.

        This also reads the moving statistics of a BatchNormalization, which Flax calls `mean` and `var`.

        Args:
          tree: a tree like `params` of `restore`, which may leave out any of Keras's variables.
          rename: what Keras's paths are called in `tree`: see `restore`.

        Raises:
          ValueError: if a leaf is none of Keras's variables, or has another shape or dtype.
        """
        if self.order is None and is_flat(tree):
            raise ValueError(
                "The order of the variables must be known to fill a list. Received: a list, and a file of weights from "
                "which their order does not follow. Hand over a tree whose paths are Keras's: a dict, for example."
            )
        return _restore.fill(self.variables, tree, rename)

    def _plainest(self) -> optax.GradientTransformation:
        """Return Keras's transformation or, without a configuration, the plainest `kadam` that keeps the same state."""
        if self.config is not None:
            return self.transformation()
        steps = None if self.accumulator is None else 2
        return kadam(
            amsgrad=self.nu_max is not None, use_ema=self.average is not None, gradient_accumulation_steps=steps
        )

    def _parsed(self) -> OptimizerConfig:
        if self.config is None:
            raise ValueError(
                "The file must hold the optimizer's configuration. Received: config=None. "
                "Hand it over: `load_keras(path, config=optimizer.get_config())`."
            )
        return parse(self.config)


def load_keras(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    config: Mapping[str, object] | None = None,
    trainable: Trainable | None = None,
    optimizer: str = "optimizer",
) -> KerasTraining:
    """Read a training from a file that Keras saved: weights, moments, step count, learning rate, configuration.

    The format is found out from what is in the file. It may be, of Keras 3, `.keras` (zipped or a folder),
    `.weights.h5`, the `.weights.json` of shards, the whole-model `.h5`, or `tf.train.Checkpoint`; of tf_keras,
    `.keras`, `.weights.h5`, `.h5`, a checkpoint, a SavedModel or `save_weights(save_format="tf")`; of the legacy
    optimizers, `.h5`, a checkpoint or a SavedModel. Neither Keras nor TensorFlow is imported, and nothing that a file
    holds is run.

    A `.keras` file and a checkpoint carry checksums, which are verified. A `.h5`, a `.weights.h5`, a `.weights.json`
    and the configuration of a SavedModel carry none: a flipped bit in a number goes unnoticed there. A `.weights.h5` of
    tf_keras does not say which optimizer it belongs to: if it has two slots for each variable, it is taken for Adam.

    A checkpoint, a SavedModel and a whole-model `.h5` name their variables; the other formats number them. Which moment
    belongs to which variable is certain there if the file lists the layers of a Sequential or Functional model of
    Keras's own and all were trained. Otherwise it must follow from the shapes: if two variables could change places,
    the file is refused, and the message asks for `trainable`. `KerasTraining.order` says how the order is known.

    A `.weights.h5` says of a layer no more than what its class is called: a class of one's own that is called like one
    of Keras's is taken for that, and LoRA without a bias, of the rank of the layer, for kernels.

    A file is read through one descriptor: one that is replaced meanwhile gives what it held when it was opened; one
    that is written to is refused. What neither a layer nor the optimizer claims is refused too. Whatever a file holds,
    its load takes time and memory in proportion to its length.

    Args:
      path: the path of the file, of the folder of a SavedModel, or of a checkpoint as TensorFlow names it, without
        `.index`; or a file that is open for reading bytes, for a `.keras`, `.weights.h5` or `.h5`.
      config: `get_config()` of the optimizer, for formats that do not store it (`.weights.h5`, checkpoints).
      trainable: `model.trainable_variables` of the model as it was saved, for a file from which their order does not
        follow: an error asks for them then. Each is a variable of Keras's or an array, which is found by its numbers,
        or a path. A variable gives its path too. Or the path of what `python -m optax_kadam order` wrote.
      optimizer: the attribute of the model that the optimizer is, for a model with several, such as a GAN.

    Returns:
      A `KerasTraining`. A file that holds no state of an optimizer gives a warning.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if the file is damaged, unsafe, written to while it is read, not Keras's, or of an optimizer other
        than Adam.
      TypeError: if `config` is no mapping or `trainable` no list of paths or arrays.
      ImportError: if google-crc32c is missing, for a checkpoint or a SavedModel.

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
    hints = hints_of(config, trainable, optimizer)
    with opened(path, hints) as contents:
        training = read(contents)
    if training.mu is None:
        name = str(getattr(path, "name", path))
        warnings.warn(
            f"{name!r} holds weights alone, and no state of an optimizer. `fill` reads them; for `restore`, the model "
            "must have been compiled and trained before it was saved.",
            stacklevel=2,
        )
    return training


def read(contents: Contents) -> KerasTraining:
    """Read all arrays of a file; if one of them cannot be read, a ValueError is raised."""
    trainable = [variable for variable in contents.variables if variable.is_trainable]
    others = [variable for variable in contents.variables if not variable.is_trainable]
    variables = {variable.path: _frozen(variable.array.read()) for variable in [*trainable, *others]}
    slots = contents.slots
    if slots is None:
        rate = _configured_rate(contents)
        return KerasTraining(contents.generation, contents.config, 0, rate, variables, order=contents.order)
    arrays = {
        name: {variable.path: _frozen(array.read()) for variable, array in zip(trainable, listed, strict=True)}
        for name, listed in slots.arrays().items()
    }
    iterations, rate = _count("iterations", slots.iterations), _number("learning_rate", slots.learning_rate)
    return KerasTraining(
        contents.generation,
        contents.config,
        iterations,
        _configured_rate(contents) if rate is None else rate,
        variables,
        mu=arrays.get("mu"),
        nu=arrays.get("nu"),
        nu_max=arrays.get("nu_max"),
        average=arrays.get("average"),
        accumulator=arrays.get("accumulator"),
        step_counter=slots.step_counter and _count("step_counter", slots.step_counter),
        dynamic_scale=_number("dynamic_scale", slots.dynamic_scale),
        order=contents.order,
    )


def _count(name: str, scalar: LazyArray) -> int:
    """Return the number of steps in an array."""
    count = scalar.read()
    if count.shape or count.dtype.kind != "i" or count < 0:
        raise ValueError(
            f"`{name}` must be a number of steps, as a signed integer. Received: {name}={count} of dtype "
            f"{count.dtype}. The file is damaged, or no Keras wrote it."
        )
    return int(count)


def _number(name: str, scalar: LazyArray | None) -> float | None:
    """Return the number in an array, or None without one."""
    if scalar is None:
        return None
    number = scalar.read()
    if number.shape or number.dtype.kind != "f" or not number >= 0:
        raise ValueError(
            f"`{name}` must be a number of at least 0. Received: {name}={number} of dtype {number.dtype}. "
            "The file is damaged, or no Keras wrote it."
        )
    return float(number)


def _configured_rate(contents: Contents) -> float | None:
    """Return the learning rate of the configuration if that is a number."""
    rate = parse(contents.config).arguments.get("learning_rate") if contents.config else None
    return float(rate) if isinstance(rate, float | int | np.floating) else None


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False  # JAX may use the same memory, and its arrays never change.
    return array
