"""The steps that a row missed, in closed form: the window, the nodes, and the sums that are kept for them.

A row that no gradient reached for `k` steps after its last visit at step `s` has, at the end of a dense sweep,

    m_k = beta_1 ** k * m,   v_k = beta_2 ** k * v,
    p_k = p - m * sum_(j = 1..k) alpha_(s + j) * beta_1 ** j / (rho_j * sqrt(v) + epsilon),   rho_j = beta_2 ** (j / 2)

**The window.** Beside the first terms, term `j` is at most `(beta_1 / sqrt(beta_2)) ** j`: after `K` steps nothing is
left of it in float32, and nothing is summed.

**The nodes.** The quotients `1 / (rho_j * r + epsilon)` of all `j` differ by so little that a few of them, the nodes,
give the others to float32's resolution, whatever `r` and `epsilon` are: with `c = epsilon / r` they are
`1 / (rho_j + c)` but for a common factor, and `c` is all that is left to vary. So the sum is that of `Q` virtual steps,

    sum_q S_q / (rho_q * r + epsilon),   S_q = sum_(j = 1..min(k, K)) alpha_(s + j) * weights_(j, q).

`window_of` picks the nodes among the `rho_j` and finds the weights, `beta_1 ** j` included, by an interpolative
decomposition of the matrix of terms (pivoted Gram-Schmidt: Cheng, Gimbutas, Martinsson & Rokhlin 2005,
https://doi.org/10.1137/030602678), in float64, until its error is below `_TOLERANCE` of the sum for every `k` and `c`.
Keras's betas have a window of 172 steps and 3 nodes, (0.9, 0.99) 5 nodes, (0.9, 0.95) 227 steps and 12 nodes, and
(0.99, 0.999) 1888 steps and 6 nodes.

**The sums.** `S` depends on the row by `s` alone. So they are kept by step, not by row: `Missed` is a ring that has an
entry for each of the last `history` steps `s`, and a step adds its alpha, weighted, to the `K` newest entries. Alpha is
recorded as it is used, so any learning rate will do, one that is set by hand between steps too. An entry is overwritten
after `history` steps; `_deferred` sees to it that no row stays away for so long. So the longer the ring is, the fewer
rows must be visited at a step; where one row a step is enough, a longer ring would save nothing, and there is none.

With weight decay `x_t = weight_decay * lr_t`, the parameter is further multiplied by `1 - x_t` before each step. The
product over an absence is the quotient of two running products; the ring keeps their logarithm, as the sum of two
float32, and `S_q` has every alpha divided by the product up to its step.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_TOLERANCE = 1e-8  # Largest relative error of a sum by the nodes; half a unit in the last place of float32 is 6e-8.
_MOST_NODES = 32  # A node is a division for every number that is read.
_LONGEST_WINDOW = 2**15  # A step of the window is a few operations for every step, and a term of the float32 sums.
_LONG_HISTORY = 2**15  # With it, one row in 16384 takes a step for no other reason.
_LARGEST_SHARE = 1 - 2.0**-24  # Of a parameter that one step takes: the logarithm of what is left must be finite.
_LARGEST_EXPONENT = 60.0  # By which an alpha is divided by what later steps leave: a float32 ends at 88.
_NOTHING_LEFT = -20.0  # The logarithm of a share that is lost beside 1 in float32.


class Window(NamedTuple):
    """What the betas decide, once: constants."""

    nodes: np.ndarray  # rho_q, shape=(Q,), dtype=float32.
    weights: np.ndarray  # shape=(K, Q), dtype=float32: row j - 1 is that of term j.
    history: int  # Entries of the ring of a large table, a power of two: more than the steps of any absence.
    powers: tuple["Powers", "Powers"]  # Of beta_1 and beta_2.


class Powers(NamedTuple):
    """`beta ** k` for `k < history`, rounded three times at most: `low[k % 256] * high[k // 256]`."""

    low: np.ndarray
    high: np.ndarray

    def __call__(self, k: jax.Array) -> jax.Array:
        return jnp.asarray(self.low)[k % 256] * jnp.asarray(self.high)[k // 256]


class Missed(NamedTuple):
    """What the steps since each of the last `history` steps add up to, by step modulo `history`."""

    sums: jax.Array  # S, shape=(history, Q), dtype=float32.
    # shape=(history, 2), dtype=float32: the logarithm of the product of all 1 - weight_decay * lr up to that step, in
    # two parts; None without weight decay.
    log_decay: jax.Array | None

    @property
    def history(self) -> int:
        """The entries of the ring."""
        return self.sums.shape[0]


def window_of(beta_1: float, beta_2: float, amsgrad: bool) -> Window:
    """Return the window of these betas, or raise where it would be too long, or have too many nodes."""
    if amsgrad:  # The maximum stands still: the quotients of all terms are equal, and one node is exact.
        length = _window_length(beta_1, "`beta_1` is too close to 1.", beta_1=beta_1)
        nodes, weights = np.ones(1), beta_1 ** np.arange(1.0, length + 1)[:, None]
    else:
        why = (
            "Without amsgrad, `beta_1` must be well below sqrt(beta_2), for the steps that a row misses shrink by "
            "beta_1 / sqrt(beta_2) each."
        )
        ratio = beta_1 and (beta_1 / math.sqrt(beta_2) if beta_2 else math.inf)
        length = _window_length(ratio, why, beta_1=beta_1, beta_2=beta_2)
        nodes, weights = _interpolate(beta_1, beta_2, length)
    history = max(_LONG_HISTORY, _power_of_two(4 * length))
    powers = _powers_of(beta_1, history), _powers_of(beta_2, history)
    return Window(nodes.astype(np.float32), weights.astype(np.float32), history, powers)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _window_length(ratio: float, why: str, **betas: float) -> int:
    """Return how many steps pass until `ratio ** steps` is below float32's resolution."""
    steps = 1.0 if ratio == 0 else math.inf if ratio >= 1 else 26 * math.log(2) / -math.log(ratio)
    if steps > _LONGEST_WINDOW:
        received = ", ".join(f"{name}={value}" for name, value in betas.items())
        until = "never end" if steps == math.inf else f"matter for {math.ceil(steps)} steps, at most {_LONGEST_WINDOW}"
        raise ValueError(f"{why} Received: {received}. They would {until}. Use `kadam`, which sweeps the table.")
    return math.ceil(steps)


