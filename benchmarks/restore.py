"""What it costs to take a large training out of Keras's files, beside h5py reading the same arrays.

Two files are written, as Keras 3 writes them but without it: `.weights.h5`, and the same in a `.keras` archive with the
model's configuration. They hold an embedding, 48 blocks of a dense layer and a batch normalization, and Adam's moments.
Then, round after round, each of these is done in a fresh process, one after the other, beginning with another one each
round, with the file in the page cache and memory at hand:

    h5py        every dataset read into numpy; from `.keras` out of a copy in memory, as Keras does
    load        `optax_kadam.load_keras(path)`
    restore     `optax_kadam.load_keras(path).restore(structs)`: on a device, as parameters and optimizer state

Times are shown as the median, the least and the largest over the rounds of the ratio to h5py reading `.weights.h5` in
the same round; "least" is the least time over h5py's least, which a busy machine disturbs least. "again" is a second
call in the same process, to which libhdf5's process and JAX's compilation are there already. The peak is by how much
the largest resident set grows in the first call, over the bytes of the arrays.
"""

import argparse
import io
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

# Large modules are imported where they are used, because a process's largest resident set begins with its parent's.

BLOCKS = 48
TIME_PROMISED, PEAK_PROMISED = 2.0, 1.2
KINDS = ("h5py", "load", "restore")
SUFFIXES = (".weights.h5", ".keras")
Layer = tuple[str, str, dict[str, Any], list[tuple[int, ...]], int]  # Class, name, arguments, shapes, trainable ones.


def main() -> None:
    """Parse the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.restore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000, help="of weights and moments (default: 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--json", type=pathlib.Path, metavar="PATH", help="where the figures go, if anywhere")
    arguments = parser.parse_args()
    if arguments.megabytes < 1 or arguments.rounds < 1:
        parser.error("--megabytes and --rounds must be >= 1")
    with tempfile.TemporaryDirectory(prefix="kadam-restore-") as folder:
        _progress(f"writing two files of {arguments.megabytes} MB")
        _call("write_files", folder, arguments.megabytes)
        rounds = [_round(pathlib.Path(folder), number, arguments.rounds) for number in range(arguments.rounds)]
    figures = summary(rounds)
    print(table(figures, arguments.megabytes, arguments.rounds))
    if arguments.json:
        arguments.json.write_text(json.dumps({**vars(arguments), "json": None, "figures": figures}, indent=1) + "\n")


def _round(folder: pathlib.Path, number: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure everything once, each in a process of its own."""
    measured = {}
    todo = [(kind, suffix) for suffix in SUFFIXES for kind in KINDS]
    first = number % len(todo)
    for kind, suffix in todo[first:] + todo[:first]:
        _progress(f"round {number + 1} of {rounds}: {kind} {suffix}")
        path = folder / f"model{suffix}"
        _read_through(path)
        _call("touch", path.stat().st_size * 3 // 2)
        measured[f"{kind} {suffix}"] = _call("measure", kind, str(path))
    return {f"{kind} {suffix}": measured[f"{kind} {suffix}"] for kind, suffix in todo}


def touch(size: int) -> int:
    """Use so much memory once: a virtual machine may have to ask its host for it, which is not to be measured."""
    return len(b"\x01" * size)


def measure(kind: str, path: str) -> dict[str, float]:
    """Do `kind` twice in this process; return the seconds, and the growth of the peak as a share of the arrays."""
    import jax
    import jax.numpy as jnp

    action = _actions()[kind]
    jnp.zeros(1).block_until_ready()  # So JAX has started, and neither that nor imports are measured.
    before, started = _peak(), time.perf_counter()
    arrays = action(pathlib.Path(path))
    seconds, grown = time.perf_counter() - started, _peak() - before
    size = sum(array.nbytes for array in jax.tree.leaves(arrays))
    del arrays
    started = time.perf_counter()
    action(pathlib.Path(path))
    again = time.perf_counter() - started
    return {"seconds": seconds, "again": again, "peak": grown / size, "bytes": size}


def _actions() -> dict[str, Callable[[pathlib.Path], Any]]:
    import h5py
    import jax

    import optax_kadam as ok

    def read(path: pathlib.Path) -> Any:
        arrays = []
        with h5py.File(_hdf5_in(path), "r") as file:
            file.visititems(lambda _, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None)
        return arrays

    def load(path: pathlib.Path) -> Any:
        training = ok.load_keras(path)
        return training.variables, training.mu, training.nu

    def restore(path: pathlib.Path) -> Any:
        training = ok.load_keras(path)
        structs = {path: jax.ShapeDtypeStruct(mu.shape, mu.dtype) for path, mu in (training.mu or {}).items()}
        return jax.block_until_ready(training.restore(structs))

    return dict(zip(KINDS, (read, load, restore), strict=True))


def _hdf5_in(path: pathlib.Path) -> Any:
    return path if path.suffix == ".h5" else io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5"))


def write_files(folder: str, megabytes: int) -> None:
    """Write the two files."""
    layers = _layers(megabytes * 1_000_000 // 4 // 3)
    weights = pathlib.Path(folder) / "model.weights.h5"
    _write_hdf5(weights, layers)
    with zipfile.ZipFile(pathlib.Path(folder) / "model.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1", "date_saved": "2026-01-01@00:00:00"}))
        archive.writestr("config.json", json.dumps(_config(layers)))
        archive.write(weights, "model.weights.h5")
    os.sync()  # Bytes that are still being written would slow the first measurement.


