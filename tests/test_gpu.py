"""XLA makes one kernel for a leaf of a step on an H100, and one for its norm; it compiles on a machine without a GPU.

`pytest -m gpu` runs these tests, with the extra gpu-check; `python -m tests.test_gpu` prints what they count. XLA's
`GpuTargetConfigProto` tells the compiler what it needs to know of the GPU.
"""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import optax_kadam as ok

from .hlo import Work, aliased, opcodes, work

pytestmark = pytest.mark.gpu

H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation" cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32 threads_per_block_limit: 1024
  threads_per_core_limit: 2048 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 l2_cache_size: 52428800
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3" dnn_version_info { major: 9 minor: 10 }
"""
LEAVES, ELEMENTS = 3, 2**22
ARRAY = 4 * ELEMENTS * LEAVES  # Bytes: an array as large as all leaves together.
# The step, the kernels that go over each leaf, and the arrays of its size that they read and write. Both are the least
# that the algorithm needs, but those of accumulation.
STEPS = {
    "adam": (lambda: ok.kadam(), 1, 7),
    "amsgrad": (lambda: ok.kadam(amsgrad=True), 1, 9),
    "adamw": (lambda: ok.kadamw(), 1, 7),
    "average": (lambda: ok.kadam(use_ema=True), 1, 9),
    "clipvalue": (lambda: ok.kadam(clipvalue=1.0), 1, 7),
    "clipnorm": (lambda: ok.kadam(clipnorm=1.0), 2, 8),
    "global_clipnorm": (lambda: ok.kadam(global_clipnorm=1.0), 2, 8),
    # XLA evaluates both branches at every call, and selects; collecting alone needs 3 arrays.
    "accumulation": (lambda: ok.kadam(gradient_accumulation_steps=8), 1, 9),
}
PEERS = {
    "adam": lambda: optax.adam(1e-3),
    "amsgrad": lambda: optax.amsgrad(1e-3),
    "global_clipnorm": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    "accumulation": lambda: optax.MultiSteps(optax.adam(1e-3), 8).gradient_transformation(),
}


@functools.cache
def device():
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise ModuleNotFoundError(
            "jax_cuda13_plugin must be installed. Received: none. Run `pip install -e '.[gpu-check]'`."
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # JAX would ask the driver, and there is none.
    return topologies.get_topology_desc("h100", platform="cuda", target_config=H100, topology="1x1x1").devices[0]


def compiled(tx: optax.GradientTransformation) -> Work:
    tx = optax.with_extra_args_support(tx)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    there = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device()))  # noqa: E731
    params = {f"leaf{index}": there(jax.ShapeDtypeStruct((ELEMENTS,), jnp.float32)) for index in range(LEAVES)}
    with jax.numpy_dtype_promotion("standard"):  # optax's own Adam mixes dtypes.
        state = jax.tree.map(there, jax.eval_shape(tx.init, params))
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    return work(lowered.compile().as_text() or "")


def over_leaves(done: Work) -> int:
    """Count the kernels that go over a whole leaf; those that finish a norm do not."""
    return sum(kernel >= 4 * ELEMENTS for kernel in done.kernels)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_one_kernel_for_a_leaf_and_one_for_its_norm(name: str):
    make, kernels, arrays = STEPS[name]
    step = compiled(make())
    assert over_leaves(step) == kernels * LEAVES
    assert arrays * ARRAY <= step.bytes <= arrays * ARRAY * 1.001  # Scalars are moved too.
    assert step.copies == 0


@pytest.mark.parametrize("name", PEERS)
def test_no_more_than_optax(name: str):
    step, peer = compiled(STEPS[name][0]()), compiled(PEERS[name]())
    assert len(step.kernels) <= len(peer.kernels)
    assert step.bytes <= peer.bytes * 1.001


def test_a_step_of_a_deferred_table_copies_no_table():
    table_of, rows = ok.deferred_rows(), 200_000
    there = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device()))  # noqa: E731

    def step(table, indices, targets):
        return table_of.update(table, indices, table_of.read(table, indices) - targets)

    table = jax.eval_shape(table_of.init, jax.ShapeDtypeStruct((rows, 64), jnp.float32))
    batch = jax.ShapeDtypeStruct((512,), jnp.int32), jax.ShapeDtypeStruct((512, 64), jnp.float32)
    compiled = jax.jit(step, donate_argnums=0).lower(*jax.tree.map(there, (table, *batch))).compile()
    text = compiled.as_text() or ""
    assert "copy" not in opcodes(text, rows)
    assert aliased(text) == len(jax.tree.leaves(table))
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * rows * 64 * 4


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    print("| step | kernels over each leaf | all kernels | arrays moved | copies |\n|---|---|---|---|---|")
    named = {name: make for name, (make, _, _) in STEPS.items()} | {
        f"optax: {name}": make for name, make in PEERS.items()
    }
    for name, make in named.items():
        done = compiled(make())
        moved = f"{done.bytes / ARRAY:.2f}"
        print(f"| {name} | {over_leaves(done) / LEAVES:g} | {len(done.kernels)} | {moved} | {done.copies} |")
