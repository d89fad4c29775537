"""HDF5 files are opened by another process (`_hdf5_worker`), and their datasets are read by this one.

HDF5 as Keras writes it carries no checksum, so that a flipped bit in a dataset goes unnoticed. Refused are links that
leave the file, datasets that reach past its end, and files on which libhdf5 fails, crashes or does not end.
"""

import atexit
import contextlib
import functools
import importlib.util
import json
import math
import os
import pathlib
import selectors
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, TypedDict

import jax.numpy as jnp
import numpy as np

from optax_kadam.keras_files._lazy_array import LazyArray, read_into_place
from optax_kadam.keras_files._named_arrays import Group

if TYPE_CHECKING:
    from optax_kadam.keras_files.containers._hdf5_worker import FoundArray, FoundGroup

SIGNATURE = b"\x89HDF\r\n\x1a\n"


class _Contents(TypedDict):
    contents: "FoundGroup"


class _Error(TypedDict):
    error: str
    named: bool  # Whether the message says what must hold and what was received.


_Answer = _Contents | _Error


def read_hdf5(path: pathlib.Path, start: int = 0, size: int | None = None) -> Group:
    """Return the root group of the HDF5 file in the `size` bytes from `start` of the file at `path`.

    Raises:
      ValueError: if the file is damaged, or holds something that Keras does not write.
      ImportError: if h5py is missing.
    """
    if importlib.util.find_spec("h5py") is None:
        raise ImportError("h5py must be installed to read HDF5. Received: no module h5py. Install it: pip install h5py")
    size = path.stat().st_size - start if size is None else size
    with _LOCK:
        answer = _ask((str(path.absolute()), start, size))
    if "contents" in answer:
        return _group(answer["contents"], path, start)
    if answer["named"]:
        raise ValueError(f"{answer['error']} The file is {str(path)!r}.")
    raise ValueError(
        f"An HDF5 file must be whole: {answer['error']}. Received: {str(path)!r}. "
        "It is damaged or cut off: copy it again."
    )


def _group(found: "FoundGroup", path: pathlib.Path, start: int) -> Group:
    arrays = {name: _lazy_array(array, path, start) for name, array in found["arrays"].items()}
    groups = {name: _group(group, path, start) for name, group in found["groups"].items()}
    return Group(found["attrs"], arrays, groups, found["created"])


def _lazy_array(array: "FoundArray", path: pathlib.Path, start: int) -> LazyArray:
    # HDF5 has no bfloat16: Keras writes two opaque bytes for it, with or without the attribute `dtype`.
    dtype = np.dtype(jnp.bfloat16) if array["dtype"] == "opaque" else np.dtype(array["dtype"])
    shape = tuple(array["shape"])
    if math.prod(shape) * dtype.itemsize != array["bytes"] or array["attrs"].get("dtype", dtype.name) != dtype.name:
        raise ValueError(
            f"An opaque dataset must be a bfloat16 array. Received: shape {shape}, {array['bytes']} bytes, attributes "
            f"{array['attrs']}, in {str(path)!r}. The file is damaged, or no Keras wrote it."
        )
    read = functools.partial(read_into_place, path, start + array["offset"], shape, dtype)
    return LazyArray(shape, dtype.newbyteorder("="), read, array["offset"])


# Starting a worker takes a quarter of a second, hence one worker opens all files. One thread at a time asks it. A
# forked child starts its own, and a worker that failed is replaced.
_LOCK = threading.Lock()
# A sound file takes milliseconds. If one takes longer than this, libhdf5 is taken to loop.
_SECONDS, _BYTES_A_SECOND = 5.0, 1e7
_workers: dict[int, subprocess.Popen[str]] = {}


def _ask(request: tuple[str, int, int]) -> _Answer:
    """Return the answer of the worker; if it dies, of a new one, as an earlier file may have damaged the first."""
    worker = _workers.get(os.getpid())
    answer = _exchange(worker, request) if worker else None
    return answer or _exchange(_start(), request) or {"error": "libhdf5 crashes on it", "named": False}


def _exchange(worker: subprocess.Popen[str], request: tuple[str, int, int]) -> _Answer | None:
    """Send a request to the worker and return its answer, or None if it died."""
    if worker.stdin is None or worker.stdout is None:
        return None
    with contextlib.suppress(BrokenPipeError), selectors.DefaultSelector() as selector:
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
        selector.register(worker.stdout, selectors.EVENT_READ)
        if not selector.select(_SECONDS + request[2] / _BYTES_A_SECOND):
            _stop(worker)
            return {"error": "libhdf5 does not come to an end with it", "named": False}
        if line := worker.stdout.readline():
            return json.loads(line)
    _stop(worker)
    return None


def _start() -> subprocess.Popen[str]:
    program = pathlib.Path(__file__).with_name("_hdf5_worker.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        encoding="utf-8",
    )
    _workers[os.getpid()] = worker
    return worker


@atexit.register
def _stop_own() -> None:
    if worker := _workers.get(os.getpid()):
        _stop(worker)


def _stop(worker: subprocess.Popen[str]) -> None:
    _workers.pop(os.getpid(), None)
    worker.kill()
    worker.communicate()
