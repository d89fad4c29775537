"""The variables and sublayers that Keras's own layers make, in their order."""

# The names of the trainable variables of a layer, and of its other variables, in the order of the file.
_AFFINE = (("kernel", "bias"), ())
_CENTERED = (("gamma", "beta"), ())
_RECURRENT = (("kernel", "recurrent_kernel", "bias"), ())
_SEPARABLE = (("depthwise_kernel", "pointwise_kernel", "bias"), ())
_SCALED = (("scale",), ())
VARIABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(("dense", "einsum_dense", "depthwise_conv1d", "depthwise_conv2d"), _AFFINE),
    **dict.fromkeys((f"conv{n}d{kind}" for n in (1, 2, 3) for kind in ("", "_transpose")), _AFFINE),
    **dict.fromkeys(("separable_conv1d", "separable_conv2d"), _SEPARABLE),
    **dict.fromkeys(("lstm_cell", "gru_cell", "simple_rnn_cell", "conv_lstm_cell"), _RECURRENT),
    **dict.fromkeys(("layer_normalization", "group_normalization"), _CENTERED),
    **dict.fromkeys(("rms_normalization", "attention", "additive_attention"), _SCALED),
    "batch_normalization": (("gamma", "beta"), ("moving_mean", "moving_variance")),
    "embedding": (("embeddings",), ()),
    "normalization": ((), ("mean", "variance", "count")),
    "p_re_lu": (("alpha",), ()),
}
# Arguments of layers that leave variables out if they are False.
SWITCHES = {"use_bias": ("bias",), "scale": ("gamma",), "center": ("beta",)}
# Models that list their layers. Everything else that Keras has is a layer.
MODELS = ("functional", "sequential")
# Layers that consist of layers: their attributes, in the order in which Keras makes the layers in them.
ATTENTION = {"query_dense": "query", "key_dense": "key", "value_dense": "value", "output_dense": "attention_output"}
_RECURRENT_LAYERS = ("rnn", "lstm", "gru", "simple_rnn", "conv_lstm1d", "conv_lstm2d", "conv_lstm3d")
SUBLAYERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("multi_head_attention", "grouped_query_attention"), tuple(ATTENTION)),
    **dict.fromkeys(("time_distributed", "spectral_normalization"), ("layer",)),
    **dict.fromkeys(_RECURRENT_LAYERS, ("cell",)),
    "bidirectional": ("forward_layer", "backward_layer"),
    "stacked_rnn_cells": ("cells",),
}
# Classes that are registered under another name than their own.
ALIASES = {"group_query_attention": "grouped_query_attention"}
