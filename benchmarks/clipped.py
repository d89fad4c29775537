"""What each clip adds to a step of Adam: the gradient must be read once more, 8 arrays instead of 7.

`optax.clip_by_global_norm` is beside optax's own step, to show what it adds there.
"""

from functools import partial

import optax

import optax_kadam as ok
from benchmarks import _steps
from benchmarks._race import Aim
from benchmarks._side_by_side import Session
from benchmarks.dense import ADAM, trees

NORM, VALUE = 1.0, 0.01  # Well below those of the gradients.
AT_MOST = 1.3


def run(session: Session) -> None:
    """Measure the clips on one leaf and on a transformer."""
    ours = {
        "kadam": ok.kadam(),
        "kadam clipnorm": ok.kadam(clipnorm=NORM),
        "kadam global_clipnorm": ok.kadam(global_clipnorm=NORM),
        "kadam clipvalue": ok.kadam(clipvalue=VALUE),
    }
    theirs = {
        "optax.adam": optax.adam(1e-3),
        "optax.adam clipped": optax.chain(optax.clip_by_global_norm(NORM), optax.adam(1e-3)),
    }
    aims = [Aim(name, "kadam", AT_MOST) for name in ours if name != "kadam"]
    aims += [Aim("kadam global_clipnorm", "optax.adam clipped", 1.0)]
    for tree, shapes in trees(session).items():
        if tree == "ResNet-50":
            continue
        gradients = _steps.gradients(shapes)
        size = _steps.size_of(gradients)
        builders = {name: partial(_steps.optax_step, session, tx, gradients) for name, tx in {**ours, **theirs}.items()}
        needs = (3 * len(builders) + 4) * size
        session.race(f"Adam, {tree}", builders, ("kadam", "optax.adam"), tuple(aims), moves=ADAM * size, needs=needs)
