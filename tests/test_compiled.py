"""XLA's CPU compiler makes few kernels of a step, which move few bytes; neither depends on the machine's load."""

import pathlib
import re
from functools import cache

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_kadam as ok

from .hlo import Work, computations, shapes, work

pytestmark = pytest.mark.compiler

ROOT = pathlib.Path(__file__).parents[1]
LEAVES, ELEMENTS = 3, 100_000
ARRAY = 4 * ELEMENTS * LEAVES  # Bytes: an array as large as all leaves together.
LEARNING_RATE = 1e-3


def transformation(name: str) -> optax.GradientTransformation:
    clips = {
        "clipnorm": {"clipnorm": 1.0},
        "global_clipnorm": {"global_clipnorm": 1.0},
        "clipvalue": {"clipvalue": 1.0},
    }
    clipped = optax.clip_by_global_norm(1.0)
    return {
        "adam": lambda: ok.kadam(),
        "amsgrad": lambda: ok.kadam(amsgrad=True),
        "accumulation": lambda: ok.kadam(gradient_accumulation_steps=8),
        "optax.adam": lambda: optax.adam(LEARNING_RATE),
        "optax.amsgrad": lambda: optax.amsgrad(LEARNING_RATE),
        "optax.adam clipped": lambda: optax.chain(clipped, optax.adam(LEARNING_RATE)),
        "optax.amsgrad clipped": lambda: optax.chain(clipped, optax.amsgrad(LEARNING_RATE)),
        "optax.MultiSteps": lambda: optax.MultiSteps(optax.adam(LEARNING_RATE), 8).gradient_transformation(),
        **{f"adam {clip}": lambda given=given: ok.kadam(**given) for clip, given in clips.items()},
        **{f"amsgrad {clip}": lambda given=given: ok.kadam(amsgrad=True, **given) for clip, given in clips.items()},
    }[name]()


@cache
def compiled(name: str, keeps_norm: bool = True) -> str:
    tx = transformation(name)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = {f"leaf{index}": jax.ShapeDtypeStruct((ELEMENTS,), jnp.float32) for index in range(LEAVES)}
    with jax.numpy_dtype_promotion("standard"):  # optax's own Adam mixes dtypes.
        state = jax.eval_shape(tx.init, params)
        if not keeps_norm:  # A clip that is handed no norm keeps none.
            is_clip = lambda node: hasattr(node, "gradient_norm")  # noqa: E731
            state = jax.tree.map(lambda x: optax.EmptyState() if is_clip(x) else x, state, is_leaf=is_clip)
        return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile().as_text() or ""


def of(name: str, branch: int = 0) -> Work:
    return work(compiled(name), branch)


