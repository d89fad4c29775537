"""Moments in the memory of the host: what the compilers for an H100 and for TPUs make of the steps that fetch them.

`pytest -m gpu` and `pytest -m tpu` run what compiles for them, `python -m tests.pods.test_streaming` prints it as a
table, for whichever of the extras gpu-check and tpu-check is installed. docs/recipes/zero1.md shows both steps.
"""

import functools
import importlib.util
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_kadam as ok

from .. import hlo
from ..test_gpu import device
from . import test_tpu
from .meshes import LEAST, furthest, mesh_of, tree

STEPS = ("on the device", "all at once", "streamed", "streamed, first layer first")


def streamed_update(tx, gradients, state, params, order, on_device, in_host):
    """Update one group of parameters after another: the moments of the next are fetched once these are sent back."""
    done, params, state = None, dict(params), dict(state)
    for name in order:
        gradient, moments = gradients[name], state[name]
        if done is not None:
            gradient, moments, _ = jax.lax.optimization_barrier((gradient, moments, done))
        updates, moments = tx.update(gradient, jax.device_put(moments, on_device[name]), params[name])
        params[name] = optax.apply_updates(params[name], updates)
        state[name] = done = jax.device_put(moments, in_host[name])
    return params, state


def shardings_of(tx, params, mesh, step):
    """Return where the state lies during a step and between steps: as a whole, or group by group where it streams."""
    kinds = ("device", "device" if step == "on the device" else "pinned_host")
    if not step.startswith("streamed"):
        return [ok.zero1_shardings(tx, params, mesh, memory_kind=kind) for kind in kinds]
    return [{n: ok.zero1_shardings(tx, p, mesh, memory_kind=kind) for n, p in params.items()} for kind in kinds]


def init_of(tx, step):
    return (lambda params: {n: tx.init(p) for n, p in params.items()}) if step.startswith("streamed") else tx.init


def step_of(tx, step, on_device, in_host, gradients_of):
    def take(params, state, x):
        gradients = gradients_of(params, x)
        if step.startswith("streamed"):
            order = sorted(params, reverse=step == "streamed")  # The last layer has its gradient first.
            return streamed_update(tx, gradients, state, params, order, on_device, in_host)
        updates, state = tx.update(gradients, jax.device_put(state, on_device), params)
        return optax.apply_updates(params, updates), state

    return take


@pytest.mark.compiler
@pytest.mark.parametrize("step", STEPS)
def test_the_bits_are_those_of_the_plain_step(step):
    tx, mesh = ok.kadamw(0.01), mesh_of({"data": 8})
    whole = NamedSharding(mesh, P())

    def numbers(seed):
        return {n: x for n, x in tree(seed).items() if n != "scale"}

    def trained(step, init, on_device, in_host):
        params, gradients = jax.device_put(numbers(0), whole), jax.device_put(numbers(1), whole)
        take = step_of(tx, step, on_device, in_host, lambda params, gradients: gradients)
        take = jax.jit(take, donate_argnums=(0, 1), out_shardings=(whole, in_host))
        state = jax.jit(init, out_shardings=in_host)(params)
        for _ in range(3):
            params, state = take(params, state, gradients)
            ok.check_placed((params, state), (whole, in_host))
        return params

    found = trained(step, init_of(tx, step), *shardings_of(tx, numbers(0), mesh, step))
    expected = trained("all at once", tx.init, whole, whole)
    assert furthest(found, expected) <= LEAST


class Figures(NamedTuple):
    device: float  # MiB that a device needs in all: arguments, results that are no arguments, and what lies between.
    host: float  # MiB of the host, for each device.
    copies: int  # Copies that are begun, and waited for later.
    aliased: int
    results: int


def layers(mesh, count, width, inner):
    whole = NamedSharding(mesh, P())
    shapes = {"up": (width, inner), "down": (inner, width)}
    layer = {n: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole) for n, shape in shapes.items()}
    return {f"layer{i:02}": layer for i in range(count)}


def gradients_of(params, x):
    """Return the gradients of a residual network that evaluates each layer anew on the way back."""

    @jax.checkpoint
    def layer(layer, x):
        return x + jax.nn.gelu(x @ layer["up"]) @ layer["down"]

    def loss(params, x):
        return jnp.mean(functools.reduce(lambda x, name: layer(params[name], x), sorted(params), x) ** 2)

    return jax.grad(loss)(params, x)


