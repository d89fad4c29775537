"""A user's script with the public names as a user writes them; a strict type checker finds nothing wrong in it.

It is not run: `test_strict_script.py` has it checked.
"""

from typing import cast

import jax
import optax
from flax import nnx

import optax_kadam as ok

Params = dict[str, jax.Array]

schedule = ok.schedules.CosineDecay(1e-3, decay_steps=1000, warmup_target=1e-2, warmup_steps=100)
adam = ok.kadam(schedule, beta_2=0.99, clipnorm=1.0, use_ema=True, generation="tf_keras")
adamw: optax.GradientTransformation = ok.kadamw(lambda: 1e-3, weight_decay_mask={"kernel": True, "bias": False})
chain = optax.chain(ok.clip_by_global_norm(1.0), ok.scale_by_kadam(), optax.scale_by_learning_rate(schedule))
scaled = ok.dynamic_loss_scale(ok.kadam(lambda step: 0.1 / (1 + step), beta_1=lambda step: 1 - 1 / (step + 2)))
masked = ok.kadamw(optax.constant_schedule(1e-3), 0.01, weight_decay_mask=lambda params: matrices(params))


def matrices(params: optax.Params) -> optax.Params:
    def is_matrix(leaf: jax.Array) -> bool:
        return leaf.ndim == 2

    return jax.tree.map(is_matrix, params)


def loss_of(params: Params, images: jax.Array) -> jax.Array:
    return ((images @ params["kernel"] + params["bias"]) ** 2).mean()


def step(params: Params, state: optax.OptState, images: jax.Array) -> tuple[Params, optax.OptState, optax.Params]:
    gradients = cast(Params, jax.grad(loss_of)(params, images))
    updates, state = adam.update(gradients, state, params)
    state = optax.tree.set(state, learning_rate=3e-4)
    return cast(Params, optax.apply_updates(params, updates)), state, ok.averaged_params(state)


def state_over_devices(params: Params) -> optax.OptState:
    mesh = jax.make_mesh((2,), ("data",))
    return jax.device_put(adam.init(params), ok.zero1_shardings(adam, params, mesh))


def go_on_from_keras(params: Params) -> optax.GradientTransformation:
    training = ok.load_keras("model.keras")
    params, state = training.restore(params, rename={"m/dense": "dense"})
    statistics = training.fill({"mean": params["bias"]})
    mean: jax.Array = statistics["mean"]
    if training.mu is not None and training.generation == "keras3" and training.iterations > 100:
        print({path: moment.shape for path, moment in training.mu.items()}, mean.shape)
    ok.save_keras("more.keras", params, state, template="model.keras", non_trainable=statistics)
    config = ok.to_config(learning_rate=0.01, weight_decay=0.1)
    return ok.from_config(config, weight_decay_mask=lambda params: matrices(params)) or training.transformation()


def step_of_flax(model: nnx.Linear, images: jax.Array) -> nnx.Optimizer[nnx.Linear]:
    def loss_of_model(model: nnx.Linear, images: jax.Array) -> jax.Array:
        return (model(images) ** 2).mean()

    optimizer = nnx.Optimizer(model, ok.kadam(1e-3), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(loss_of_model)(model, images))
    return optimizer


def steps_of_rows(table: jax.Array, indices: jax.Array) -> tuple[jax.Array, optax.Updates, jax.Array]:
    loss, rows = ok.value_and_row_grad(lambda rows: (rows**2).sum())(table, indices)
    gradients = {"table": rows, "other": ok.RowUpdates(indices, rows.values)}
    params = {"table": table, "other": table}
    updates, _ = adam.update(gradients, adam.init(params), params)
    embeddings = ok.deferred_rows(1e-3, amsgrad=True)
    deferred = embeddings.init(table)
    deferred = embeddings.update(deferred, indices, embeddings.read(deferred, indices))
    values, deferred = embeddings.flush(deferred)
    return loss + values.sum(), updates, deferred.iterations
