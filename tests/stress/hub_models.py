"""Models of keras_hub and of Hugging Face, tiny: three steps of Keras's, then three more in Keras and here.

    python -m tests.stress.hub_models keras_hub       Keras 3 on JAX
    python -m tests.stress.hub_models transformers    tf_keras on TensorFlow

They need an environment of their own: `pip install keras-hub tensorflow-cpu jax optax google-crc32c`, and for the
second `pip install "transformers<5" tf_keras`. Both packages set attributes in any order, subclass Functional and nest
models. Each training is read from the live model and from its file, with `trainable=`; from a checkpoint, which names
its variables, without. The largest distance of a parameter after six steps is printed.
"""

import os
import sys
import tempfile

os.environ |= {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_kadam as ok

from ..helpers import ulp

KIND = sys.argv[1] if len(sys.argv) > 1 else ""
RNG = np.random.default_rng(0)
KERAS_HUB = {
    "GPT2CausalLM": ("GPT2Backbone", {"hidden_dim": 8, "intermediate_dim": 16, "num_heads": 2}, {}),
    "BertTextClassifier": (
        "BertBackbone",
        {"hidden_dim": 8, "intermediate_dim": 16, "num_heads": 2, "max_sequence_length": 8},
        {"num_classes": 3},
    ),
    "T5Backbone": ("T5Backbone", {"hidden_dim": 8, "intermediate_dim": 16, "num_heads": 2}, {}),
    "GemmaBackbone": (
        "GemmaBackbone",
        {"hidden_dim": 8, "intermediate_dim": 16, "num_query_heads": 2, "num_key_value_heads": 1, "head_dim": 4},
        {},
    ),
}
_BERT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TRANSFORMERS = {
    "TFBertForSequenceClassification": ("BertConfig", _BERT),
    "TFGPT2LMHeadModel": ("GPT2Config", {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}),
    "TFT5ForConditionalGeneration": (
        "T5Config",
        {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    ),
    "TFDistilBertForMaskedLM": ("DistilBertConfig", {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16}),
}


def keras_hub_models():
    """Yield each model, a function that takes a step of Keras's and returns the gradients, and its files."""
    import keras_hub  # pyright: ignore[reportMissingImports]: see above.

    for name, (backbone, sizes, more) in KERAS_HUB.items():
        made = getattr(keras_hub.models, backbone)(vocabulary_size=11, num_layers=2, **sizes)
        if name != backbone:
            made = getattr(keras_hub.models, name)(preprocessor=None, backbone=made, **more)
        for has_lora in (False, True) if name == "GPT2CausalLM" else (False,):
            if has_lora:
                made.backbone.enable_lora(4)
            made.compile(optimizer="adam", loss="mse")
            yield f"{name}{' with LoRA' * has_lora}", made, made.optimizer.apply, [] if has_lora else [".keras"]


def transformers_models():
    """Yield the same of Hugging Face."""
    import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]: see above.
    import tf_keras  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    for name, (config, sizes) in TRANSFORMERS.items():
        model = getattr(transformers, name)(getattr(transformers, config)(vocab_size=11, **sizes))
        ids = np.arange(12).reshape(2, 6) % 11
        model({"input_ids": ids} | ({"decoder_input_ids": ids} if "T5" in name else {}))
        model.compile(optimizer=tf_keras.optimizers.Adam())

        def apply(gradients, variables, model=model):
            model.optimizer.apply_gradients(zip(map(tf.constant, gradients), variables, strict=True))

        yield name, model, apply, [".weights.h5", ""]


def saved(model, folder, ending):
    """Save a model, and return what `load_keras` reads."""
    path, trainable = f"{folder}/x{ending}", model.trainable_variables
    if ending == ".keras":
        model.save(path)
        return ok.load_keras(path, trainable=trainable)
    config = model.optimizer.get_config()
    if ending:
        model.save_weights(path)
        return ok.load_keras(path, config=config, trainable=trainable)
    import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]: see above.

    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(path)
    return ok.load_keras(path, config=config)


def main() -> None:
    for name, model, apply, endings in {"keras_hub": keras_hub_models, "transformers": transformers_models}[KIND]():
        variables = model.trainable_variables
        model.optimizer.build(variables)
        gradients = [[RNG.normal(size=v.shape).astype("f4") for v in variables] for _ in range(6)]
        for gradient in gradients[:3]:
            apply(gradient, variables)
        trainings = {"live": ok.KerasTraining.from_model(model)}
        with tempfile.TemporaryDirectory() as folder:
            trainings |= {ending or "checkpoint": saved(model, folder, ending) for ending in endings}
        for gradient in gradients[3:]:
            apply(gradient, variables)
        for how, training in trainings.items():
            tx = training.transformation()
            params, state = training.restore([training.variables[path] for path in training.mu or ()])
            for gradient in gradients[3:]:
                updates, state = tx.update(list(map(jnp.asarray, gradient)), state, params)
                params = optax.apply_updates(params, updates)
            distances = [ulp(param, np.asarray(v)) for param, v in zip(params, variables, strict=True)]
            print(f"{name:32} {how:12} {training.order:6} {max(distances)} ULP", flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
