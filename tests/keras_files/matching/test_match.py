"""Which leaf is which of Keras's variables, what `rename` and `skip` make of it, and what is refused."""

import random

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok


def training_of(shapes, **others):
    rng = np.random.default_rng(0)
    arrays = {path: rng.normal(size=shape).astype("f4") for path, shape in shapes.items()}
    slots = {name: {path: array * by for path, array in arrays.items()} for name, by in (("mu", 2), ("nu", 3))}
    return ok.KerasTraining("keras3", None, 7, 0.1, arrays, **slots, **others)


def tree_of(shapes):
    return jax.tree.map(lambda shape: jnp.zeros(shape), shapes, is_leaf=lambda x: type(x) is tuple)


MODEL = {"m/block_0/dense/kernel": (2, 3), "m/block_0/dense/bias": (3,), "m/dense/kernel": (3, 4), "m/head/w": (4,)}
NESTED = {
    "a layer and what is inside": {"block_0": "blocks/0", "dense": "mlp", "m/dense": "out", "head/w": "head"},
    "a longer key before a shorter": {"block_0/dense": "blocks/0/mlp", "dense": "out", "head/w": "head"},
    "whole paths": {"m/block_0": "blocks/1", "m/block_0/dense": "blocks/0/mlp", "m/dense": "m/out", "m/head/w": "head"},
    "a part that is dropped": {"block_0/dense": "blocks/0/mlp", "m/dense": "out", "head": "", "w": "head"},
}


@pytest.mark.parametrize("rename", NESTED)
def test_all_keys_that_are_in_a_path_apply(rename):
    training = training_of(MODEL)
    params = tree_of({"blocks": [{"mlp": {"kernel": (2, 3), "bias": (3,)}}], "out": {"kernel": (3, 4)}, "head": (4,)})
    restored, state = training.restore(params, rename=NESTED[rename])
    mu = optax.tree.get(state, "mu")
    assert np.array_equal(restored["blocks"][0]["mlp"]["kernel"], training.variables["m/block_0/dense/kernel"])
    assert np.array_equal(mu["out"]["kernel"], training.mu["m/dense/kernel"])
    assert np.array_equal(mu["head"], training.mu["m/head/w"])


def test_a_key_that_is_in_no_path_is_refused():
    params = tree_of({"dense": {"kernel": (3, 4)}})
    with pytest.raises(
        ValueError, match=r"`rename` must name parts of Keras's paths. Received: 'dens', 'x/dense'. The p"
    ):
        training_of({"dense/kernel": (3, 4)}).restore(params, rename={"dens": "a", "dense": "dense", "x/dense": "b"})


@pytest.mark.parametrize(
    "rename", [["dense"], "dense", {"dense": 1}, {1: "dense"}, {"dense": {}}, {"dense": {"a": "b"}}]
)
def test_a_rename_of_another_kind_is_refused(rename):
    with pytest.raises(TypeError, match="`rename` must .*Received: "):
        training_of({"dense/kernel": (3, 4)}).restore(tree_of({"dense": {"kernel": (3, 4)}}), rename=rename)


def test_the_message_says_all_of_it_and_proposes_a_rename():
    names = [f"layer_{i}" for i in range(9)]
    training = training_of({f"{name}/kernel": (i + 1, 3) for i, name in enumerate(names)})
    params = tree_of({f"Dense_{i}": {"kernel": (i + 1, 3)} for i in range(9)})
    with pytest.raises(ValueError) as raised:
        training.restore(params)
    message = str(raised.value)
    assert all(f"'{name}/kernel'" in message for name in names) and all(f"'{p}/kernel'" in message for p in params)
    proposed = eval(message.partition("rename=")[2].removesuffix("."))  # It is there to be pasted.
    restored, _ = training.restore(params, rename=proposed)
    assert np.array_equal(restored["Dense_8"]["kernel"], training.variables["layer_8/kernel"])


