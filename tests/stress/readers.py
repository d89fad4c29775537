"""Our reader of HDF5 beside pyfive, on bombs and on damaged files: why the package has a reader of its own.

python -m tests.stress.readers bombs       time and memory of each reader on each bomb of the corpus
python -m tests.stress.readers flips       what each reader makes of single-bit flips of one recorded file
python -m tests.stress.readers mutants     10^4 mutants of all recorded files: where both read, they must agree
"""

import collections
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

import pyfive

from ..golden import make_bad
from ..keras_files.containers import test_hdf5 as readers
from . import flips

PATIENCE = 60  # Seconds that a reader gets for one bomb.
MEMORY = 8 * 2**30  # Bytes that it gets.
READERS: dict[str, Callable[[bytes], object]] = {"ours": readers.ours, "pyfive": lambda content: walk(content)}


def walk(content: bytes) -> int:
    """Read all that is in a file with pyfive, and return the number of entries."""
    count, groups = 0, [pyfive.File(readers.io.BytesIO(content))]
    while groups:
        group = groups.pop()
        dict(group.attrs)
        for name in group:
            count += 1
            item = group[name]
            groups.append(item) if isinstance(item, pyfive.Group) else item[()]  # pyright: ignore
    return count


def read_bomb(reader: str, path: pathlib.Path) -> None:
    """Read one file, and print how long it took, what memory it took, and what came out."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {PATIENCE} s")

    content = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        came = f"read: {READERS[reader](content)}"
    except BaseException as error:
        came = f"{type(error).__name__}: {error}"
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{time.process_time() - begin:.2f} s | {memory:.0f} MB | {' '.join(came.split())[:90]}")


def bombs() -> None:
    """Print a table of the bombs."""
    print("| bomb | file | reader | time | memory beside the file | what came out |\n|---|---:|---|---:|---:|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in make_bad.functions("bomb_").items():
            path = pathlib.Path(folder, name)
            path.write_bytes(make())
            for reader in READERS:
                command = [sys.executable, "-W", "ignore", "-m", "tests.stress.readers", "bomb", reader, str(path)]
                said = subprocess.run(command, capture_output=True, text=True, check=False)
                result = said.stdout.strip() or f"ended by signal {-said.returncode} | |"
                print(f"| {name} | {path.stat().st_size / 1e6:.1f} MB | {reader} | {result} |", flush=True)


def flipped(count: int) -> None:
    """Print what each reader makes of flips of the smallest `.weights.h5`, of metadata bytes alone."""
    outcomes: dict[str, collections.Counter[str]] = {"ours": collections.Counter(), "pyfive": collections.Counter()}
    with flips.placed(".weights.h5") as place:
        (content,) = place.contents.values()
        mutants = [mutant for mutant in place.mutants() if mutant.bit is not None]
    whole = readers.arrays_of_ours(content)
    for mutant in random.Random(0).sample(mutants, count):
        changed = bytearray(content)
        changed[mutant.byte] ^= 1 << (mutant.bit or 0)
        for reader, read in {"ours": readers.arrays_of_ours, "pyfive": readers.arrays_of_pyfive}.items():
            found = read(bytes(changed))
            if found is None or found == whole:
                kind = "refused" if found is None else "the same arrays"
            elif whole is not None and list(found.values()) == list(whole.values()):
                kind = "the same arrays under other names"
            else:
                kind = "other arrays"
            outcomes[reader][kind] += 1
    for reader, counts in outcomes.items():
        print(reader, dict(counts))


def mutated(count: int) -> None:
    """Print how many mutants each reader reads; stop at one of which they read different arrays."""
    rng = random.Random(1)
    contents = [content for _, content in readers.recorded()]
    outcomes, slowest = collections.Counter(), 0.0
    for _ in range(count):
        content = readers.mutant(rng, contents)
        begin = time.perf_counter()
        readers.arrays_of_ours(content)
        slowest = max(slowest, time.perf_counter() - begin)
        outcomes[readers.both_agree(content)] += 1
    names = {(True, True): "both read", (True, False): "pyfive fails", (False, False): "ours refuses"}
    print({names[key]: number for key, number in outcomes.items()}, f"slowest {slowest:.3f} s")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    match sys.argv[1:]:
        case ["bombs"]:
            bombs()
        case ["bomb", reader, path]:
            read_bomb(reader, pathlib.Path(path))
        case ["flips"]:
            flipped(5_000)
        case ["mutants"]:
            mutated(10_000)
        case _:
            sys.exit(__doc__)
