"""A training that may be killed at any moment and come back on other devices: a recipe, and what the tests run.

    python train.py --checkpoints DIR --write FILE.npz --mesh 2x4

Started again after a kill, it ends with the bits of one left alone: all that a step depends on is in the checkpoint
(the parameters, the whole state of the optimizer, the counters of the random streams) or follows from the step's number
(the batch). Orbax writes a checkpoint under another name and renames it when it is whole, so the latest one is whole.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import optax_kadam as ok


class Model(nnx.Module):
    def __init__(self, width, rngs):
        self.inner = nnx.Linear(16, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.outer = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.dropout(nnx.relu(self.norm(self.inner(x)))))


def transformation():
    schedule = ok.schedules.CosineDecay(0.01, decay_steps=20, warmup_target=0.03, warmup_steps=3)
    return ok.kadamw(
        schedule,
        amsgrad=True,
        global_clipnorm=0.5,
        use_ema=True,
        ema_overwrite_frequency=3,
        gradient_accumulation_steps=2,
    )


def initial(width, seed):
    model = Model(width, nnx.Rngs(seed))
    return nnx.split((model, nnx.Optimizer(model, transformation(), wrt=nnx.Param)))


def batch(step, seed):
    """Return the batch of a step, by its number alone, so that a training that comes back sees the same batches."""
    x = np.random.default_rng([seed, step]).normal(size=(32, 16)).astype(np.float32)
    return x, np.sin(3 * x[:, :3])


def with_shardings(abstract, mesh):
    """Divide the first axis of every array over `fsdp` where its size allows it, so moments like their parameters."""

    def place(leaf):
        divides = leaf.ndim and leaf.shape[0] % mesh.shape["fsdp"] == 0
        return leaf.update(sharding=NamedSharding(mesh, PartitionSpec("fsdp") if divides else PartitionSpec()))

    return jax.tree.map(place, abstract)


def check_fits(stored, abstract):
    """Raise if a stored leaf has another shape or dtype, and name it: Orbax would not, and casts dtypes."""
    found = {leaf.name: leaf for leaf in jax.tree.leaves(stored)}
    for path, leaf in jax.tree.leaves_with_path(abstract):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # Orbax stores the numbers in a key.
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        if name in found and (found[name].shape, found[name].dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"The checkpoint must hold {leaf.dtype}{list(leaf.shape)} at {name!r}. Received: {found[name].dtype}"
                f"{list(found[name].shape)}. Build the model and the optimizer as they were when it was saved."
            )


def train(directory, mesh, steps, width=64, seed=0):
    graph, abstract = jax.eval_shape(lambda: initial(width, seed))
    abstract = with_shardings(abstract, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    @jax.jit(donate_argnums=0, out_shardings=shardings)
    def train_step(state, x, y):
        model, optimizer = nnx.merge(graph, state)
        gradients = nnx.grad(lambda model: jnp.mean(optax.l2_loss(model(x), y)))(model)
        optimizer.update(model, gradients)
        return nnx.state((model, optimizer))

    def next_state(state, step):
        return train_step(state, *(place(array, rows) for array in batch(step, seed)))

    begin = jax.jit(lambda: initial(width, seed)[1], out_shardings=shardings)
    return go_on(directory, steps, abstract, begin, next_state)


def place(array, sharding):
    """Put an array that every process has on the devices of all of them."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def go_on(directory, steps, abstract, begin, next_state):
    """Return the state after `steps`, from the latest checkpoint on, or from what `begin()` gives."""
    options, handler = ocp.CheckpointManagerOptions(max_to_keep=2), ocp.StandardCheckpointHandler()
    with ocp.CheckpointManager(directory, options=options, item_handlers=handler) as manager:
        done = manager.latest_step() or 0
        if done:
            check_fits(manager.item_metadata(done).tree, abstract)
            state = manager.restore(done, args=ocp.args.StandardRestore(abstract))
        else:
            state = begin()
        for step in range(done, steps):
            state = next_state(state, step)
            manager.save(step + 1, args=ocp.args.StandardSave(state))  # It has copied the state, which may be donated.
            print(f"step {step + 1}", flush=True)
    return state


def mesh_of(shape):
    """Return the mesh of a shape, data x fsdp, as in "2x4"."""
    return jax.make_mesh(tuple(map(int, shape.split("x"))), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2)


def local(state):
    """Return every leaf by its path, put together from this process's own devices, which must hold all of it."""
    arrays = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        whole, seen = np.zeros(leaf.shape, leaf.dtype), np.zeros(leaf.shape, bool)
        for shard in leaf.addressable_shards:
            whole[shard.index], seen[shard.index] = shard.data, True
        assert seen.all(), path
        arrays[jax.tree_util.keystr(path, simple=True, separator=".")] = whole
    return arrays


def main(train=train):
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=pathlib.Path, required=True)
    parser.add_argument("--write", type=pathlib.Path, required=True)
    parser.add_argument("--mesh", required=True, help="data x fsdp")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    devices = np.prod([int(size) for size in arguments.mesh.split("x")])
    jax.config.update("jax_num_cpu_devices", int(devices) // arguments.processes)
    if arguments.processes > 1:
        address = f"127.0.0.1:{arguments.port}"
        bind = address if arguments.process == 0 else None
        jax.distributed.initialize(address, arguments.processes, arguments.process, coordinator_bind_address=bind)
    state = train(arguments.checkpoints, mesh_of(arguments.mesh), arguments.steps)
    np.savez(arguments.write, **local(state))


if __name__ == "__main__":
    main()
