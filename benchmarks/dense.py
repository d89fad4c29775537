"""A dense step, against optax, Keras, PyTorch and the memory's own limit.

Adam reads the gradient, both moments and the parameter, and writes the last three: 7 arrays. AMSGrad has 9.
"""

from functools import partial

import optax

import optax_kadam as ok
from benchmarks import _steps
from benchmarks._race import Session
from benchmarks._shapes import Shapes, one_leaf, resnet_50, transformer

LIMIT = "the limit"  # This contender moves as many bytes as a step must, and does nothing else.
ITSELF = "itself again"  # A second copy of the same program on other arrays: what the machine makes of no difference.


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
        for amsgrad, arrays in ((False, 7), (True, 9)):
            kadam = partial(_steps.optax_step, session, ok.kadam(amsgrad=amsgrad), gradients)
            peer, tx = ("optax.amsgrad", optax.amsgrad(1e-3)) if amsgrad else ("optax.adam", optax.adam(1e-3))
            peers = {
                peer: partial(_steps.optax_step, session, tx, gradients),
                "Keras": partial(_steps.keras_step, session, gradients, amsgrad=amsgrad),
                "torch fused": partial(_steps.torch_step, session, gradients, "fused", amsgrad=amsgrad),
                "torch foreach": partial(_steps.torch_step, session, gradients, "foreach", amsgrad=amsgrad),
                LIMIT: partial(_steps.limit, session, arrays * size),
                ITSELF: kadam,
            }
            # Six contenders have three or four arrays; the gradient, and what foreach puts aside, come to five more.
            needs = (6 * (4 if amsgrad else 3) + 5) * size
            case = f"{'AMSGrad' if amsgrad else 'Adam'}, {tree}"
            session.race(case, {"kadam": kadam, **peers}, [("kadam", name) for name in peers], needs=needs)
