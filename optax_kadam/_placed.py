"""Whether arrays lie where they are meant to."""

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from optax_kadam import _xla
from optax_kadam._gradients import Tree

_SHOWN = 3  # A message names so many leaves, and counts the others.


def check_placed(tree: object, shardings: object) -> None:
    """Raise if a leaf does not lie where `shardings` says: divided so, on these devices, in this kind of memory.

    Where an array lies is settled by the last `jit` that returned it. A state that was divided for ZeRO-1 stays whole
    if one `out_shardings` is forgotten, and parameters come back divided; both train to the same losses, and nothing
    tells but the memory and the time. So ask once after `init`, and once after the first step:

        check_placed((params, state), (whole, shardings))

    Nothing is computed and nothing is moved.

    Args:
      tree: arrays, or `jax.ShapeDtypeStruct`s that say how they are divided. Outside of `jit`: inside, a traced array
        lies nowhere yet.
      shardings: a tree of `jax.sharding.Sharding`s like `tree`, or a prefix of one, as `out_shardings` of `jax.jit` is.

    Raises:
      ValueError: if a leaf lies otherwise or nowhere, as an array of numpy does, or if `shardings` is no prefix of
        `tree`. The message names the first three such leaves, and counts them.
      TypeError: if `shardings` holds anything else than shardings.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec as P
      >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
      >>> device, host = NamedSharding(mesh, P()), NamedSharding(mesh, P(), memory_kind="pinned_host")
      >>> moments = {"kernel": jax.device_put(jnp.ones((3, 8)), host)}
      >>> check_placed(moments, host)
      >>> check_placed(jax.tree.map(lambda x: jax.device_put(x, device), moments), host)
      Traceback (most recent call last):
          ...
      ValueError: Each leaf of `tree` must lie as `shardings` says. Received: 1 of 1 otherwise: P() in 'device' instead
      of P() in 'pinned_host' at "['kernel']". Give `shardings` to `out_shardings` of the `jax.jit` that returns them,
      or move them: `jax.device_put(tree, shardings)`.
    """
    for path, sharding in jax.tree.leaves_with_path(shardings):
        if not isinstance(sharding, Sharding):
            raise TypeError(
                f"`shardings` must hold shardings. Received: {sharding!r} at {jax.tree_util.keystr(path)!r}. Make one: "
                "`NamedSharding(mesh, PartitionSpec(...))`."
            )
    try:
        wanted = jax.tree.leaves(jax.tree.broadcast(shardings, tree))
    except ValueError as error:
        raise ValueError(
            f"`shardings` must be a tree like `tree`, or a prefix of one. Received: another. {error}"
        ) from error
    leaves = jax.tree.leaves_with_path(tree)
    astray = [
        f"{_difference(leaf, sharding)} at {jax.tree_util.keystr(path)!r}"
        for (path, leaf), sharding in zip(leaves, wanted, strict=True)
        if not _lies(leaf, sharding)
    ]
    if astray:
        more = f"; and {len(astray) - _SHOWN} more" if len(astray) > _SHOWN else ""
        raise ValueError(
            f"Each leaf of `tree` must lie as `shardings` says. Received: {len(astray)} of {len(leaves)} otherwise: "
            f"{'; '.join(astray[:_SHOWN])}{more}. Give `shardings` to `out_shardings` of the `jax.jit` that returns "
            "them, or move them: `jax.device_put(tree, shardings)`."
        )


def _lies(leaf: Tree, sharding: Sharding) -> bool:
    """Return whether a leaf lies as `sharding` says; one that divides more dimensions than a leaf has fits none."""
    found, dimensions = getattr(leaf, "sharding", None), np.ndim(leaf)  # A traced array has none.
    if found is None or (isinstance(sharding, NamedSharding) and len(sharding.spec) > dimensions):
        return False
    return found.is_equivalent_to(sharding, dimensions)  # It compares the devices and the kind of memory, too.


def _difference(leaf: Tree, sharding: Sharding) -> str:
    found = getattr(leaf, "sharding", None)
    if found is None:
        kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}".removeprefix("builtins.")
        what = "a traced array" if _xla.is_traced(leaf) else kind
        return f"{what}, which lies nowhere, instead of {_short(sharding)}"
    places = _short(found), _short(sharding)
    return " instead of ".join(places if places[0] != places[1] else (repr(found), repr(sharding)))


def _short(sharding: Sharding) -> str:
    """Return a sharding without its mesh, which two that differ share mostly."""
    if not isinstance(sharding, NamedSharding):
        return repr(sharding)
    return f"{sharding.spec} in {sharding.memory_kind!r}"