def test_the_message_names_what_it_cannot_tell_apart():
    training = training_of({"dense/kernel": (3, 4), "dense_1/kernel": (3, 4), "dense_2/kernel": (2, 4)})
    params = tree_of({"q": {"kernel": (3, 4)}, "k": {"kernel": (3, 4)}, "out": {"kernel": (2, 4)}})
    with pytest.raises(
        ValueError, match=r"rename=\{'dense_2': 'out'\}; 'dense' may be 'k' or 'q'; 'dense_1' may be 'k' or"
    ):
        training.restore(params)


# --- Conversions.


def test_a_conversion_is_applied_to_weights_and_slots():
    training = training_of({"a/kernel": (3, 3), "a/bias": (3,), "b/gates": (2, 8)})
    params = tree_of({"a": {"w": (3, 3), "bias": (3,)}, "b": {"one": (2, 4), "two": (4, 2)}})
    halves = {"one": ok.conversions.block(0, of=2), "two": lambda gates: gates[:, 4:].T}
    restored, state = training.restore(params, rename={"kernel": {"w": np.transpose}, "gates": halves})
    for tree, arrays in ((restored, training.variables), (optax.tree.get(state, "nu"), training.nu)):
        assert np.array_equal(tree["a"]["w"], arrays["a/kernel"].T)
        assert np.array_equal(np.hstack([tree["b"]["one"], tree["b"]["two"].T]), arrays["b/gates"])


BAD_CONVERSIONS = {
    "computes": {"w": lambda kernel: kernel * 2},
    "repeats": {"w": lambda kernel: np.concatenate([kernel[:1], kernel[:1], kernel[1:2]])},
    "leaves out": {"w": lambda kernel: kernel[:2]},
}


@pytest.mark.parametrize("name", BAD_CONVERSIONS)
def test_a_conversion_that_does_more_than_move_numbers_is_refused(name):
    params = tree_of({"a": {"w": (3, 3)}})
    with pytest.raises(ValueError, match="Conversions must take each number .*Received: those of 'a/kernel'"):
        training_of({"a/kernel": (3, 3)}).restore(params, rename={"kernel": BAD_CONVERSIONS[name]})


def test_a_conversion_that_is_for_another_array_is_refused():
    params = tree_of({"fc": {"kernel": (3, 2), "bias": (3,)}})
    with pytest.raises(ValueError, match=r"A conversion must take an array .*Received: .* for 'a/bias' of shape \[3\]"):
        swapped = {"a": {"fc": lambda array: array.swapaxes(0, 1)}}
        training_of({"a/kernel": (2, 3), "a/bias": (3,)}).restore(params, rename=swapped)


def test_a_part_without_a_leaf_is_refused():
    lstm = {"lstm/lstm_cell/kernel": (2, 12), "lstm/lstm_cell/recurrent_kernel": (3, 12)}
    gates = {f"{side}{gate}": {"kernel": (size, 3)} for side, size in (("i", 2), ("h", 3)) for gate in "ifgo"}
    del gates["hg"]
    with pytest.raises(ValueError, match="no leaf 'lstm/hg/kernel' for a part of 'lstm/lstm_cell/recurrent_kernel'"):
        training_of(lstm).restore(tree_of({"lstm": gates}))


