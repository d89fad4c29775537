"""Every single-bit flip and every cut of the smallest sample of each format, each loaded and judged.

    python -m tests.stress.flips run FOLDER         does it whole, in parts; what FOLDER already holds is not done again
    python -m tests.stress.flips report FOLDER      prints the table of what came out

A mutant is judged so:

    same            it gives the arrays, the names and the configuration of the sample
    refused         it raises a ValueError in the house's grammar
    a number        it gives other numbers, of the same shape and dtype, under the same names
    a name          it gives the same arrays under other names
    a text          it gives the same arrays under the same names, and another configuration
    a lost name     the bit is one of a name, and the arrays are taken for others: `optimizer` for `nptimizer`
    LOST            it gives fewer arrays, or another state: this should have been refused
    ERROR           it raises anything else

A bit of a number, of a name or of a text cannot be told from another in a format without a checksum. All other bits
can. The numbers of an HDF5 file outside an archive are not mutated: each of their bits would be `a number`.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import h5py

import optax_kadam as ok

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
GRAMMAR = re.compile(r".* Received: .*\. .*", re.DOTALL)
SLOTS = ("variables", "mu", "nu", "nu_max", "average", "accumulator")
PART = 10_000  # Mutants: some ten seconds to a minute.
KINDS = ("same", "refused", "a number", "a name", "a text", "a lost name", "LOST", "ERROR")


class Sample(NamedTuple):
    """A recorded training: what is loaded, all its files, and those of them that are mutated."""

    path: str
    files: str
    mutated: str


SAMPLES = {
    ".keras": Sample("training/tf_keras/clipnorm/saved.keras", "saved.keras", "saved.keras"),
    ".weights.h5": Sample("files/tfk/adam.weights.h5", "adam.weights.h5", "adam.weights.h5"),
    ".h5": Sample("training/legacy/decay/saved.h5", "saved.h5", "saved.h5"),
    ".weights.json": Sample("files/k3j/adam.weights.json", "adam*.weights.*", "adam*.weights.*"),
    "checkpoint": Sample("training/tf_keras/clipnorm/saved_ckpt/ck", "ck*", "ck*"),
    "SavedModel": Sample("files/tfk/adam_savedmodel", "**/*", "keras_metadata.pb"),
}


class Mutant(NamedTuple):
    """A file with one bit flipped, or cut off at a byte if `bit` is None."""

    file: str
    byte: int
    bit: int | None


class Place:
    """A folder in memory with the files of a sample, of which one at a time is mutated and loaded."""

    def __init__(self, sample: Sample, folder: pathlib.Path):
        source = GOLDEN / sample.path
        source_folder = source if source.is_dir() else source.parent
        self._folder = folder
        self._path = folder if source.is_dir() else folder / source.name
        for path in source_folder.glob(sample.files):
            if path.is_file() and (source.is_dir() or is_part_of(path, source)):
                (folder / path.relative_to(source_folder)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / path.relative_to(source_folder))
        mutated = [path for path in sorted(folder.glob(sample.mutated)) if path.is_file()]
        self.contents = {path.name: path.read_bytes() for path in mutated}
        self.numbers = {path.name: bits_of_numbers(path) for path in mutated}
        self._names = {path.name: names_in(path) for path in mutated}
        self.whole = fingerprint(ok.load_keras(self._path))

    def mutants(self) -> Iterator[Mutant]:
        """Yield every mutant."""
        for name, content in self.contents.items():
            numbers = {byte for start, end in self.numbers[name] for byte in range(start, end)}
            for byte in range(len(content)):
                yield Mutant(name, byte, None)
                if byte not in numbers:
                    yield from (Mutant(name, byte, bit) for bit in range(8))

    def judge(self, mutant: Mutant) -> tuple[str, str]:
        """Return how a mutant came out, and what it said."""
        path = self._folder / mutant.file
        content = self.contents[mutant.file]
        if mutant.bit is None:
            path.write_bytes(content[: mutant.byte])
        else:
            path.write_bytes(
                content[: mutant.byte] + bytes([content[mutant.byte] ^ 1 << mutant.bit]) + content[mutant.byte + 1 :]
            )
        try:
            kind, said = compared(fingerprint(ok.load_keras(self._path)), self.whole)
            is_name = mutant.bit is not None and text_around(content, mutant.byte) in self._names[mutant.file]
            return ("a lost name" if kind == "LOST" and is_name else kind), said
        except ValueError as error:
            return "refused" if GRAMMAR.fullmatch(str(error)) else "ERROR", f"ValueError: {error}"
        except Exception as error:
            return "ERROR", repr(error)
        finally:
            path.write_bytes(content)


def is_part_of(path: pathlib.Path, source: pathlib.Path) -> bool:
    """Return whether `path` is the sample `source`, one of its shards, or a file of the checkpoint of that prefix."""
    stem = re.escape(source.name.split(".")[0])
    return path == source or bool(re.fullmatch(rf"{stem}_\d+\.weights\.h5|{stem}\.(index|data-.*)", path.name))


def bits_of_numbers(path: pathlib.Path) -> list[tuple[int, int]]:
    """Return where the numbers of an HDF5 file begin and end. Other formats have checksums: all of them is mutated."""
    if path.suffix != ".h5":
        return []
    places: list[tuple[int, int]] = []
    with h5py.File(path) as file:

        def note(_: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                start = item.id.get_offset()
                places.append((start, start + item.id.get_storage_size()))

        file.visititems(note)
    return places


def names_in(path: pathlib.Path) -> set[bytes]:
    """Return the names of groups, arrays and attributes in an HDF5 file."""
    names: set[str] = set()
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            names.update(file.attrs)
            file.visititems(lambda name, item: names.update(item.attrs, [name.rsplit("/", 1)[-1]]))
    return {name.encode() for name in names}


def text_around(content: bytes, byte: int) -> bytes:
    """Return what stands around a byte, up to the next zeros."""
    end = content.find(b"\0", byte)
    return content[content.rfind(b"\0", 0, byte) + 1 : end if end >= 0 else len(content)]


def fingerprint(training: ok.KerasTraining) -> dict[str, object]:
    """Return all that a training holds, in a form that `==` compares bit by bit."""
    found: dict[str, object] = {
        "config": json.dumps(training.config, sort_keys=True),
        "generation": training.generation,
    }
    for name in ("iterations", "learning_rate", "step_counter", "dynamic_scale"):
        found[name] = repr(getattr(training, name))
    for name in SLOTS:
        arrays = getattr(training, name)
        found[name] = arrays and [(path, a.dtype.name, a.shape, a.tobytes()) for path, a in arrays.items()]
    return found


def compared(found: dict[str, object], whole: dict[str, object]) -> tuple[str, str]:
    """Return how a training that was loaded compares with that of the sample."""
    other = [key for key, value in whole.items() if found[key] != value]
    if not other:
        return "same", ""
    texts = {"config", "generation"}
    if "config" in other and set(other) <= {
        "config",
        "learning_rate",
    }:  # It stands in the configuration, in some formats.
        return "a text", str(other)
    columns = {"a name": set(), "a number": set()}
    for key in other:
        if key in SLOTS:
            mine, theirs = found[key], whole[key]
            if not (isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs)):
                return "LOST", str(other)
            if [entry[1:3] for entry in mine] != [entry[1:3] for entry in theirs]:
                return "LOST", str(other)
            if [entry[0] for entry in mine] != [entry[0] for entry in theirs]:
                columns["a name"].add(key)
            if [entry[3] for entry in mine] != [entry[3] for entry in theirs]:
                columns["a number"].add(key)
        elif key not in texts:
            if "None" in (found[key], whole[key]):
                return "LOST", f"{other}: {key} {whole[key]} became {found[key]}"
            columns["a number"].add(key)
    said = ", ".join(f"{kind} of {sorted(keys)}" for kind, keys in columns.items() if keys)
    if texts & set(other):
        return "LOST", f"{said}, and {sorted(texts & set(other))}"
    if all(columns.values()):
        return "LOST", said
    return ("a name" if columns["a name"] else "a number"), said


@contextlib.contextmanager
def placed(name: str) -> Iterator[Place]:
    """Yield the place of a sample."""
    memory = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Place(SAMPLES[name], pathlib.Path(folder))


def run(folder: pathlib.Path, names: list[str], remainder: int, processes: int) -> None:
    """Judge every mutant of the samples, and write the outcomes of each part to a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        with placed(name) as place:
            mutants = list(place.mutants())
            for number, start in enumerate(range(0, len(mutants), PART)):
                target = folder / f"{name.strip('.')}-{number:03d}.json"
                if number % processes != remainder or target.exists():
                    continue
                begin, slowest = time.perf_counter(), 0.0
                counts: collections.Counter[str] = collections.Counter()
                examples: list[tuple[str, Mutant, str]] = []
                for mutant in mutants[start : start + PART]:
                    before = time.perf_counter()
                    kind, said = place.judge(mutant)
                    slowest = max(slowest, time.perf_counter() - before)
                    counts[f"{'cut' if mutant.bit is None else 'flip'} {kind}"] += 1
                    if kind not in ("same", "refused"):
                        examples.append((kind, mutant, said))
                seconds = time.perf_counter() - begin
                outcome = {"counts": counts, "seconds": seconds, "slowest": slowest, "examples": examples}
                target.with_suffix(".part").write_text(json.dumps(outcome))
                os.replace(target.with_suffix(".part"), target)
                print(target.name, dict(counts), f"{seconds:.0f} s, slowest {slowest:.3f} s", flush=True)