@functools.cache
def _interpolate(beta_1: float, beta_2: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes rho_q and weights such that `weights @ (1 / (rho_q + c))` is `beta_1 ** j / (rho_j + c)`."""
    j = np.arange(1.0, length + 1)
    rho = beta_2 ** (j / 2)
    if beta_1 == 0:
        return rho, np.zeros((1, 1))
    terms = _terms(beta_1**j, rho)
    sums = np.cumsum(terms, axis=1)
    residual, chosen = terms.copy(), []
    for _ in range(min(_MOST_NODES, length)):
        chosen.append(int(np.argmax(np.square(residual).sum(axis=0))))
        direction = residual[:, chosen[-1]] / np.linalg.norm(residual[:, chosen[-1]])
        residual -= np.outer(direction, direction @ residual)
        if np.max(np.cumsum(np.abs(residual), axis=1) / sums) < _TOLERANCE:
            coefficients = np.linalg.lstsq(terms[:, chosen], terms, rcond=None)[0]
            return rho[chosen], (coefficients * beta_1 ** j[chosen, None]).T
    raise ValueError(
        "Without amsgrad, `beta_1` must be well below sqrt(beta_2), for the steps that a row misses are summed at a "
        f"few nodes. Received: beta_1={beta_1}, beta_2={beta_2}. They would need more than {_MOST_NODES} nodes. "
        "Use `kadam`, which sweeps the table."
    )


def _terms(powers: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """Return `powers / (rho + c)`, a row for each of many c from 0 to infinity, scaled to a sum of 1."""
    c = np.concatenate([[0.0], np.geomspace(rho[-1] / 100, 1e3, 200)])
    terms = np.concatenate([powers / (rho + c[:, None]), powers[None]])
    return terms / terms.sum(axis=1, keepdims=True)


def _powers_of(beta: float, history: int) -> Powers:
    exponents = np.arange(256.0), 256.0 * np.arange(math.ceil(history / 256))
    low, high = (np.power(beta, exponent).astype(np.float32) for exponent in exponents)
    return Powers(low, high)


def no_steps(window: Window, decays: bool, rows: int) -> Missed:
    """Return the ring before the first step: of two entries for each row, if that is less than a large table has."""
    history = min(window.history, _power_of_two(max(4 * len(window.weights), 2 * rows)))
    log_decay = jnp.zeros((history, 2), jnp.float32) if decays else None
    return Missed(jnp.zeros((history, window.nodes.size), jnp.float32), log_decay)


def record_step(
    window: Window, missed: Missed, iterations: jax.Array, alpha: jax.Array, decayed: jax.Array | None
) -> Missed:
    """Return the ring after the step that follows the first `iterations`, whose weight decay takes `decayed`."""
    opened = (iterations + 1) % missed.history
    # This step is term j of the entry opened j steps ago. Before step K some entries do not exist yet; they are reset
    # when they are opened.
    entries = (iterations - np.arange(len(window.weights), dtype=np.int32)) % missed.history
    log_decay, factor = missed.log_decay, alpha
    if log_decay is not None and decayed is not None:
        total = _add(log_decay[iterations % missed.history], jnp.log1p(-jnp.minimum(decayed, _LARGEST_SHARE)))
        log_decay = log_decay.at[opened].set(total)
        exponents = jnp.minimum(-_difference(total, log_decay[entries]), _LARGEST_EXPONENT)
        factor = alpha * jnp.exp(exponents)[:, None]
    sums = missed.sums.at[entries].add(factor * window.weights, unique_indices=True)
    return Missed(sums.at[opened].set(0.0), log_decay)


def _add(pair: jax.Array, term: jax.Array) -> jax.Array:
    """Add a number to the sum of two, whose second holds what the first rounds away (Knuth's two-sum)."""
    high, low = pair[0], pair[1] + term
    total = high + low
    shifted = total - high
    return jnp.stack([total, (high - (total - shifted)) + (low - shifted)])


def _difference(left: jax.Array, right: jax.Array) -> jax.Array:
    return (left[..., 0] - right[..., 0]) + (left[..., 1] - right[..., 1])


class Moments(NamedTuple):
    """The moments of some rows, in float32."""

    mu: jax.Array
    nu: jax.Array
    nu_max: jax.Array | None


def catch_up(
    window: Window,
    missed: Missed,
    epsilon: float | jax.Array,
    values: jax.Array,
    moments: Moments,
    last_visit: jax.Array,
    iterations: jax.Array,
) -> tuple[jax.Array, Moments]:
    """Return what the steps from `last_visit`, one number for each row, to `iterations` add to the rows' values.

    The moments are returned as these steps leave them. The change of the values is returned, not added, so that a
    following step adds both with one rounding.
    """

    def per_row(scalars: jax.Array) -> jax.Array:
        return scalars.reshape(scalars.shape + (1,) * (values.ndim - scalars.ndim))

    mu, nu, nu_max = moments
    root = jnp.sqrt(nu if nu_max is None else nu_max)
    entry = last_visit % missed.history
    sums = missed.sums[entry]
    change = -mu * sum(per_row(sums[..., q]) / (node * root + epsilon) for q, node in enumerate(window.nodes))
    if missed.log_decay is not None:
        log = _difference(missed.log_decay[iterations % missed.history], missed.log_decay[entry])
        left = (values + change) * per_row(jnp.exp(log)) - values
        # Where the alphas are divided by next to nothing, `change` is large, and adding to it would cancel.
        change = jnp.where(per_row(log < _NOTHING_LEFT), left, change + (values + change) * per_row(jnp.expm1(log)))
    # The count at its end goes on through its last `history` values, so that a last visit may be the larger number.
    steps = (iterations - last_visit) % missed.history
    beta_1_power, beta_2_power = (per_row(power(steps)) for power in window.powers)
    return change, Moments(mu * beta_1_power, nu * beta_2_power, nu_max)