KERNEL = {"dense/kernel": (3, 3)}
UNKNOWN_AXES = {
    "a weight that is square": (KERNEL, {"dense": {"weight": (3, 3)}}, None),
    "a kernel renamed to weight": (KERNEL, {"dense": {"weight": (3, 3)}}, {"kernel": "weight"}),
    "a convolution": ({"c/kernel": (3, 3, 3, 3)}, {"c": {"weight": (3, 3, 3, 3)}}, None),
    "a transposed convolution": (
        {"up_transpose/kernel": (2, 2, 4, 4)},
        {"up_transpose": {"kernel": (2, 2, 4, 4)}},
        None,
    ),
    "one that is called up": ({"b/up_1/kernel": (2, 4, 4)}, {"x": {"kernel": (2, 4, 4)}}, {"b/up_1": "x"}),
    "one that its leaf tells": (
        {"up/kernel": (2, 4, 4)},
        {"ConvTranspose_0": {"kernel": (2, 4, 4)}},
        "ConvTranspose_0",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN_AXES)
def test_a_square_kernel_that_may_be_transposed_is_refused(name):
    shapes, tree, rename = UNKNOWN_AXES[name]
    rename = {"up": rename} if isinstance(rename, str) else rename
    training, params = training_of(shapes), tree_of(tree)
    with pytest.raises(
        ValueError, match="It must be known how a leaf holds the axes .*Received: .* Say which with `ren"
    ):
        training.restore(params, rename=rename)
    [(layer, names)], [variable] = tree.items(), shapes
    [leaf] = names
    if rename is None:
        with pytest.raises(ValueError, match=r"It must be known how .* The rest is rename=\{\}"):
            ok.suggest_rename(training, params)
    other = ok.conversions.out_first if leaf == "weight" else ok.conversions.transposed_conv
    for conversion in (ok.conversions.unchanged, other):
        restored, _ = training.restore(params, rename={variable: {f"{layer}/{leaf}": conversion}})
        assert np.array_equal(restored[layer][leaf], conversion(training.variables[variable]))


def test_a_kernel_of_attention_is_no_convolution_s():
    shapes = {"up/query/kernel": (4, 4, 4), "x/conv/kernel": (2, 4, 4), "x/kernel": (2, 4, 3)}
    tree = {"up": {"query": {"kernel": (4, 4, 4)}}, "x": {"conv": {"kernel": (2, 4, 4)}, "kernel": (2, 4, 3)}}
    restored, _ = training_of(shapes).restore(tree_of(tree))
    assert np.array_equal(restored["up"]["query"]["kernel"], training_of(shapes).variables["up/query/kernel"])


class Own(eqx.Module):
    weight: jax.Array


def test_a_weight_is_transposed_where_its_shape_or_its_class_says_so():
    training = training_of({"dense/kernel": (3, 3), "other/kernel": (2, 5)})
    params = {"dense": eqx.nn.Linear(3, 3, use_bias=False, key=jax.random.key(0)), "other": Own(jnp.zeros((5, 2)))}
    restored, _ = training.restore(params)
    assert np.array_equal(restored["dense"].weight, training.variables["dense/kernel"].T)
    assert np.array_equal(restored["other"].weight, training.variables["other/kernel"].T)
    restored, _ = training.restore(params | {"other": Own(jnp.zeros((2, 5)))})
    assert np.array_equal(restored["other"].weight, training.variables["other/kernel"])
    with pytest.raises(ValueError, match="It must be known how a leaf holds the axes"):  # A class of the user's own.
        training.restore(params | {"dense": Own(jnp.zeros((3, 3)))})


def test_axes_of_length_one_are_as_in_the_tree():
    training = training_of({"conv/bias": (4,), "p_re_lu/alpha": (1, 1, 4)})
    restored, _ = training.restore(tree_of({"conv": {"bias": (4, 1, 1)}, "p_re_lu": {"negative_slope": (4,)}}))
    assert np.array_equal(restored["conv"]["bias"][:, 0, 0], training.variables["conv/bias"])
    assert np.array_equal(restored["p_re_lu"]["negative_slope"], training.variables["p_re_lu/alpha"][0, 0])


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="Each leaf must have a path of its own. Received: 'a/kernel' twice"):
        training_of({"a/kernel": (2,)}).restore({"params": {"a": {"kernel": jnp.ones(2)}}, "a/kernel": jnp.ones(2)})


# --- skip.

TRAINED = {"m/body/kernel": (2, 3), "m/table/embeddings": (9, 2), "m/head/kernel": (3, 4), "m/head/bias": (4,)}


