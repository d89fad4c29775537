"""Masks by name: which parameters are meant is said by regular expressions that are searched in their paths."""

import re
from collections.abc import Callable

import jax
import optax

from optax_kadam._flax import is_wrapper
from optax_kadam._gradients import Tree, is_rows

_SHOWN = 30  # Paths in a message.
_EXPRESSIONS = "`except_names` must be given regular expressions that are not empty."


def except_names(*names: str) -> Callable[[Tree], Tree]:
    r"""Return a mask that is False for the parameters whose path one of the regular expressions is found in.

    It takes the place of Keras's `exclude_from_weight_decay(var_names=[...])`, as the `weight_decay_mask` of `kadam`
    and `kadamw`, and is a mask for `optax.masked` and `optax.adamw` too. A path is the keys that lead to the parameter,
    joined by a slash: `encoder/LayerNorm_0/scale`, for a dict, a list, a Flax NNX `State`, a tree of Linen, a module
    of Equinox or a NamedTuple. `re.search` looks for each expression anywhere in it: `"bias"` is found in
    `bias_head/kernel` too, and `"(^|/)bias$"` is not. Keras 3 on JAX searches `variable.name`, which is the last part
    alone; Keras 3 on TensorFlow and tf_keras search the whole path.

    An expression that is found in no path is refused, as a misspelt name would leave everything decayed. A parameter
    that `optax.masked` or `optax.partition` hides, or that is None, counts as found, as its path is left. Where a label
    of `optax.partition` stands for a whole subtree, the paths in it are gone: label each parameter, by
    `jax.tree.broadcast(labels, params)`.

    Args:
      *names: regular expressions of Python's `re`, at least one; None of them is empty.

    Returns:
      A function from a tree of parameters to a tree of bools: True is decayed.

    Raises:
      TypeError: if one of `names` is not a string.
      ValueError: if there are no `names`, or one is no regular expression; from the function, if one is not found.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
      >>> except_names("bias$", "norm")(params)
      {'dense': {'bias': False, 'kernel': True}, 'norm': {'scale': False}}
    """
    patterns = [_pattern(name) for name in names]
    if not patterns:
        raise ValueError(
            "At least one expression must be given to `except_names`. Received: none. Leave `weight_decay_mask` out to "
            "decay everything."
        )

    def mask(params: Tree) -> Tree:
        leaves, treedef = jax.tree.flatten_with_path(params, is_leaf=_is_named)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        if not all(_is_hidden(leaf) for _, leaf in leaves):  # `optax.tree.map_params` asks with an empty tree.
            _check_found(patterns, paths)
        kept = [not any(pattern.search(path) for pattern in patterns) for path in paths]
        bools = [leaf if _is_hidden(leaf) else keeps for (_, leaf), keeps in zip(leaves, kept, strict=True)]
        return jax.tree.unflatten(treedef, bools)

    mask.__name__ = mask.__qualname__ = f"except_names({', '.join(map(repr, names))})"
    return mask


def _pattern(name: object) -> re.Pattern[str]:
    if not isinstance(name, str):
        raise TypeError(
            f"`except_names` must be given strings. Received: {name!r}. "
            "Write except_names('bias', 'scale'), without a list; for parameters themselves, hand over a tree of bools."
        )
    if not name:
        raise ValueError(f"{_EXPRESSIONS} Received: ''. Leave it out to decay everything.")
    try:
        return re.compile(name)
    except re.error as error:
        raise ValueError(f"{_EXPRESSIONS} Received: {name!r}: {error}. `re.escape` makes one of any text.") from error


def _check_found(patterns: list[re.Pattern[str]], paths: list[str]) -> None:
    """Raise if one of the expressions is found in none of the paths."""
    if paths == [""]:
        raise ValueError(
            "`except_names` must be given a tree whose parameters have paths. Received: one array alone. With "
            "`optax.inject_hyperparams`, which takes a function for a schedule, name it: "
            'static_args="weight_decay_mask".'
        )
    for pattern in patterns:
        if not any(map(pattern.search, paths)):
            more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
            raise ValueError(
                f"Each expression of `except_names` must be found in the path of a parameter. Received: "
                f"{pattern.pattern!r}. The paths are {', '.join(paths[:_SHOWN])}{more}. If the label "
                "of an `optax.partition` hides it, label each parameter: `jax.tree.broadcast(labels, params)`."
            )


def _is_named(node: object) -> bool:
    """Return whether the path of a node is the name of a parameter, although the node is no leaf of the tree."""
    return _is_hidden(node) or is_rows(node) or is_wrapper(node)


def _is_hidden(node: object) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)
