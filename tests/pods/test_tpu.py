"""The step of a sharded training, compiled by the real TPU compiler for slices that this machine does not have.

`libtpu` compiles ahead of time; what it made is inspected, not run: no buffer is copied, no collective or pass over
memory is more than the algorithm needs. `pytest -m tpu` runs these tests; `python -m tests.pods.test_tpu` prints what
they measure, as a table.
"""

import functools
import importlib.metadata
import importlib.util
import os
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_kadam as ok

from .. import hlo

pytestmark = pytest.mark.tpu


def transformer(layers=12, width=768):
    """Return the shapes of 196 leaves, of 111 million parameters."""
    norm = {"scale": (width,), "bias": (width,)}
    dense = lambda i, o: {"kernel": (i, o), "bias": (o,)}  # noqa: E731
    attention = {name: dense(width, width) for name in ("query", "key", "value", "out")}
    mlp = {"up": dense(width, 4 * width), "down": dense(4 * width, width)}
    layer = {"attention": attention, "mlp": mlp, "norm_1": norm, "norm_2": norm}
    return {"token": (32768, width), "position": (1024, width), "norm": norm, "layers": [layer] * layers}


def stacked(layers=24, width=2048):
    """Return the shapes of 6 leaves, of 1.3 billion parameters: only the smallest fits into the memory on the chip."""
    shapes = {"qkv": (3 * width,), "out": (width,), "up": (4 * width,), "down": (4 * width,), "norm": ()}
    return {"token": (32768, width)} | {name: (layers, width, *rest) for name, rest in shapes.items()}


TREES = {"12 layers": transformer, "stacked": stacked}
# The transformation, and the bytes that a step must move for a parameter: it reads g, m, v, p, and writes m, v, p.
STEPS = {
    "adam": (lambda: ok.kadam(1e-3), 7 * 4),
    "amsgrad": (lambda: ok.kadam(1e-3, amsgrad=True), 9 * 4),
    "adamw": (lambda: ok.kadamw(1e-3), 7 * 4),
    "ema": (lambda: ok.kadam(1e-3, use_ema=True), 9 * 4),
    "bfloat16 moments": (lambda: ok.kadam(1e-3, mu_dtype="bfloat16", nu_dtype="bfloat16"), 3 * 4 + 4 * 2),
    "clipnorm": (lambda: ok.kadam(1e-3, clipnorm=1.0), 7 * 4),
    "global_clipnorm": (lambda: ok.kadam(1e-3, global_clipnorm=1.0), 7 * 4),
}
CLIPS = ["clipnorm", "global_clipnorm"]
# The slice, how many of it, the tree, the step. A clip reads all gradients once more, 8/7 of the least, but for those
# that stay in the memory on the chip: fewer on v5p 2x2x2 and on two v5e 2x4, where 1.135 was measured.
CASES = [
    (topology, slices, tree, step)
    for topology, slices, tree, steps in (
        ("v5e:2x4", 1, "12 layers", ["adam", *CLIPS]),
        ("v5e:16x16", 1, "12 layers", ["adam", "global_clipnorm"]),
        ("v5p:2x2x4", 1, "12 layers", ["adam"]),
        ("v6e:2x4", 1, "12 layers", ["adam"]),
        ("v5e:4x4", 2, "12 layers", ["global_clipnorm"]),
        ("v5e:2x4", 1, "stacked", list(STEPS)),
        ("v5p:2x2x4", 1, "stacked", ["adam", "amsgrad", *CLIPS]),
        ("v6e:2x4", 1, "stacked", ["adam", "amsgrad", *CLIPS]),
        ("v5e:4x4", 2, "stacked", ["adam", "amsgrad", *CLIPS]),
    )
    for step in steps
]
ZERO1 = ("v5e:2x4", 1, "12 layers", "adam")


class Figures(NamedTuple):
    collectives: dict[str, int]
    aliased: int  # Of `results`: the parameters, the moments, the step count and the learning rate, without norms.
    results: int
    copies: int
    hbm: float  # Bytes read and written, as a multiple of those that must be.
    arguments: int  # Bytes of the arguments.
    beyond: int  # Bytes that are needed beside the arguments, some of them in the memory on the chip.
    seconds: float


def mesh_of(topology, slices):
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError("libtpu must be installed. Received: none. Run `pip install -e '.[tpu-check]'`.")
    # Without these, libtpu would ask a TPU for what it is, and refuse to be loaded by several processes.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-8"
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology, num_slices=slices)
    return Mesh(np.array(described.devices), ("data",))


def fsdp(mesh, leaf):
    """Divide the longest dimension over all devices."""
    spec = [None] * leaf.ndim
    if spec:
        spec[np.argmax(leaf.shape)] = "data"
    return NamedSharding(mesh, P(*spec))


