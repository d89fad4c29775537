"""`record`: the gradients and weights of the first steps of a live optimizer of Keras's are written into a file.

The method of the optimizer that takes the gradients is wrapped, on this one object: `apply` in Keras 3, which `fit` on
JAX calls through `stateless_apply`, within a scope in which each variable has the value of the step; `stateless_apply`
itself for a LossScaleOptimizer of Keras 3 on JAX, which calls no other; `apply_gradients` in tf_keras. What is traced
has no numbers, and is refused.
"""

import contextlib
import importlib
import os
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from jax.core import Tracer

from optax_kadam import _check
from optax_kadam.config._parse import parse
from optax_kadam.keras_files._live import live_contents, serialized
from optax_kadam.keras_files._training import KerasTraining, read
from optax_kadam.keras_files._whole_file import whole_file
from optax_kadam.keras_files.comparing._recording import Gradient, Recording, Step

_EAGERLY = "Compile the model anew with `run_eagerly=True, jit_compile=False`, or take the steps outside of functions."


@contextlib.contextmanager
def record(optimizer: Any, path: str | os.PathLike[str], *, steps: int = 10) -> Iterator[None]:
    """Record the gradients that an optimizer of Keras's is handed, and the weights that it makes of them.

    `python -m optax_kadam replay PATH` then hands the same gradients to the transformation of the recorded
    configuration, and says whether the weights are the same: then look at the model, and otherwise at the step and the
    variable that it names. What a configuration does not hold is recorded too: which variables the weight decay is for,
    the slots and counts that the optimizer begins with, and a learning rate that is changed between steps.

    The file is written once, as a whole, after the last step or at the end of the `with` block; if an error leaves the
    block before, none is written. The memory that it takes is that of the gradients and the weights of all steps.

    Args:
      optimizer: Adam or AdamW of Keras 3, on any backend, or of tf_keras, of either generation; or a LossScaleOptimizer
        of Keras 3 around one. `fit` must not compile the step: `model.compile(..., run_eagerly=True,
        jit_compile=False)`.
      path: the path of the `.npz` file.
      steps: how many steps, at most, >= 1: calls of the optimizer, so that with accumulation they are micro-steps.

    Raises:
      ValueError: if the optimizer is another one, or a step is traced; if a variable has a constraint, or the learning
        rate is a function or a schedule of one's own, which the recorded configuration would not tell; if no step was
        taken.
      TypeError: if `steps` is no integer, or a gradient of an unknown kind.
      OSError: if the file cannot be written.

    Example:
      >>> import os, tempfile
      >>> os.environ["KERAS_BACKEND"] = "jax"
      >>> import keras, numpy as np, optax_kadam as ok
      >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
      >>> model.compile(keras.optimizers.Adam(0.1), "mse", run_eagerly=True, jit_compile=False)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with ok.record(model.optimizer, f"{folder}/run.npz", steps=4):
      ...         history = model.fit(np.ones((8, 3)), np.ones((8, 2)), batch_size=2, verbose=0)
      ...     print(sorted(os.listdir(folder)))
      ['run.npz']
    """
    _check.integer("steps", steps, 1)
    recorder = _Recorder(optimizer, pathlib.Path(path), steps)
    names = [name for name in recorder.methods if hasattr(optimizer, name)]
    for name in names:
        object.__setattr__(optimizer, name, recorder.methods[name](getattr(optimizer, name)))
    try:
        yield
    finally:
        for name in names:
            object.__delattr__(optimizer, name)
    recorder.finish()


