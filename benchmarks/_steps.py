"""The steps of ours and of the peers, each on the same gradients, and what the memory itself needs."""

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._race import Contender, Session
from benchmarks._shapes import Shapes

Gradients = dict[str, np.ndarray]
_PIECE = 2**26  # So many elements are swept at a time, more than any cache holds.


def gradients(shapes: Shapes) -> Gradients:
    """Return gradients as a network's last layers have them."""
    rng = np.random.default_rng(0)
    return {name: 0.01 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def size_of(tree: Any) -> int:
    """Return the bytes of all arrays, or of all shapes in float32."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def apply(tx: optax.GradientTransformation) -> Callable[[Any, Any], Any]:
    """Return the step of parameters and the state of `tx`, to be jitted."""
    transformation = optax.with_extra_args_support(tx)

    def step(state: Any, gradients: Any) -> Any:
        params, opt_state = state
        updates, opt_state = transformation.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def start(tx: optax.GradientTransformation, gradients: Any) -> Any:
    """Return parameters and the state of `tx`."""
    params = jax.tree.map(lambda g: jnp.full(g.shape, 0.1), gradients)
    return params, tx.init(params)


def optax_step(session: Session, tx: optax.GradientTransformation, gradients: Any) -> Contender:
    """Return the contender that takes steps of an optax transformation, ours or optax's."""
    return session.jitted(apply(tx), start(tx, gradients), jax.tree.map(jnp.asarray, gradients))


def keras_step(session: Session, gradients: Gradients, **arguments: Any) -> Contender | None:
    """Return the contender that takes Keras's own step, as its `fit` does on JAX."""
    if not (keras := session.peer("keras")):
        return None
    state, apply = keras_optimizer(keras, [jnp.full(g.shape, 0.1) for g in gradients.values()], **arguments)
    return session.jitted(apply, state, [jnp.asarray(g) for g in gradients.values()])


def keras_optimizer(keras: Any, params: list[jax.Array], **arguments: Any) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Return parameters and the state of Keras's optimizer, and its step."""
    optimizer = keras.optimizers.Adam(**arguments)
    variables = [keras.Variable(param) for param in params]
    optimizer.build(variables)

    def step(state: Any, gradients: Any) -> Any:
        params, slots = state
        return optimizer.stateless_apply(slots, gradients, params)

    # The arrays are taken out of the variables, which hold nothing once these are donated.
    return ([v.value for v in variables], [v.value for v in optimizer.variables]), step


def torch_step(session: Session, gradients: Gradients, kind: str, **arguments: Any) -> Contender | None:
    """Return the contender that takes PyTorch's step, on the GPU where JAX is on one."""
    if not (torch := session.peer("torch")) or not (device := torch_device(session, torch)):
        return None
    params = []
    for g in gradients.values():
        params.append(torch.full(g.shape, 0.1, device=device, requires_grad=True))
        params[-1].grad = torch.from_numpy(g).to(device)
    optimizer = torch.optim.Adam(params, **{kind: True}, **arguments)
    return session.timed(lambda: (optimizer.step(), synchronize(torch, device)))


def torch_device(session: Session, torch: Any) -> str | None:
    """Return the device that JAX is on, as torch calls it."""
    if jax.default_backend() == "cpu":
        return "cpu"
    if jax.default_backend() == "gpu" and torch.cuda.is_available():
        return "cuda"
    session.note(f"torch is left out: it does not see the {jax.default_backend()}")
    return None


def synchronize(torch: Any, device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def limit(session: Session, size: int) -> Contender:
    """Return the contender that does nothing but move `size` bytes, half of them read and half written.

    On a GPU it copies an array. On a CPU, whose cores must fetch or bypass what they write elsewhere, numbers change
    sign in place, on all cores: as in a step, what is written was read.
    """
    elements = size // 8
    if jax.default_backend() != "cpu":
        copy, source = jax.jit(jnp.copy), jnp.ones(elements)
        return session.timed(lambda: jax.block_until_ready(copy(source)))
    threads = cores()
    array, pool = np.ones(min(elements, _PIECE), np.float32), concurrent.futures.ThreadPoolExecutor(threads)

    def part(thread: int) -> None:
        for left in range(elements, 0, -len(array)):
            start, stop = (min(left, len(array)) * side // threads for side in (thread, thread + 1))
            np.negative(array[start:stop], out=array[start:stop])

    return session.timed(lambda: list(pool.map(part, range(threads))))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