def measure(topology, slices, tree, step, *, tx=None, donate=(1, 2), zero1=False):
    start, mesh = time.perf_counter(), mesh_of(topology, slices)
    make, bytes_per_parameter = STEPS[step]
    tx = tx or make()
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    params = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), TREES[tree](), is_leaf=is_shape)
    state = jax.eval_shape(tx.init, params)
    if zero1:
        shardings = jax.tree.map(lambda _: NamedSharding(mesh, P()), params), ok.zero1_shardings(tx, params, mesh)
    else:
        shardings = jax.tree.map(functools.partial(fsdp, mesh), (params, state))
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    params, state = jax.tree.map(place, (params, state), shardings)

    # With FSDP, shardings of the results are left to the compiler, as most trainings do.
    @functools.partial(jax.jit, donate_argnums=donate, out_shardings=shardings if zero1 else None)
    def update(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = update.lower(params, state, params).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text and memory
    norms = [norm for _, norm in optax.tree.get_all_with_path(state, "gradient_norm")]  # The old ones are not read.
    of_device = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params))
    return Figures(
        hlo.collectives(text),
        hlo.aliased(text),
        len(jax.tree.leaves((params, state))) - len(jax.tree.leaves(norms)),
        len(hlo.copies_to_hbm(text)),
        float(hlo.hbm_bytes(text) / (bytes_per_parameter * of_device)),
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        time.perf_counter() - start,
    )


@pytest.mark.parametrize(("topology", "slices", "tree", "step"), CASES)
def test_nothing_is_copied_gathered_or_read_again(topology, slices, tree, step):
    figures = measure(topology, slices, tree, step)
    assert figures.aliased == figures.results
    assert figures.copies == 0
    if step in CLIPS:  # Each slice sends its sum to the others in one transfer.
        between = {"send": 1} if slices > 1 else {}
        assert figures.collectives == {"all-reduce": 1} | between
        assert 1.0 < figures.hbm <= 1.13
    else:
        assert figures.collectives == {}
        assert figures.hbm == pytest.approx(1.0, abs=1e-3)
    assert figures.beyond <= (0.01 * figures.arguments if tree == "stacked" else 2**27)


def test_zero1_gathers_each_parameter():
    """Each of the 74 matrices is gathered by itself, the 122 vectors together; each result is copied to its place."""
    figures = measure(*ZERO1, zero1=True)
    assert figures.aliased == figures.results
    assert figures.collectives == {"all-gather": 86, "all-reduce": 1}
    assert figures.beyond < 4 * 111e6


@pytest.mark.parametrize(("width", "copies"), [(128, 0), (64, 6)])
def test_a_deferred_table_is_copied_unless_its_rows_fill_the_lanes(width, copies):
    """The compiler keeps rows of less than 128 numbers in another order, and turns three arrays there and back."""
    table_of, rows = ok.deferred_rows(), 1_000_000
    sharding = jax.sharding.SingleDeviceSharding(mesh_of("v5e:2x2", 1).devices[0])
    there = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731

    def step(table, indices, targets):
        return table_of.update(table, indices, table_of.read(table, indices) - targets)

    table = jax.eval_shape(table_of.init, jax.ShapeDtypeStruct((rows, width), jnp.float32))
    batch = jax.ShapeDtypeStruct((512,), jnp.int32), jax.ShapeDtypeStruct((512, width), jnp.float32)
    compiled = jax.jit(step, donate_argnums=0).lower(*jax.tree.map(there, (table, *batch))).compile()
    text = compiled.as_text() or ""
    assert hlo.shapes(text, "copy", "copy-start").count((rows, width)) == copies
    assert hlo.aliased(text) == len(jax.tree.leaves(table))


def keep_params():
    """Return a transformation whose state keeps the parameters as they were, which takes a copy of each."""
    return optax.GradientTransformation(lambda params: params, lambda updates, state, params: (updates, params))


def test_what_is_lost_or_added_is_seen():
    case = ("v5e:2x4", 1, "stacked", "clipnorm")
    assert measure(*case, donate=()).aliased == 0
    chained = optax.chain(ok.clip_by_norm(1.0), ok.clip_by_global_norm(1.0), ok.kadam(1e-3))
    figures = measure(*case, tx=chained)
    assert figures.collectives == {"all-reduce": 2}
    assert figures.hbm > 1.2  # The gradients are read a third time.
    assert measure(*case, tx=optax.chain(ok.kadam(1e-3), keep_params())).copies == 6


def print_row(topology, slices, tree, step, figures, hbm):
    where = topology.replace(":", " ") if slices == 1 else f"{slices} x {topology}".replace(":", " ")
    collectives = ", ".join(f"{count} {name}" for name, count in figures.collectives.items()) or "none"
    aliased, peak = f"{figures.aliased} of {figures.results}", 1 + figures.beyond / figures.arguments
    cells = (where, tree, step, collectives, aliased, figures.copies, hbm, f"{peak:.3f}", f"{figures.seconds:.0f}")
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def main():
    jax.config.update("jax_platforms", "cpu")
    print(f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}\n")
    print("| slice | tree | step | collectives | aliased | copies | HBM / ideal | peak / arguments | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        figures = measure(*case)
        print_row(*case, figures, f"{figures.hbm:.3f}")
    print_row(*ZERO1[:3], "adam, ZeRO-1", measure(*ZERO1, zero1=True), "")


if __name__ == "__main__":
    main()