def test_what_is_skipped_keeps_its_value_and_its_moments_begin_at_zero():
    training = training_of(TRAINED, average=dict(training_of(TRAINED).variables))
    params = tree_of({"body": {"kernel": (2, 3)}, "head": {"kernel": (3, 7)}, "adapter": {"kernel": (3, 3)}})
    params = jax.tree.map(lambda leaf: leaf + 5, params)
    restored, state = training.restore(params, skip=["head", "adapter/kernel", "m/table"])
    assert np.array_equal(restored["body"]["kernel"], training.variables["m/body/kernel"])
    for name in ("head", "adapter"):
        assert restored[name]["kernel"] is params[name]["kernel"]
        assert not optax.tree.get(state, "mu")[name]["kernel"].any()
        assert not optax.tree.get(state, "nu")[name]["kernel"].any()
        assert np.array_equal(optax.tree.get(state, "average")[name]["kernel"], params[name]["kernel"])
    assert optax.tree.get(state, "iterations") == 7


def test_a_variable_is_skipped_by_what_it_is_called_here_too():
    params = tree_of({"body": {"kernel": (2, 3)}, "out": {"kernel": (3, 7)}})
    training = training_of({path: shape for path, shape in TRAINED.items() if "table" not in path})
    restored, _ = training.restore(params, rename={"head": "out"}, skip=("out",))
    assert restored["out"]["kernel"] is params["out"]["kernel"]


def test_what_cannot_be_skipped_is_refused():
    training, params = training_of({"m/head/kernel": (3, 4)}), tree_of({"head": {"kernel": (3, 4)}})
    for skip in ("hea", "head/kern", "kernel"):
        with pytest.raises(
            ValueError, match=f"`skip` must name leaves or .*Received: '{skip}'. The leaves are head/ker"
        ):
            training.restore(params, skip=[skip])
    for skip in ("head", None, [1]):
        with pytest.raises(TypeError, match="`skip` must be a list of paths. Received: skip="):
            training.restore(params, skip=skip)
    with pytest.raises(
        ValueError, match="A list must hold .* Hand a tree with names over, of which `skip` can name some"
    ):
        training.restore([jnp.zeros((3, 4))], skip=["head"])
    struct = {"head": {"kernel": jax.ShapeDtypeStruct((3, 4), jnp.float32)}}
    with pytest.raises(
        ValueError, match="A leaf in `skip` must be an array, as it stays. Received: ShapeDtypeStruct at"
    ):
        training.restore(struct, skip=["head"])


# --- suggest_rename.

W = {"w": (1,)}  # Else the name of the one layer would be that of the model.
SUGGESTED = {
    "nothing": ({"m/dense/kernel": (2, 3)}, {"dense": {"kernel": (2, 3)}}, {}),
    "numbers": (
        {f"dense{n}/kernel": (3, 3) for n in ("", *(f"_{i}" for i in range(1, 12)))},
        {f"Dense_{i}": {"kernel": (3, 3)} for i in range(12)},
        {f"dense{f'_{i}' if i else ''}": f"Dense_{i}" for i in range(12)},
    ),
    "blocks": (
        {
            f"t/block_{i}/{name}/kernel": (3, 3)
            for i in range(2)
            for name in ("attention/query", "attention/key", "ffn")
        },
        {"blocks": [{"attention": {n: {"kernel": (3, 3)} for n in ("query", "key")}, "mlp": {"kernel": (3, 3)}}] * 2},
        {
            "block_0": "blocks/0",
            "block_1": "blocks/1",
            "block_0/ffn": "blocks/0/mlp",
            "block_1/ffn": "blocks/1/mlp",
        },
    ),
    "words": (
        {"layer_normalization/gamma": (3,), "group_normalization/gamma": (3,)},
        {"gnorm": {"group": {"scale": (3,)}, "layer": {"scale": (3,)}}},
        {"layer_normalization": "gnorm/layer", "group_normalization": "gnorm/group"},
    ),
    "an LSTM": (
        {"lstm/lstm_cell/kernel": (2, 12), "lstm/lstm_cell/recurrent_kernel": (3, 12), "lstm/lstm_cell/bias": (12,)}
        | W,
        {"w": (1,), "cell": {"weight_ih": (12, 2), "weight_hh": (12, 3), "bias": (12,)}},
        {"lstm/lstm_cell": "cell"},
    ),
    "variables": (
        {"dense/kernel": (3, 5), "dense/bias": (5,)} | W,
        {"w": (1,), "out": {"w": (3, 5), "b": (5,)}},
        {"dense/kernel": "out/w", "dense/bias": "out/b"},
    ),
    "a name that is part of another": (
        {"dense/kernel": (3, 3), "block/dense/kernel": (2, 3)},
        {"out": {"kernel": (3, 3)}, "block": {"dense": {"kernel": (2, 3)}}},
        {"dense": "out", "block/dense": "block/dense"},
    ),
}


