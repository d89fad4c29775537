"""`suggest_rename`: the `rename` with which a training is restored into a tree whose names are not Keras's."""

from optax_kadam.keras_files._training import KerasTraining
from optax_kadam.keras_files.matching._match import suggest


def suggest_rename(training: KerasTraining, params: object) -> dict[str, str]:
    """Return a `rename` that brings each of Keras's trainable variables to a leaf of `params`, for you to read.

    Layers and parts of the tree are brought together by the names and shapes of what they hold. Where several are
    alike in these, a word that is in both names decides, and then the numbers in the names, in Keras's order. Where
    nothing decides, nothing is guessed. Read the pairs before you use them: two layers of equal shape that are
    exchanged are restored without an error.

    Args:
      training: what `load_keras` returned.
      params: a tree like `params` of `KerasTraining.restore`.

    Returns:
      A dict for `rename`: as few and as short pairs as say it, and none if the names are Keras's already.

    Raises:
      ValueError: if shapes, names and order do not tell all of it: the message holds what they tell, and the leaves
        between which they do not decide.
      TypeError: if `params` is a flat list, which has no names.

    Example:
      >>> import jax, optax_kadam as ok
      >>> training = ok.load_keras("tests/golden/files/k3j/adam.keras")
      >>> shapes = {"Embed_0": {"embedding": (11, 4)}, "norm": {"scale": (6,), "bias": (6,)},
      ...           "Dense_0": {"kernel": (20, 6), "bias": (6,)}, "Dense_1": {"kernel": (6, 3), "bias": (3,)}}
      >>> like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, "float32"), shapes, is_leaf=lambda x: type(x) is tuple)
      >>> rename = suggest_rename(training, like)
      >>> rename
      {'emb': 'Embed_0', 'd1': 'Dense_0', 'bn': 'norm', 'd2': 'Dense_1'}
      >>> params, state = training.restore(like, rename=rename)
    """
    shapes = {path: array.shape for path, array in training.variables.items()}
    return suggest(params, shapes, list(training.mu or ()))