def measure(target, step, trains, sizes):
    """Return the figures of a training step, or of an update alone, for one H100 or for eight TPUs v5e."""
    tx = ok.kadam()
    mesh = test_tpu.mesh_of("v5e:2x4", 1) if target == "tpu" else AbstractMesh((1,), ("data",), (AxisType.Auto,))
    *shape, batch = sizes
    params = layers(mesh, *shape)
    on_device, in_host = shardings_of(tx, params, mesh, step)

    def place(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(place, jax.eval_shape(init_of(tx, step), params), in_host)
    x = jax.ShapeDtypeStruct((batch, shape[1]), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    take = step_of(tx, step, on_device, in_host, gradients_of if trains else lambda params, gradients: gradients)
    out = jax.tree.map(lambda leaf: leaf.sharding, params), in_host
    traced = jax.jit(take, donate_argnums=(0, 1), out_shardings=out).trace(params, state, x if trains else params)
    if target == "tpu":
        compiled = traced.lower().compile()
        text, memory = compiled.as_text(), compiled.memory_analysis()
    else:
        text, memory = compile_for_h100(traced.lower(lowering_platforms=("cuda",)))
    assert text and memory
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Figures(
        (needed + memory.temp_size_in_bytes) / 2**20,
        memory.host_argument_size_in_bytes / 2**20,
        len(re.findall(r" copy-start\(", text)),
        hlo.aliased(text),
        len(jax.tree.leaves((params, state))),
    )


def compile_for_h100(lowered):
    """Compile what was lowered for an abstract mesh of one device.

    A `NamedSharding` over the described GPU drops its memory kind, as that has no memories; over an abstract mesh it
    keeps it. `lowered.compile(device_assignment=...)` then ends this process, as it loads what it has compiled. So the
    client is asked to compile only.
    """
    from jaxlib import xla_client

    options = xla_client.CompileOptions()
    options.executable_build_options.use_shardy_partitioner = True
    module, gpus = lowered.compiler_ir("stablehlo"), xla_client.DeviceList((device(),))
    compiled = device().client.compile(module, gpus, options)
    return compiled.hlo_modules()[0].to_string(), compiled.get_compiled_memory_stats()


# The number of layers, their width, their inner width, and the batch.
SMALL, LARGE = (12, 1024, 4096, 1024), (12, 2048, 8192, 8192)


@pytest.mark.gpu
@pytest.mark.parametrize("trains", [False, True], ids=["update", "training step"])
def test_an_h100_needs_less_only_if_the_moments_are_streamed(trains):
    """XLA fetches all moments before it does anything else, unless what it has sent back comes first."""
    figures = {step: measure("gpu", step, trains, SMALL) for step in STEPS}
    moments = 2 * 12 * 2 * 1024 * 4096 * 4 / 2**20
    for step, of in figures.items():
        assert of.aliased == of.results
        assert of.host == (0 if step == "on the device" else moments)
        assert of.copies == (0 if step == "on the device" else 4 * 24)  # Two moments of each array, there and back.
    there, at_once, streamed, wrong = (figures[step].device for step in STEPS)
    assert at_once > 0.95 * there
    assert streamed < there - 0.75 * moments
    # In the other order the gradients wait for the first layer's, which comes last.
    assert wrong > 1.5 * streamed if trains else wrong == streamed


@pytest.mark.gpu
def test_a_memory_that_would_be_forgotten_is_refused():
    described = jax.sharding.Mesh(np.array([device()]), ("data",))
    with pytest.raises(ValueError, match="of which these devices say nothing. Use a `jax.sharding.AbstractMesh`."):
        ok.zero1_shardings(ok.kadam(), {"kernel": jnp.ones((8, 8))}, described, memory_kind="pinned_host")


@pytest.mark.tpu
def test_tpus_keep_the_moments_in_the_host_in_place():
    figures = {step: measure("tpu", step, False, SMALL) for step in STEPS[:3]}
    moments = 2 * 12 * 2 * 1024 * 4096 * 4 / 2**20 / 8
    for step, of in figures.items():
        assert of.aliased == of.results
        assert of.host == (0 if step == "on the device" else moments)
    there, at_once, streamed = (figures[step].device for step in STEPS[:3])
    assert at_once > 0.95 * there
    assert streamed < there


def main():
    jax.config.update("jax_platforms", "cpu")
    print("| device | what | the moments | MiB on a device | MiB in its host | copies |\n|---|---|---|---|---|---|")
    installed = {"gpu": "jax_cuda13_plugin", "tpu": "libtpu"}
    for target in [name for name, package in installed.items() if importlib.util.find_spec(package)]:
        for trains in (False, True):
            for step in STEPS:
                of = measure(target, step, trains, LARGE)
                cells = (target, "training step" if trains else "update", step, f"{of.device:.0f}", f"{of.host:.0f}")
                print("|", " | ".join((*cells, str(of.copies))), "|", flush=True)


if __name__ == "__main__":
    main()
