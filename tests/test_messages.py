"""Every bad argument of `kadam` is refused: the message says what must hold, what was received, and the remedy."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

NAN, INF = float("nan"), float("inf")

VALUES = [
    (lambda: ok.kadam(NAN), r"`learning_rate` must be a finite number. Received: learning_rate=nan. A schedule or"),
    (lambda: ok.kadam(jnp.ones(2)), r"`learning_rate` must be a scalar number where it is an array. Received"),
    (lambda: ok.kadam(jnp.array(True)), r"`learning_rate` must be a scalar number where it is an array"),
    (lambda: ok.kadam(beta_1=1.0), r"`beta_1` must be a finite number >= 0 and < 1. Received: beta_1=1.0."),
    (lambda: ok.kadam(beta_1=-0.1), r"`beta_1` must be a finite number >= 0 and < 1"),
    (lambda: ok.kadam(beta_2=1.5), r"`beta_2` must be a finite number >= 0 and < 1. Received: beta_2=1.5."),
    (lambda: ok.kadam(epsilon=-1e-7), r"`epsilon` must be a finite number >= 0. Received: epsilon=-1e-07."),
    (lambda: ok.kadam(epsilon=INF), r"`epsilon` must be a finite number >= 0. Received: epsilon=inf."),
    (lambda: ok.kadam(weight_decay=-1), r"`weight_decay` must be a finite number >= 0. Received: weight_decay=-1."),
    (
        lambda: ok.kadamw(weight_decay=None),
        r"`weight_decay` must be a number. Received: weight_decay=None. Use `kadam`",
    ),
    (
        lambda: ok.kadam(clipnorm=-1.0),
        r"`clipnorm` must be .* >= 0. Received: clipnorm=-1.0. Use None for no clipping.",
    ),
    (lambda: ok.kadam(clipvalue=-1.0), r"`clipvalue` must be .* >= 0. Received: clipvalue=-1.0. Use None"),
    (lambda: ok.kadam(global_clipnorm=-1.0), r"`global_clipnorm` must be .* > 0. Received: global_clipnorm=-1.0. Use"),
    (lambda: ok.clip_by_global_norm(0.0), r"`global_clipnorm` must be .* > 0. Received: global_clipnorm=0.0. Use None"),
    (lambda: ok.kadam(use_ema=True, ema_momentum=1.5), r"`ema_momentum` must be .* >= 0 and <= 1. Received: ema_mom"),
    (
        lambda: ok.kadam(use_ema=True, ema_overwrite_frequency=0),
        r"`ema_overwrite_frequency` must be an integer >= 1. Received: ema_overwrite_frequency=0. Use None to never",
    ),
    (lambda: ok.kadam(loss_scale_factor=0), r"`loss_scale_factor` must be .* > 0. Received: loss_scale_factor=0. Use"),
    (
        lambda: ok.kadam(gradient_accumulation_steps=1),
        r"`gradient_accumulation_steps` must be an integer >= 2. Received: gradient_accumulation_steps=1. Use None",
    ),
    (lambda: ok.kadam(gradient_accumulation_steps=-2), r"`gradient_accumulation_steps` must be an integer >= 2"),
    (
        lambda: ok.kadam(gradient_accumulation_steps=2**31),
        r"`gradient_accumulation_steps` must be an integer < 2\*\*31, where the steps end. Received: .*=2147483648.",
    ),
    (
        lambda: ok.kadam(use_ema=True, ema_overwrite_frequency=2**31),
        r"`ema_overwrite_frequency` must be an integer < 2\*\*31",
    ),
    (
        lambda: ok.kadam(generation="keras2"),
        r"`generation` must be one of 'keras3', 'tf_keras', 'legacy'. Received: gen",
    ),
    (lambda: ok.kadam(clipnorm=1.0, clipvalue=1.0), r"Only one of clipnorm, clipvalue and global_clipnorm may be set"),
    (lambda: ok.kadam(clipnorm=0, clipvalue=0), r"Received: clipnorm=0, clipvalue=0, global_clipnorm=None. Set the"),
    (
        lambda: ok.kadam(clipnorm=1.0, global_clipnorm=1.0, generation="tf_keras"),
        r"Only one of clipnorm and global_clipnorm may be set with generation='tf_keras'",
    ),
    (
        lambda: ok.kadam(clipnorm=1.0, global_clipnorm=1.0, generation="legacy"),
        r"Only one of clipnorm and global_clipnorm may be set with generation='legacy'",
    ),
    (lambda: ok.kadam(decay=0.1), r"`decay` must be left out with generation='keras3', .* It belongs to .*'legacy'"),
    (lambda: ok.kadam(adaptive_epsilon=True), r"`adaptive_epsilon` must be left out .* belongs to .*'tf_keras'"),
    (lambda: ok.kadam(weight_decay=0.1, generation="legacy"), r"`weight_decay` must be left out with generation='leg"),
    (lambda: ok.kadam(use_ema=True, generation="legacy"), r"`use_ema` must be left out with generation='legacy'"),
    (lambda: ok.kadam(loss_scale_factor=2.0, generation="tf_keras"), r"`loss_scale_factor` must be left out"),
    (
        lambda: ok.kadam(gradient_accumulation_steps=2, generation="tf_keras"),
        r"`gradient_accumulation_steps` must be l",
    ),
    (lambda: ok.kadam(decay=-0.1, generation="legacy"), r"`decay` must be a finite number >= 0. Received: decay=-0.1."),
    (lambda: ok.kadam(mu_dtype="int32"), r"`mu_dtype` must be a floating-point dtype. Received: mu_dtype='int32'. Use"),
    (lambda: ok.kadam(nu_dtype="float31"), r"`nu_dtype` must be a floating-point dtype. Received: nu_dtype='float31'"),
]

TYPES = [
    (lambda: ok.kadam("0.1"), r"`learning_rate` must be a finite number. Received: learning_rate='0.1'."),
    (lambda: ok.kadam(None), r"`learning_rate` must be a finite number. Received: learning_rate=None."),
    (lambda: ok.kadam(True), r"`learning_rate` must be a finite number. Received: learning_rate=True."),
    (lambda: ok.kadam(epsilon=None), r"`epsilon` must be a finite number >= 0. Received: epsilon=None."),
    (lambda: ok.kadam(epsilon="1e-7"), r"`epsilon` must be a finite number"),
    (lambda: ok.kadam(beta_1=None), r"`beta_1` must be a finite number >= 0 and < 1. Received: beta_1=None."),
    (lambda: ok.kadam(clipnorm=[1.0]), r"`clipnorm` must be a finite number >= 0"),
    (lambda: ok.kadam(amsgrad="yes"), r"`amsgrad` must be True or False. Received: amsgrad='yes'."),
    (lambda: ok.kadam(use_ema=1), r"`use_ema` must be True or False. Received: use_ema=1."),
    (lambda: ok.kadam(name=3), r"`name` must be a string or None. Received: name=3."),
    (lambda: ok.kadam(gradient_accumulation_steps=2.5), r"`gradient_accumulation_steps` must be an integer >= 2"),
    (lambda: ok.kadam(use_ema=True, ema_overwrite_frequency=2.5), r"`ema_overwrite_frequency` must be an integer >= 1"),
    (
        lambda: ok.kadam(gradient_accumulation_steps=jnp.int32(2)),
        r"With `optax.inject_hyperparams`, name it in `static_",
    ),
    (
        lambda: ok.kadam().init({"w": jnp.arange(3)}),
        r"`params` must hold floating-point .* int32 at \"\['w'\]\". Leave",
    ),
]


@pytest.mark.parametrize(("make", "match"), VALUES)
def test_a_value_out_of_range_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(("make", "match"), TYPES)
def test_a_value_of_another_kind_is_refused(make, match):
    with pytest.raises(TypeError, match=match):
        make()


PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


def test_what_keras_takes_is_taken():
    for accepted in (
        {"learning_rate": -1.0},
        {"learning_rate": 1},
        {"learning_rate": np.float32(0.1)},
        {"clipnorm": 0},
        {"global_clipnorm": 0},
        {"global_clipnorm": 0, "generation": "legacy"},
        {"epsilon": 0},
        {"gradient_accumulation_steps": 0},
        {"ema_momentum": 1.5},
        {"ema_overwrite_frequency": -1},
        {"name": None},
        {"weight_decay": 0},
        {"clipvalue": 1.0, "clipnorm": 1.0, "generation": "legacy"},
        {"clipvalue": 1.0, "global_clipnorm": 1.0, "generation": "tf_keras"},
        {"epsilon": None, "generation": "legacy"},
        {"epsilon": 0, "generation": "legacy"},
    ):
        tx = ok.kadam(**accepted)
        assert isinstance(tx, optax.GradientTransformationExtraArgs)
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
