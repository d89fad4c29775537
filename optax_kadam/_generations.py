"""What differs between Keras's three generations, on one page.

| | `"keras3"` | `"tf_keras"` | `"legacy"` |
|---|---|---|---|
| what it is | Keras 3 | TensorFlow 2.11 to 2.15, tf_keras | `OptimizerV2` of TensorFlow 2.0 to 2.10 |
| `1 - beta` | in double precision, rounded once | likewise | of the float32 beta |
| clips | one | `clipnorm`, else `global_clipnorm`, else `clipvalue` | `clipvalue`, then a norm |
| a clip of 0 | off | off | clips to zero |
| `1 / global_clipnorm` | in double precision | in float32 | in float32 |
| rows of a gradient | summed up, then clipped | clipped, then summed up | likewise |
| `epsilon=0` | 0 | 0 | 1e-7 |
| the average starts from | zeros | the initial parameters | there is none |
| a step skipped by a loss scale | is not counted | is counted; the scale stays above 1 | likewise |

Sources: `keras/src/optimizers` (Keras 3.15), `tf_keras/src/optimizers` and its `legacy` (2.21).
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

Generation = Literal["keras3", "tf_keras", "legacy"]
GENERATIONS: tuple[Generation, ...] = get_args(Generation)


class Rules(NamedTuple):
    """How one generation differs from the others; the table above says it in words."""

    float32_betas: bool
    clips_combine: bool
    float32_reciprocal: bool
    rows_are_summed_first: bool
    zero_epsilon_is_default: bool
    average_starts_from_params: bool
    counts_skipped_steps: bool


_RULES: dict[Generation, Rules] = {
    "keras3": Rules(False, False, False, True, False, False, False),
    "tf_keras": Rules(False, False, True, False, False, True, True),
    "legacy": Rules(True, True, True, False, True, True, True),
}

_KNOWN_TO: dict[str, tuple[Generation, ...]] = {
    "weight_decay": ("keras3", "tf_keras"),
    "use_ema": ("keras3", "tf_keras"),
    "loss_scale_factor": ("keras3",),
    "gradient_accumulation_steps": ("keras3",),
    "decay": ("legacy",),
    "adaptive_epsilon": ("tf_keras",),
}


def rules_of(generation: Generation) -> Rules:
    """Return the rules of a generation, or raise if there is none of this name."""
    if generation not in GENERATIONS:
        raise ValueError(
            f"`generation` must be one of {', '.join(map(repr, GENERATIONS))}. Received: generation={generation!r}."
        )
    return _RULES[generation]


def check_known(generation: Generation, **arguments: object) -> None:
    """Raise if one of the arguments is given, so not None, and this generation does not know it."""
    for name, value in arguments.items():
        if value is not None and generation not in _KNOWN_TO[name]:
            raise ValueError(
                f"`{name}` must be left out with generation={generation!r}, which does not know it. "
                f"Received: {name}={value!r}. It belongs to generation={' or '.join(map(repr, _KNOWN_TO[name]))}."
            )


def check_clips(generation: Generation, clips: Mapping[str, object]) -> None:
    """Raise if more clips are given than this generation combines."""
    alone = list(clips) if generation == "keras3" else [name for name in clips if name != "clipvalue"]
    if sum(clips[name] is not None for name in alone) > 1:
        raise ValueError(
            f"Only one of {', '.join(alone[:-1])} and {alone[-1]} may be set with generation={generation!r}. "
            f"Received: {', '.join(f'{name}={value}' for name, value in clips.items())}. Set the others to None."
        )