class _Recorder:
    """What is known of the steps so far."""

    def __init__(self, optimizer: Any, path: pathlib.Path, count: int):
        self.optimizer, self.path, self.count = optimizer, path, count
        self.inner = getattr(optimizer, "inner_optimizer", optimizer)
        self.is_keras3 = hasattr(optimizer, "stateless_apply")
        self.methods: dict[str, Callable[[Any], Any]]
        if self.is_keras3:
            self.methods = {"apply": self._apply}
            if self.inner is not optimizer:
                self.methods["stateless_apply"] = self._stateless_apply
        else:
            self.methods = {"apply_gradients": self._apply_gradients}
        self.start: KerasTraining | None = None
        self.end: KerasTraining | None = None
        self.variables: list[Any] = []
        self.paths: dict[int, str] = {}
        self.decayed: dict[str, bool] = {}
        self.steps: list[Step] = []
        self.gradients: dict[str, Gradient] = {}
        self.rate: float | None = None
        self.is_held = False  # Whether the learning rate is a number, that may be set.
        serialized(optimizer)  # It raises if this is no Adam.
        if not self.is_keras3 and self.inner is not optimizer:
            raise ValueError(
                "`optimizer` must be the one inside, as a LossScaleOptimizer of tf_keras is handed gradients that are "
                f"unscaled already. Received: optimizer={type(optimizer).__name__}. Record a training without it."
            )

    def _apply(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def apply(grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> Any:
            known = self.inner._trainable_variables if trainable_variables is None else list(trainable_variables)
            with self._step(list(grads), known):
                return original(grads, trainable_variables)

        return apply

    def _stateless_apply(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def stateless_apply(
            optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Sequence[Any]
        ) -> Any:
            trained = self.inner._trainable_variables
            variables = [*trained, *self.optimizer.variables]
            scope = importlib.import_module("keras").StatelessScope
            with scope(state_mapping=list(zip(variables, [*trainable_variables, *optimizer_variables], strict=True))):
                self._before(list(grads), trained)
            new_trained, new_variables = original(optimizer_variables, grads, trainable_variables)
            with scope(state_mapping=list(zip(variables, [*new_trained, *new_variables], strict=True))):
                self._after()
            return new_trained, new_variables

        return stateless_apply

    def _apply_gradients(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def apply_gradients(grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
            pairs = list(grads_and_vars)
            with self._step([gradient for gradient, _ in pairs], [variable for _, variable in pairs]):
                return original(pairs, *args, **kwargs)

        return apply_gradients

    @contextlib.contextmanager
    def _step(self, gradients: Sequence[Any], variables: Sequence[Any]) -> Iterator[None]:
        self._before(gradients, variables)
        yield
        self._after()

    def _before(self, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        if not gradients or len(self.steps) == self.count:
            return
        found = {id(variable): _numbers_of(gradient) for variable, gradient in zip(variables, gradients, strict=True)}
        if self.start is None:
            self._begin(variables)
        unknown = [variable for variable in variables if id(variable) not in self.paths]
        if unknown:
            raise ValueError(
                "`optimizer` must be handed the variables of the first step. "
                f"Received: {getattr(unknown[0], 'path', unknown[0].name)!r} in step {len(self.steps) + 1}. "
                "Hand over the gradients of all variables from the first step on, None among them."
            )
        self.gradients = {path: found.get(key) for key, path in self.paths.items()}
        if self.is_held:
            self.rate = float(_numbers(self.inner.learning_rate))

    def _begin(self, variables: Sequence[Any]) -> None:
        """Take down what the training begins with."""
        own = list(getattr(self.inner, "_trainable_variables", ())) if self.is_keras3 else []
        self.variables = own or list(variables)
        for variable in self.variables:
            name = getattr(variable, "path", variable.name)
            if getattr(variable, "constraint", None) is not None or getattr(variable, "overwrite_with_gradient", False):
                raise ValueError(
                    "`optimizer` must alone make the weights. "
                    f"Received: {name!r}, which has a constraint or takes its gradient for its value. "
                    "Record a training without it."
                )
        self.start = self.end = self._training()
        config = parse(self.start.config or {}).arguments
        rate = config.get("learning_rate", 0.001)
        if isinstance(rate, Mapping):
            raise ValueError(
                "The learning rate must be a number or one of Keras's schedules. "
                f"Received: learning_rate={dict(rate)!r} in the configuration. Record a training with a number."
            )
        self.is_held = not callable(rate) and not config.get("decay")
        decays = getattr(self.inner, "_use_weight_decay", lambda variable: True)
        self.decayed = {self.paths[id(variable)]: bool(decays(variable)) for variable in self.variables}

    def _training(self) -> KerasTraining:
        """Return the training as it is at this moment."""
        variables = self.variables
        model = types.SimpleNamespace(weights=variables, trainable_variables=variables, optimizer=self.optimizer)
        contents = live_contents(model)
        self.paths = {id(cast(Any, variable.array).variable): variable.path for variable in contents.variables}
        training = read(contents)
        if getattr(self.inner, "adaptive_epsilon", False):  # tf_keras does not write it into a configuration.
            config = cast(Any, training.config)
            config["config"]["adaptive_epsilon"] = True
        return training

    def _after(self) -> None:
        if self.start is None or not self.gradients or len(self.steps) == self.count:
            return
        self.end = self._training()
        self.steps.append(Step(self.gradients, self.rate, dict(self.end.variables)))
        if len(self.steps) == self.count:
            self._write()

    def finish(self) -> None:
        """Write the steps so far, if they are not written yet."""
        if not self.steps:
            raise ValueError(f"A step must be taken within `record`. Received: none that was seen. {_EAGERLY}")
        if len(self.steps) < self.count:
            self._write()

    def _write(self) -> None:
        package = importlib.import_module(type(self.inner).__module__.split(".")[0])
        backend = f" on {package.backend.backend()}" if self.is_keras3 else ""
        name = f"{package.__name__} {package.__version__}{backend}"
        with whole_file(self.path) as file:
            Recording(name, cast(Any, self.start), self.steps, cast(Any, self.end), self.decayed).write(file)


def _numbers_of(gradient: Any) -> Gradient:
    """Return the numbers of a gradient, or raise if it has none, as it is traced."""
    if gradient is None:
        return None
    if hasattr(gradient, "indices") and hasattr(gradient, "values") and not hasattr(gradient, "detach"):
        return _numbers(gradient.indices), _numbers(gradient.values)
    if hasattr(gradient, "indices") and not hasattr(gradient, "detach"):
        raise TypeError(
            f"A gradient must be an array, IndexedSlices or None. Received: {type(gradient).__name__}. "
            "Hand over its dense form."
        )
    return _numbers(gradient)


def _numbers(tensor: Any) -> np.ndarray:
    """Return a copy of a tensor of any backend."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
    try:
        if isinstance(tensor, Tracer):
            raise NotImplementedError
        return np.array(tensor.numpy() if hasattr(tensor, "numpy") else tensor)
    except NotImplementedError as error:  # What TensorFlow raises too.
        raise ValueError(
            "`optimizer` must be handed numbers. "
            f"Received: {type(tensor).__name__}, as the step is compiled. {_EAGERLY}"
        ) from error