def _layers(parameters: int) -> list[Layer]:
    """Return a model of so many parameters: half of them in an embedding, half in the blocks."""
    width = max(16, round(math.sqrt(parameters / 2 / BLOCKS) / 16) * 16)
    rows = max(16, (parameters - BLOCKS * width * (width + 3)) // width)
    layers: list[Layer] = [
        ("Embedding", "tokens", {"input_dim": rows, "output_dim": width}, [(rows, width)], 1),
    ]
    for index in range(BLOCKS):
        layers.append(("Dense", f"dense_{index}", {"units": width}, [(width, width), (width,)], 2))
        layers.append(("BatchNormalization", f"norm_{index}", {}, [(width,)] * 4, 2))
    return layers


def _write_hdf5(path: pathlib.Path, layers: list[Layer]) -> None:
    """Write Keras 3's layout: variables numbered within their layer, the optimizer's in one list."""
    import h5py
    import numpy as np

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.create_group("vars").attrs["name"] = "model"
        for key, (_, name, _, shapes, _) in zip(_keys(layers), layers, strict=True):
            group = file.create_group(f"layers/{key}/vars")
            group.attrs["name"] = name
            for index, shape in enumerate(shapes):
                group[str(index)] = rng.random(shape, np.float32)
        group = file.create_group("optimizer/vars")
        group.attrs["name"] = "adam"
        group["0"], group["1"] = np.int32(1000), np.float32(0.001)
        trainable = [shape for _, _, _, shapes, count in layers for shape in shapes[:count]]
        for index, shape in enumerate(shape for shape in trainable for _ in ("m", "v")):
            group[str(2 + index)] = rng.random(shape, np.float32)


def _keys(layers: list[Layer]) -> Iterator[str]:
    """Yield the names that Keras gives to the groups of layers: their class, numbered."""
    seen: dict[str, int] = {}
    for kind, *_ in layers:
        count = seen[kind] = seen.get(kind, -1) + 1
        key = {"BatchNormalization": "batch_normalization"}.get(kind, kind.lower())
        yield f"{key}_{count}" if count else key


def _config(layers: list[Layer]) -> dict[str, Any]:
    """Return the configuration of the model, from which Keras can build it."""
    tokens = {"batch_shape": [None, 8], "dtype": "int32", "name": "input"}
    width = layers[0][3][0][1]
    shapes = [[None, 8], *[[None, 8, width]] * (len(layers) - 1)]
    listed = [_serialized("keras.layers", "InputLayer", tokens)] + [
        {**_serialized("keras.layers", kind, {"name": name, **given}), "build_config": {"input_shape": shape}}
        for (kind, name, given, _, _), shape in zip(layers, shapes, strict=True)
    ]
    model = {"name": "model", "trainable": True, "layers": listed, "build_input_shape": [None, 8]}
    adam = _serialized("keras.optimizers", "Adam", {"name": "adam", "learning_rate": 0.001})
    compiled = {"optimizer": adam, "loss": "mse"}
    return {**_serialized("keras", "Sequential", model), "compile_config": compiled}


def _serialized(module: str, kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": module, "class_name": kind, "config": config, "registered_name": None}


def summary(rounds: list[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """Return a row for each thing measured: the median, the least and the largest of its figures over the rounds."""
    reference = f"{KINDS[0]} {SUFFIXES[0]}"
    rows = []
    for name in rounds[0]:
        row: dict[str, Any] = {"name": name}
        columns = {
            "seconds": [measured[name]["seconds"] for measured in rounds],
            "ratio": [measured[name]["seconds"] / measured[reference]["seconds"] for measured in rounds],
            "ratio_again": [measured[name]["again"] / measured[reference]["again"] for measured in rounds],
            "peak": [measured[name]["peak"] for measured in rounds],
        }
        for column, values in columns.items():
            row[column] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        row["ratio_of_least"] = row["seconds"]["min"] / min(measured[reference]["seconds"] for measured in rounds)
        row["bytes"] = rounds[0][name]["bytes"]
        if KINDS[0] not in name:
            row["holds"] = row["ratio"]["median"] <= TIME_PROMISED and row["peak"]["max"] <= PEAK_PROMISED
        rows.append(row)
    return rows


def table(figures: list[dict[str, Any]], megabytes: int, rounds: int) -> str:
    """Return the figures as text."""
    columns = ("seconds", "ratio", "ratio_again", "peak")
    titles = ("seconds", "x h5py", "x h5py, least", "x h5py, again", "peak / arrays")
    lines = [
        f"{megabytes} MB of weights and moments, {rounds} rounds: median (least to largest)",
        f"{'':<20}" + "".join(f"{title:>24}" for title in titles) + "   promise",
    ]
    for row in figures:
        cells = [f"{row[c]['median']:.2f} ({row[c]['min']:.2f} to {row[c]['max']:.2f})" for c in columns]
        cells.insert(2, f"{row['ratio_of_least']:.2f}")
        verdict = {True: "holds", False: "DOES NOT HOLD", None: ""}[row.get("holds")]
        lines.append(f"{row['name']:<20}" + "".join(f"{cell:>24}" for cell in cells) + f"   {verdict}")
    lines.append(
        f"promised: a median time within {TIME_PROMISED:g} x h5py, a peak under {PEAK_PROMISED:g} x the arrays"
    )
    return "\n".join(line.rstrip() for line in lines)


def _call(function: str, *arguments: Any) -> Any:
    """Return what a function of this module returns, called in a fresh process."""
    program = f"import benchmarks.restore as r, json; print(json.dumps(r.{function}(*{arguments!r})))"
    here = pathlib.Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=here, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _peak() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _read_through(path: pathlib.Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
