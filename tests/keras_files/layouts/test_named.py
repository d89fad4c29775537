"""Whole-model `.h5` files, which name the variables of the optimizer's arrays."""

import pathlib
import shutil

import h5py
import numpy as np
import pytest

import optax_kadam as ok

FILES = pathlib.Path(__file__).parents[2] / "golden" / "files"


def test_weights_alone_are_in_the_order_of_the_file(tmp_path):
    with h5py.File(FILES / "k3j/adam.h5") as file, h5py.File(tmp_path / "x.h5", "w") as packed:
        file.copy("model_weights", packed)
        packed.attrs.update({k: v for k, v in file.attrs.items() if k != "training_config"})
    with pytest.warns(UserWarning, match="weights alone"):
        training = ok.load_keras(tmp_path / "x.h5")
    assert training.order == "named" and training.mu is None
    filled = training.fill([np.zeros_like(array) for array in training.variables.values()])
    assert all(map(np.array_equal, filled, training.variables.values()))


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("m_d1_bias_velocity", "Received: no nu for 'm/d1/bias'"),
        ("iteration", "Received: no step count"),
    ],
)
def test_an_optimizer_that_lacks_an_array_is_refused(left_out, message, tmp_path):
    shutil.copy(FILES / "k3j/adam.h5", tmp_path / "changed")
    with h5py.File(tmp_path / "changed", "r+") as file, h5py.File(tmp_path / "x.h5", "w") as packed:
        names = file["optimizer_weights"].attrs["weight_names"]
        (gone,) = [name for name in names if name.rsplit("/", 1)[-1] == left_out]
        del file["optimizer_weights"][gone]
        file["optimizer_weights"].attrs["weight_names"] = [name for name in names if name != gone]
        for key in file:
            file.copy(key, packed)
        packed.attrs.update(file.attrs)
    with pytest.raises(ValueError, match=f"must hold its step count and the same slots for each variable. {message}"):
        ok.load_keras(tmp_path / "x.h5")
