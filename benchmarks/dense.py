"""A dense step, against optax, Keras, PyTorch and the memory's own limit.

Adam reads the gradient, both moments and the parameter, and writes the last three: 7 arrays. AMSGrad has 9.
"""

from functools import partial

import jax
import optax

import optax_kadam as ok
from benchmarks import _steps
from benchmarks._race import Aim
from benchmarks._shapes import Shapes, one_leaf, resnet_50, transformer
from benchmarks._side_by_side import Session

LIMIT = "limit"  # This contender moves as many bytes as a step must, and does nothing else.
ADAM, AMSGRAD = 7, 9  # Arrays that a step moves.


def trees(session: Session) -> dict[str, Shapes]:
    """Return the parameters that are stepped."""
    if session.quick:
        return {"one leaf": one_leaf(10_000), "two leaves": {"kernel": (16, 100), "bias": (100,)}}
    return {"64M in one leaf": one_leaf(2**26), "ResNet-50": resnet_50(), "transformer": transformer()}


def run(session: Session) -> None:
    """Measure Adam and AMSGrad on each tree."""
    for tree, shapes in trees(session).items():
        gradients = _steps.gradients(shapes)
        size = _steps.size_of(gradients)
        for amsgrad, arrays in ((False, ADAM), (True, AMSGRAD)):
            kadam = partial(_steps.optax_step, session, ok.kadam(amsgrad=amsgrad), gradients)
            peer, tx = ("optax.amsgrad", optax.amsgrad(1e-3)) if amsgrad else ("optax.adam", optax.adam(1e-3))
            builders = {
                "kadam": kadam,
                peer: partial(_steps.optax_step, session, tx, gradients),
                "Keras": partial(_steps.keras_step, session, gradients, amsgrad=amsgrad),
                "torch fused": partial(_steps.torch_step, session, gradients, "fused", amsgrad=amsgrad),
                "torch foreach": partial(_steps.torch_step, session, gradients, "foreach", amsgrad=amsgrad),
                LIMIT: partial(_steps.limit, session, arrays * size),
            }
            on_gpu = jax.default_backend() == "gpu"
            aims = [
                Aim("kadam", peer, 1.0),
                Aim("kadam", "torch fused", 1.0 if on_gpu else None),
                Aim("kadam", LIMIT, 1 / 0.9 if on_gpu else None),
            ]
            # Five contenders have three or four arrays; the gradient, and what foreach puts aside, come to five more.
            needs = (5 * (4 if amsgrad else 3) + 5) * size
            title = f"{'AMSGrad' if amsgrad else 'Adam'}, {tree}"
            session.race(title, builders, (peer, LIMIT), tuple(aims), moves=arrays * size, needs=needs)
