"""Files that number the arrays of the optimizer: how these are told apart."""

import shutil

import h5py
import numpy as np
import pytest

import optax_kadam as ok

from ...helpers import keras_rules
from .test_order import DENSE, L, check, sequential, with_numbers

keras = pytest.importorskip("keras")


@keras_rules()
@pytest.mark.parametrize("widths", [(4, 4), (4, 3)])
def test_averages_and_accumulators_may_stand_by_turns(widths, tmp_path):
    """Where the shapes do not tell, a `.weights.h5` must not be guessed: Keras wrote them by turns before 3.10."""
    model = sequential(*(DENSE(width, use_bias=False) for width in widths))
    optimizer = with_numbers(model, keras.optimizers.Adam(use_ema=True, gradient_accumulation_steps=2))
    config, path = optimizer.get_config(), tmp_path / "x.weights.h5"
    model.save_weights(path)
    if widths == (4, 4):
        with pytest.raises(ValueError, match="stand by turns, as Keras wrote them before 3.10. Received: .* `.keras`"):
            ok.load_keras(path, config=config)
        model.save(tmp_path / "x.keras")
        path = tmp_path / "x.keras"
    training = ok.load_keras(path, config=config)
    check(training, optimizer)
    for found, wanted in (
        (training.average, optimizer._model_variables_moving_average),
        (training.accumulator, optimizer._accumulated_gradients),
    ):
        assert all(map(np.array_equal, found.values(), wanted))


@keras_rules()
def test_one_variable_needs_no_order(tmp_path):
    model = sequential(DENSE(4, use_bias=False))
    optimizer = with_numbers(model, keras.optimizers.Adam(use_ema=True, gradient_accumulation_steps=2))
    model.save_weights(tmp_path / "x.weights.h5")
    training = ok.load_keras(tmp_path / "x.weights.h5", config=optimizer.get_config())
    (average,) = training.average.values()
    assert np.array_equal(average, optimizer._model_variables_moving_average[0])


@keras_rules()
def test_a_list_that_is_no_adam_s_is_named(tmp_path):
    model = sequential(DENSE(4), L.BatchNormalization())
    optimizer = with_numbers(model)
    model.save_weights(tmp_path / "x.weights.h5")
    config = optimizer.get_config() | {"amsgrad": True, "use_ema": True}
    message = r"Received: 10 arrays of shapes \(\), \(\), \(4, 4\), .* for keras3 with amsgrad, use_ema. Only Adam"
    with pytest.raises(ValueError, match=message):
        ok.load_keras(tmp_path / "x.weights.h5", config=config)


@keras_rules()
@pytest.mark.parametrize("left", [2, 3])
def test_a_loss_scale_without_its_scale_is_refused(left, tmp_path):
    model = sequential(DENSE(4))
    model.compile(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "whole.weights.h5")
    shutil.copy(tmp_path / "whole.weights.h5", tmp_path / "changed")
    with h5py.File(tmp_path / "changed", "r+") as file, h5py.File(tmp_path / "x.weights.h5", "w") as packed:
        for name in sorted(file["optimizer/vars"], key=int)[left:]:
            del file[f"optimizer/vars/{name}"]
        for key in file:
            file.copy(key, packed)
    with pytest.raises(ValueError, match=f"must hold its step counter and its scale. Received: {left} other arrays"):
        ok.load_keras(tmp_path / "x.weights.h5")