def report(folder: pathlib.Path) -> None:
    """Print a table of the outcomes, and an example of each kind of fault."""
    print(f"| sample | mutants | {' | '.join(KINDS)} | slowest load | minutes |")
    print(f"|---|{'---:|' * (len(KINDS) + 3)}")
    seen: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for name in SAMPLES:
        outcomes = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name.strip('.')}-[0-9]*.json"))]
        for change in ("flip", "cut"):
            counts: collections.Counter[str] = collections.Counter()
            for outcome in outcomes:
                counts.update({k[len(change) + 1 :]: n for k, n in outcome["counts"].items() if k.startswith(change)})
            slowest = max((outcome["slowest"] for outcome in outcomes), default=0)
            minutes = sum(outcome["seconds"] for outcome in outcomes) / 60
            row = [str(counts[kind]) for kind in KINDS]
            end = f"{slowest:.3f} s | {minutes:.0f}" if change == "flip" else " | "
            print(f"| `{name}` {change}s | {counts.total()} | {' | '.join(row)} | {end} |")
        for outcome in outcomes:
            seen.update((name, kind, re.sub(r"\d+", "0", said)) for kind, _, said in outcome["examples"])
    print()
    for (name, kind, said), count in sorted(seen.items(), key=lambda item: (item[0][0], item[0][1], -item[1])):
        print(f"{name}: {kind}, {count} times: {said[:200]}")


def sampled(place: Place, count: int, seed: int) -> list[Mutant]:
    """Return a seeded sample of the mutants of a place."""
    return random.Random(seed).sample(list(place.mutants()), count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--samples", nargs="*", default=list(SAMPLES), choices=list(SAMPLES))
    parser.add_argument("--process", type=int, default=0, help="which of `--processes` this is, counted from 0")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    if options.action == "report":
        report(options.folder)
    else:
        run(options.folder, options.samples, options.process, options.processes)
    sys.exit()
