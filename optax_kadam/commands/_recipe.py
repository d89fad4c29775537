"""How a training goes on from the checkpoint that `convert` writes: the text of its help, whose lines the tests run."""

RECIPE = """\
In Flax NNX, a model whose modules are called as Keras's layers (otherwise use
--rename) goes on from OUT, an absolute path, so:

  import optax_kadam as ok, orbax.checkpoint as ocp
  from flax import nnx

  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  statistics = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
  checkpointer = ocp.StandardCheckpointer()
  tx = ok.from_config(checkpointer.metadata(OUT).custom_metadata["optimizer"])
  target = {"params": params, "opt_state": tx.init(params)}
  target["non_trainable"] = statistics
  restored = checkpointer.restore(OUT, target)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  nnx.update(model, restored["params"], restored["non_trainable"])
  nnx.update(optimizer.opt_state, nnx.state(restored["opt_state"]))

In Flax Linen, params is variables["params"], statistics is
variables["batch_stats"], or {} where the model has none, and restored is what
the training goes on from. What Keras did not train is in non_trainable, frozen
layers too. If FILE holds no optimizer configuration and --config gives none,
make tx with the arguments of Keras's optimizer.
"""
