"""`python -m optax_kadam replay` hands recorded gradients to the transformation, and compares what it makes of them."""

import pathlib
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_kadam._gradients import RowUpdates
from optax_kadam.commands._inspect import optimizer_text
from optax_kadam.config._parse import parse
from optax_kadam.keras_files._restore import SLOTS, get_all
from optax_kadam.keras_files.comparing._comparison import fitting
from optax_kadam.keras_files.comparing._distance import Distance, distance, plain_array
from optax_kadam.keras_files.comparing._recording import Gradient, Recording, read_recording

_WIDTH = 80
# As a share of the movement, what TensorFlow's other order of a sum, or another formula for rows, makes of one step.
_ROUNDING = 1e-5


class Apart(NamedTuple):
    """An array that differs after a step."""

    step: int
    name: str
    distance: Distance


class Replay(NamedTuple):
    """How the transformation went: the arrays that differ from the recorded ones, in the order of the steps."""

    differing: list[Apart]

    def is_within(self, ulp: float | None, share: float | None) -> bool:
        """Return whether what differs does so within the bounds that are given; without any, nothing may differ."""
        has_bound = ulp is not None or share is not None
        return all(
            has_bound and (ulp is None or apart.ulp <= ulp) and (share is None or apart.share <= share)
            for _, _, apart in self.differing
        )

    def __str__(self) -> str:
        if not self.differing:
            return "the same bits in all steps"
        first, furthest = self.differing[0], self.furthest
        return f"first differs {_shown(first)}" + f"\n{'':11}furthest {_shown(furthest)}" * (furthest is not first)

    @property
    def furthest(self) -> Apart:
        """What differs by the largest share of the movement."""
        return max(self.differing, key=lambda apart: (apart.distance.share, apart.distance.ulp))


def replay(path: pathlib.Path, ulp: float | None = None, share: float | None = None) -> tuple[str, bool]:
    """Return what replaying the recording at `path` shows, in words, and whether the optimizer agrees.

    Args:
      path: the path of a file that `record` wrote.
      ulp: the largest distance of weights and slots at which it agrees, in units in the last place; None is no bound.
      share: the largest distance as a share of the movement since the start. Without any bound, all bits must agree.

    Raises:
      ValueError: if the file is no recording, or its configuration cannot be honoured.
      OSError: if the file cannot be read.
    """
    recording = read_recording(path)
    ways = {"op by op": replayed(recording, is_jitted=False), "jitted": replayed(recording, is_jitted=True)}
    count = len(recording.steps)
    lines = [
        f"recording  {count} step{'s' * (count > 1)} of {recording.keras}, {len(recording.start.variables)} variables",
        *textwrap.wrap(f"optimizer  {optimizer_text(recording.start.config)}", _WIDTH, subsequent_indent=" " * 11),
        "",
    ]
    lines += [f"{way:9}  {result}" for way, result in ways.items()]
    agreeing = [way for way, result in ways.items() if result.is_within(ulp, share)]
    exact = [way for way in agreeing if not ways[way].differing]
    nearest = min((result.furthest.distance.share for result in ways.values() if result.differing), default=0.0)
    if exact:
        verdict = f"The optimizer agrees to the bit, {exact[0]}: look at the model."
    elif agreeing:
        verdict = f"The optimizer agrees within the bounds, {agreeing[0]}: look at the model."
    elif nearest <= _ROUNDING:
        verdict = f"The optimizer differs by rounding, {nearest:.1e} of the movement: look at the model."
    else:
        verdict = "The optimizer differs."
    return "\n".join([*lines, "", verdict]), bool(agreeing)


def _shown(apart: Apart) -> str:
    """Return what differs, in words: the name on a line of its own if it is long."""
    ulp, share, _ = apart.distance
    return (
        f"at step {apart.step}: {ulp} ULP, {share:.1e} of the movement,\n{'':11}in {fitting(apart.name, _WIDTH - 14)}"
    )


def replayed(recording: Recording, *, is_jitted: bool) -> Replay:
    """Return how far the transformation comes from the recorded weights, and at the end from the recorded slots."""
    arrays = recording.start.variables
    with jax.enable_x64(any(array.dtype.itemsize == 8 for array in arrays.values())):
        tx = parse(recording.start.config or {}).transformation(
            weight_decay_mask=[recording.decayed[p] for p in arrays]
        )
        params, state = _begun(recording, tx)

        def step(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        step = jax.jit(step) if is_jitted else step
        found: list[Apart] = []
        for number, taken in enumerate(recording.steps, 1):
            if taken.learning_rate is not None:
                state = optax.tree.set(state, learning_rate=taken.learning_rate)
            gradients = [_gradient(taken.gradients[path]) for path in arrays]
            params, state = step(gradients, state, params)
            for path, leaf in zip(arrays, params, strict=True):
                found.append(Apart(number, path, distance(plain_array(leaf), taken.weights[path], arrays[path])))
        found += _slots(recording, state)
    return Replay([apart for apart in found if apart.distance.ulp])


def _begun(recording: Recording, tx: optax.GradientTransformation) -> tuple[list[jax.Array], Any]:
    """Return the parameters and the state before the first step."""
    training = recording.start
    leaves = [jnp.asarray(array) for array in training.variables.values()]
    return (leaves, tx.init(leaves)) if training.mu is None else training.restore(leaves, tx=tx)


def _gradient(recorded: Gradient) -> Any:
    """Return a recorded gradient as the transformation takes it."""
    if isinstance(recorded, tuple):
        return RowUpdates(*recorded)
    return None if recorded is None else jnp.asarray(recorded)


def _slots(recording: Recording, state: Any) -> list[Apart]:
    """Return how far the slots and the count are from those at the end of the recording."""
    count, paths = len(recording.steps), list(recording.start.variables)
    found: list[Apart] = []
    for slot in SLOTS:
        kept, begun = getattr(recording.end, slot) or {}, getattr(recording.start, slot) or {}
        ours = dict(zip(paths, get_all(state, slot)[0] if kept else (), strict=bool(kept)))
        found += [
            Apart(count, f"{slot} of {path}", distance(plain_array(ours[path]), array, begun.get(path)))
            for path, array in kept.items()
        ]
    for name in ("iterations", "step_counter", "dynamic_scale"):
        number = getattr(recording.end, name)
        if number is not None and (ours := get_all(state, name)):
            found.append(Apart(count, name, distance(np.asarray(ours[0]), np.asarray(number, ours[0].dtype))))
    return found