DOCUMENTED = re.findall(
    r"^\| `((?:ok|optax)\..*)` \| (\d+) \| (\d+) \|$", (ROOT / "docs" / "how-fast.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("name", "state", "besides"), DOCUMENTED)
def test_the_memory_of_a_step_is_what_the_documentation_says(name: str, state: str, besides: str):
    tx = eval(name, {"ok": ok, "optax": optax})
    params = [jax.ShapeDtypeStruct((1 << 16,), jnp.float32)] * LEAVES
    count = sum(leaf.size for leaf in params)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        kept = jax.eval_shape(tx.init, params)
        memory = jax.jit(step, donate_argnums=(0, 1)).lower(params, kept, params).compile().memory_analysis()
    bytes_kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    needed = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    assert [round(size / count, 2) for size in (bytes_kept, needed)] == [int(state), int(besides)]


def test_the_documentation_has_the_table_of_memory():
    assert len(DOCUMENTED) == 13


# The step, the most kernels for a leaf, and the most arrays of its size that they read and write. Adam has to move 7
# arrays, AMSGrad 9, and a norm reads the gradient once more.
@pytest.mark.parametrize(
    ("name", "kernels", "arrays"),
    [
        ("adam", 3, 10),
        ("amsgrad", 4, 13),
        ("adam clipvalue", 3, 10),
        ("adam clipnorm", 4, 11),
        ("adam global_clipnorm", 4, 11),
        ("amsgrad clipvalue", 4, 13),
        ("amsgrad clipnorm", 5, 14),
        ("amsgrad global_clipnorm", 5, 14),
    ],
)
def test_a_step_has_few_kernels_and_copies_nothing(name: str, kernels: int, arrays: int):
    step = of(name)
    assert len(step.kernels) <= kernels * LEAVES
    assert step.bytes <= arrays * ARRAY * 1.001  # Scalars are moved too.
    assert step.copies == 0
    ideal = 7 + 2 * name.startswith("amsgrad") + ("norm" in name)
    assert step.bytes >= ideal * ARRAY, "fewer bytes than a step must move: the count is wrong"


@pytest.mark.parametrize(
    "name", ["adam clipnorm", "adam global_clipnorm", "amsgrad clipnorm", "amsgrad global_clipnorm"]
)
def test_the_norm_of_a_clip_is_kept_at_no_further_read(name: str):
    kept, thrown_away = compiled(name), compiled(name, keeps_norm=False)
    assert work(kept) == work(thrown_away)
    results = [re.search(r"entry_computation_layout=\{.*->\((.*)\)\}", text) for text in (kept, thrown_away)]
    counts = [len(re.findall(r"f32\[\]", found[1])) for found in results if found]
    assert counts == [1 + (1 if "global" in name else LEAVES), 1]  # The learning rate is one.


def test_the_maximum_is_in_a_kernel_with_a_scalar():
    """Without a scalar, XLA's CPU compiler takes another emitter, which passes what it reads through the stack."""
    opcodes = [{one.opcode for one in kernel.values()} for kernel in computations(compiled("amsgrad"))]
    kernels = [kernel for kernel in opcodes if "maximum" in kernel]
    assert len(kernels) == LEAVES and all("broadcast" in kernel for kernel in kernels)


@pytest.mark.parametrize("algorithm", ["adam", "amsgrad"])
@pytest.mark.parametrize(("ours", "theirs"), [("", ""), (" clipnorm", " clipped"), (" global_clipnorm", " clipped")])
def test_no_more_kernels_and_bytes_than_optax(algorithm: str, ours: str, theirs: str):
    kadam, peer = of(algorithm + ours), of(f"optax.{algorithm}{theirs}")
    assert len(kadam.kernels) <= len(peer.kernels)
    assert kadam.bytes <= peer.bytes * 1.001


def test_a_call_that_accumulates_computes_nothing_of_adam():
    collecting, stepping, peer = of("accumulation"), of("accumulation", branch=1), of("optax.MultiSteps")
    assert "add" in collecting.operations
    assert not collecting.operations & {"sqrt", "divide", "multiply"}
    assert {"sqrt", "divide"} <= stepping.operations and {"sqrt", "divide"} <= peer.operations
    # Collecting needs 3 arrays; writing updates of zeros and adding them to the parameters takes 4. XLA writes the
    # zeros of one shape once, and copies them for the other leaves.
    assert collecting.bytes <= (7 + (LEAVES - 1) / LEAVES) * ARRAY * 1.001 and collecting.copies == LEAVES - 1
    assert stepping.bytes <= 19 * ARRAY * 1.001 and stepping.copies == 0
    assert collecting.bytes < peer.bytes / 3


@pytest.mark.parametrize(("amsgrad", "arrays"), [(False, 8), (True, 11)])
def test_a_gradient_of_rows_costs_one_pass_over_the_table(amsgrad: bool, arrays: int):
    tx, table = ok.kadam(amsgrad=amsgrad), jax.ShapeDtypeStruct((ELEMENTS, 8), jnp.float32)
    rows = ok.RowUpdates(jnp.arange(16), jnp.ones((16, 8)))

    def step(table, state, rows):
        updates, state = tx.update(rows, state, table)
        return optax.apply_updates(table, updates), state

    state = jax.eval_shape(tx.init, table)
    text = jax.jit(step, donate_argnums=(0, 1)).lower(table, state, rows).compile().as_text() or ""
    size = 4 * ELEMENTS * 8
    whole = [kernel for kernel in work(text).kernels if kernel > size / 2]
    # Two look-ups and two scatters touch only 16 rows, but are counted as if they went over the whole table.
    assert sum(whole) <= (arrays + 2 + 2 * 2) * size * 1.001
    assert (ELEMENTS, 8) not in shapes(text, "copy")
