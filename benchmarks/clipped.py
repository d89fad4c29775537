"""What each clip adds to a step of Adam: a norm reads the gradient once more, 8 arrays instead of 7."""

from functools import partial

import optax

import optax_kadam as ok
from benchmarks import _steps
from benchmarks._race import Session
from benchmarks.dense import trees

NORM, VALUE = 1.0, 0.01  # Well below those of the gradients.


def run(session: Session) -> None:
    """Measure the clips on one leaf and on a transformer."""
    txs = {
        "kadam": ok.kadam(),
        "kadam clipnorm": ok.kadam(clipnorm=NORM),
        "kadam global_clipnorm": ok.kadam(global_clipnorm=NORM),
        "kadam clipvalue": ok.kadam(clipvalue=VALUE),
        "optax.adam clipped": optax.chain(optax.clip_by_global_norm(NORM), optax.adam(1e-3)),
    }
    pairs = [("kadam clipnorm", "kadam"), ("kadam global_clipnorm", "kadam"), ("kadam clipvalue", "kadam")]
    pairs += [("kadam global_clipnorm", "optax.adam clipped")]
    for tree, shapes in trees(session).items():
        if tree == "ResNet-50":
            continue
        gradients = _steps.gradients(shapes)
        builders = {name: partial(_steps.optax_step, session, tx, gradients) for name, tx in txs.items()}
        session.race(tree, builders, pairs, needs=(3 * len(txs) + 4) * _steps.size_of(gradients))
