"""A whole training step of a Flax transformer on a small batch.

The parameters are large beside the batch, as in fine-tuning.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import optax_kadam as ok
from benchmarks import _steps
from benchmarks._race import Contender, Session

BATCH, TOKENS = 2, 64
GRADIENTS = "forward and backward"


class Block(nnx.Module):
    """Attention and two dense layers, each after a normalization."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(max(1, width // 64), width, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Return what the next block reads."""
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    """A small language model."""

    def __init__(self, layers: int, width: int, vocabulary: int, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(TOKENS, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return the logits of each next token."""
        x = self.tokens(tokens) + self.positions(jnp.arange(TOKENS))
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.tokens.attend(self.norm(x))


def run(session: Session) -> None:
    """Measure the step."""
    layers, width, vocabulary = (1, 16, 100) if session.quick else (6, 384, 16_384)
    graph, params = nnx.split(Transformer(layers, width, vocabulary, nnx.Rngs(0)))
    batch = jax.random.randint(jax.random.key(0), (BATCH, TOKENS), 0, vocabulary)

    def gradients_of(params: Any, batch: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logits = nnx.merge(graph, params)(batch)
            return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch[:, 1:]).mean()

        return jax.grad(loss)(params)

    def only_gradients(state: Any, batch: jax.Array) -> Any:
        params, _ = state
        return params, gradients_of(params, batch)

    def training(tx: optax.GradientTransformation) -> Contender:
        apply = _steps.apply(tx)
        state = jax.tree.map(jnp.copy, (params, tx.init(params)))
        return session.jitted(lambda state, batch: apply(state, gradients_of(state[0], batch)), state, batch)

    builders = {
        GRADIENTS: lambda: session.jitted(only_gradients, jax.tree.map(jnp.copy, (params, params)), batch),
        "kadam": partial(training, ok.kadam()),
        "kadam global_clipnorm": partial(training, ok.kadam(global_clipnorm=1.0)),
        "optax.adam": partial(training, optax.adam(1e-3)),
        "optax.adam clipped": partial(training, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))),
    }
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    pairs = [("kadam", "optax.adam"), ("kadam global_clipnorm", "optax.adam clipped"), ("kadam", GRADIENTS)]
    session.race(f"{size / 1e6:.3g}M parameters, {BATCH} x {TOKENS} tokens", builders, pairs)
