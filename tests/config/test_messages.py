"""Every error of reading and writing a config: what must hold, what was received, the remedy."""

import jax
import pytest

from optax_kadam.config._config import from_config, to_config

from ..helpers import keras_rules
from .test_config import CLIPS, KERAS3, LEGACY, SCALING, TF_2_3, TF_KERAS, older, scaled, serialized


def rate(config, *form):
    return KERAS3 | {"learning_rate": serialized(config, *form)}


UNREADABLE = [
    (older({}, "SGD"), r"`class_name` must be Keras's own Adam .* Received: class_name='SGD'. If a class of yours"),
    (serialized(KERAS3, "MyAdam", None, "mine>MyAdam"), r"'MyAdam', module=None, registered_name='mine>MyAdam'. If a"),
    (serialized(KERAS3, "Adam", None, "Custom>Adam"), r"`class_name` must be .* registered_name='Custom>Adam'"),
    (older(KERAS3, "Custom>Adam"), r"`class_name` must be .* Received: class_name='Custom>Adam'"),
    (older(LEGACY | {"weight_decay": 0.1}, "Addons>AdamW"), r"`class_name` must be .* Received: class_name='Addons>Ad"),
    (older(LEGACY | {"weight_decay": 0.1}, "AdamW"), r"`class_name` must be .* Received: class_name='AdamW'"),
    (older({"weight_decay": None}, "AdamW"), r"`weight_decay` must be a number for AdamW. Received: weight_decay=None"),
    (KERAS3 | {"lr": 0.1}, r"`lr` must be left out .* generation='keras3', .* Received: lr=0.1. Its Adam knows name"),
    (TF_KERAS | {"decay": 0.1}, r"`decay` must be left out .* generation='tf_keras'"),
    (LEGACY | {"weight_decay": 0.1}, r"`weight_decay` must be left out .* generation='legacy'"),
    (rate("f", "function", "builtins", "function"), r"`learning_rate` must be .*'function', ...}. Pass `learning_ra"),
    (rate({}, "CosineDecay", None, "mine>CosineDecay"), r"`learning_rate` must be .*'CosineDecay', ...}. Pass"),
    (rate({"warm": 1}, "CosineDecay"), r"A CosineDecay config must hold no key but initial_.* Received: warm=1"),
    (rate({}, "CosineDecay"), r"A CosineDecay config must hold `initial_learning_rate`. Received: {}. Pass `learning_"),
    (KERAS3 | CLIPS, r"Only one of clipnorm, clipvalue and global_clipnorm may be set with generation='keras3'"),
    ({"inner_optimizer": serialized(KERAS3), "dynamic": False}, r"`dynamic` must be True .* Set `loss_scale_factor`"),
    ({"inner_optimizer": serialized(KERAS3), "clipnorm": 1.0}, r"`clipnorm` must be left out of a Loss.* Set it in"),
    (scaled(scaled(serialized(TF_KERAS))), r"`inner_optimizer` must be Adam or AdamW. Received: another Loss.* Unwrap"),
    (scaled(serialized(TF_KERAS), **SCALING | {"dynamic": False}), r"`dynamic_growth_steps` must be None .* Received"),
    (older(TF_2_3 | {"loss_scale": 5}, "LossScaleOptimizer"), r"`loss_scale` must be a Fixed.* Received: loss_scale=5"),
    (TF_KERAS | {"epsilon": None}, r"`epsilon` must be a finite number"),
    ("adam", r"`config` must be a mapping, as .* Received: config='adam'"),
    ({"class_name": "Adam"}, r"`config` of a serialized optimizer must be a mapping. Received: config=None. Hand over"),
    (
        {"inner_optimizer": "adam"},
        r"`inner_optimizer` must be a serialized optimizer. Received: inner_optimizer='ad.*Hand",
    ),
    (older(TF_2_3 | {"loss_scale": {"config": {}}}, "LossScaleOptimizer"), r"`loss_scale` must be a Fixed.* Received"),
]
UNSAID = [
    ({"learning_rat": 0.1}, r"Received: learning_rat. Use `learning_rate`"),
    ({"decay": 0.1, "generation": "legacy"}, r"`generation` must be what a Keras 3 .* Received: .*InverseTimeDecay"),
    ({"use_ema": True, "generation": "tf_keras"}, r"`use_ema` must be what .* average starts elsewhere"),
    ({"adaptive_epsilon": True, "generation": "tf_keras"}, r"`adaptive_epsilon` must be left out"),
    (CLIPS | {"generation": "tf_keras"}, r"Only one of clipnorm, clipvalue"),
    ({"global_clipnorm": 1.1, "generation": "tf_keras"}, r"`global_clipnorm` must be .* rounds its reciprocal"),
    ({"mu_dtype": "bfloat16"}, r"`mu_dtype` must be .* Received: mu_dtype='bfloat16'. Leave it out"),
    ({"axis_name": "data"}, r"`axis_name` must be .* Received: axis_name=.data.. Leave it out: it says where"),
    ({"weight_decay_mask": True}, r"`weight_decay_mask` must be .* call `exclude_from_weight_decay`"),
    ({"learning_rate": lambda: 0.1}, r"`learning_rate` must be .* Use one of `optax_kadam.schedules`"),
    ({"beta_1": lambda step: 0.1}, r"`beta_1` must be .* knows numbers alone"),
]


@pytest.mark.parametrize(("config", "match"), UNREADABLE)
def test_what_cannot_be_honoured_is_refused(config, match):
    with pytest.raises((ValueError, TypeError), match=match):
        from_config(config)


@pytest.mark.parametrize(("arguments", "match"), UNSAID)
def test_what_keras_3_cannot_say_is_refused(arguments, match):
    with pytest.raises((ValueError, TypeError), match=match):
        to_config(**arguments)


def test_a_traced_number_is_refused():
    with pytest.raises(ValueError, match=r"`learning_rate` must be .* Call `to_config` outside `jax.jit`"):
        jax.jit(lambda rate: to_config(learning_rate=rate))(0.1)


@pytest.mark.parametrize("name", ["Nadam", "Lion", "Adamax", "Lamb"])
@keras_rules()
def test_the_arguments_of_another_optimizer_are_refused_by_its_name(name):
    keras = pytest.importorskip("keras")
    optimizer = getattr(keras.optimizers, name)()
    with pytest.raises(ValueError, match=f"must be that of an Adam. Received: name='{name.lower()}"):
        from_config(optimizer.get_config())
    adam = keras.optimizers.Adam(name=name.lower())
    from_config(keras.optimizers.serialize(adam))
