"""What it costs to take 1 GB of weights and moments out of Keras's files, beside h5py reading the same arrays.

Each contender works in a fresh process, with the file in the page cache: "h5py" reads every dataset, from `.keras` out
of a copy in memory, as Keras does; "load" is `optax_kadam.load_keras`, and "restore" brings the arrays to a device, as
parameters and optimizer state. The peak is by how much the largest resident set grows, over the bytes of the arrays.
"""

import io
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from typing import Any

from benchmarks._race import Contender, Session

BLOCKS, WIDTH = 48, 928
SUFFIXES = (".weights.h5", ".keras")


def run(session: Session) -> None:
    """Measure both kinds of file."""
    if not (keras := session.peer("keras")):
        return
    peaks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="kadam-files-") as folder:
        paths = {suffix: pathlib.Path(folder) / f"model{suffix}" for suffix in SUFFIXES}
        _write(keras, paths, *((2, 16) if session.quick else (BLOCKS, WIDTH)))
        builders = {
            f"{action} {suffix}": partial(_process, action, path, peaks.setdefault(f"{action} {suffix}", []))
            for suffix, path in paths.items()
            for action in ("h5py", "load", "restore")
        }
        pairs = [(f"{action} {suffix}", f"h5py {suffix}") for suffix in SUFFIXES for action in ("load", "restore")]
        session.race("1 GB", builders, [*pairs, ("restore .keras", "h5py .weights.h5")], rounds=7, warm_up=1)
    session.note(f"peak over the arrays: {', '.join(f'{n} {statistics.median(p):.2f}' for n, p in peaks.items())}")


def _write(keras: Any, paths: dict[str, pathlib.Path], blocks: int, width: int) -> None:
    """Save a model as Keras does, with random weights and moments: half of them in an embedding, half in blocks."""
    import numpy as np

    layers = [keras.layers.Embedding(blocks * width, width)]
    for _ in range(blocks):
        layers += [keras.layers.Dense(width), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((8,), dtype="int32"), *layers])
    model.compile(keras.optimizers.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    for variable in [*model.variables, *model.optimizer.variables]:
        if variable.shape:
            variable.assign(rng.random(variable.shape, np.float32))
    model.save_weights(paths[".weights.h5"])
    model.save(paths[".keras"])


def _process(action: str, path: pathlib.Path, peaks: list[float]) -> Contender:
    """Return the contender that reads a file in a fresh process."""
    program = [sys.executable, "-m", "benchmarks.files", action, str(path)]

    def measure() -> float:
        path.read_bytes()  # So it is in the page cache.
        seconds, peak = json.loads(subprocess.run(program, stdout=subprocess.PIPE, check=True).stdout)
        peaks.append(peak)
        return seconds

    return measure


def _read(action: str, path: pathlib.Path) -> Any:
    if action == "h5py":
        import h5py

        arrays = []
        source = path if path.suffix == ".h5" else io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5"))
        with h5py.File(source, "r") as file:
            file.visititems(lambda _, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None)
        return arrays
    import jax

    import optax_kadam as ok

    training = ok.load_keras(path)
    if action == "load":
        return training.variables, training.mu, training.nu
    structs = {path: jax.ShapeDtypeStruct(mu.shape, mu.dtype) for path, mu in (training.mu or {}).items()}
    return jax.block_until_ready(training.restore(structs))


def _main(action: str, path: str) -> None:
    """Do it once; print the seconds, and the growth of the peak."""
    import jax
    import jax.numpy as jnp

    import optax_kadam  # noqa: F401

    jnp.zeros(1).block_until_ready()
    before, started = _peak(), time.perf_counter()
    arrays = _read(action, pathlib.Path(path))
    seconds, grown = time.perf_counter() - started, _peak() - before
    print(json.dumps([seconds, grown / sum(array.nbytes for array in jax.tree.leaves(arrays))]))


def _peak() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except OSError:  # It is no Linux. There, the peak of getrusage would begin with the parent's.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    _main(*sys.argv[1:])