@pytest.mark.parametrize("name", SUGGESTED)
def test_a_rename_is_suggested(name):
    shapes, tree, rename = SUGGESTED[name]
    training, params = training_of(shapes), tree_of(tree)
    found = ok.suggest_rename(training, params)
    assert found == rename
    training.restore(params, rename=found)


NOT_TOLD = {
    "no word in common": ({"dense/kernel": (3, 3), "dense_1/kernel": (3, 3)}, {"q": (3, 3), "k": (3, 3)}),
    "no number": ({"dense/kernel": (3, 3), "dense_1/kernel": (3, 3)}, {"up": (3, 3), "down": (3, 3)}),
    "words beside numbers": ({"mean/kernel": (3, 3), "log_var/kernel": (3, 3)}, {"d_0": (3, 3), "d_1": (3, 3)}),
    "numbers against the order": ({"dense_1/kernel": (3, 3), "dense/kernel": (3, 3)}, {"d_0": (3, 3), "d_1": (3, 3)}),
    "a square kernel of another name": ({"dense/kernel": (3, 3)}, {"out": {"w": (3, 3)}}),
    "no leaf": ({"dense/kernel": (3, 4), "dense/bias": (4,)}, {"out": (3, 4)}),
    "a word that both share": (
        {"query_up/kernel": (3, 3), "query_down/kernel": (3, 3)},
        {"query_a": (3, 3), "query_b": (3, 3)},
    ),
}


def test_nothing_is_suggested_for_a_list():
    with pytest.raises(TypeError, match="`params` must be a tree with names. Received: params=list of arrays"):
        ok.suggest_rename(training_of({"a/kernel": (3,)}), [jnp.zeros(3)])


@pytest.mark.parametrize("name", NOT_TOLD)
def test_nothing_is_guessed(name):
    shapes, tree = NOT_TOLD[name]
    params = tree_of({layer: {"kernel": held} if isinstance(held, tuple) else held for layer, held in tree.items()})
    with pytest.raises(ValueError, match="Shapes, names and order must tell which .*Received: .*Write a `rename`"):
        ok.suggest_rename(training_of(shapes), params)


WORDS = {
    "dense": ["mlp", "linear"],
    "norm": ["ln", "n"],
    "query": ["query", "q"],
    "key": ["key", "k"],
    "up": ["up", "w1"],
}
SHAPES = {"norm": (4,), "up": (4, 8)}


@pytest.mark.parametrize("seed", range(40))
def test_no_suggestion_is_wrong(seed):
    """Over models of random names, of which most can be told and some cannot."""
    draw = random.Random(seed)
    ours, theirs = draw.choice(["block_{}/{}", "block_{}_{}", "b{}.{}"]), draw.choice(["blocks/{}/{}", "layer{}_{}"])
    here = {name: draw.choice([name, *words]) for name, words in draw.sample(list(WORDS.items()), draw.randint(1, 5))}
    shapes, flat, truth = {"w": (1,)}, {"w": jnp.zeros(1)}, {"w": "w"}
    for i in range(draw.randint(1, 11)):
        for name, word in here.items():
            place, shape = f"{theirs.format(i, word)}/kernel", SHAPES.get(name, (4, 4))
            truth[place] = f"{ours.format(i, name)}/kernel"
            shapes[truth[place]], flat[place] = shape, jnp.zeros(shape)
    training = training_of(shapes)
    try:
        rename = ok.suggest_rename(training, flat)
    except ValueError:
        return
    restored, _ = training.restore(flat, rename=rename)
    assert all(np.array_equal(leaf, training.variables[truth[place]]) for place, leaf in restored.items())
