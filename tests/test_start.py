"""What a start costs, as far as no clock is needed: the modules that an import loads, and what is compiled again."""

import json
import subprocess
import sys

import jax
import pytest

IMPORT = """
import sys, jax.numpy, numpy.typing, optax
before = set(sys.modules)
import optax_kadam
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""

STEPS = """
import collections, json, sys
import jax, jax.numpy as jnp, optax, optax_kadam as ok

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.split("/")[-1]]))
params = {"w": jnp.ones(3)}
found = {}
rates = {"number": 0.1, "schedule": ok.schedules.CosineDecay(0.1, 100), "callable": lambda: 0.1}
for name, rate in rates.items():
    tx = ok.kadam(rate, clipnorm=1.0, amsgrad=True)
    state = jax.jit(tx.init)(params)
    step = jax.jit(tx.update).lower(params, state, params)
    events.clear()
    step.compile()
    found[name] = [events["cache_hits"], events["cache_misses"]]
print(json.dumps(found))
"""


def run(program, *arguments):
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_import_loads_nothing_beside_the_core():
    """Flax, Keras, h5py, Orbax and the checksums are imported where they are used."""
    assert run(IMPORT).split() == ["optax_kadam"]


@pytest.mark.slow
def test_a_second_process_compiles_no_step_again(tmp_path):
    """The persistent cache of jax 0.10 keeps no program with a host callback, so not what asks for its rate."""
    first, second = (json.loads(run(STEPS, str(tmp_path))) for _ in range(2))
    keeps_callbacks = jax.__version_info__ >= (0, 11)
    assert first == {"number": [0, 1], "schedule": [0, 1], "callable": [0, int(keeps_callbacks)]}
    assert second == {"number": [1, 0], "schedule": [1, 0], "callable": [int(keeps_callbacks), 0]}
