"""Do the tests notice a small change of the code? Changes are made one at a time, in a copy, and the tests are run.

    python -m tests.stress.mutate --out mutants.jsonl                  # a sample of 250 of the core and of config
    python -m tests.stress.mutate --out mutants.jsonl --again          # its survivors anew, after tests were written
    python -m tests.stress.mutate --out mutants.jsonl --report         # the table, without running anything
    python -m tests.stress.mutate --out files.jsonl --keras-files      # the same of keras_files

A mutant is killed if a test that mirrors its module fails, and survives if all of them pass. Each line of the file is
the result of one mutant; one that stands in the file is not run again, so that a run that was interrupted goes on.

Starting Python with all that the tests import takes 15 seconds. So one process imports it all but `optax_kadam`, and a
fork of it runs the tests of each mutant. XLA's threads do not outlive a fork, so the first process computes nothing;
what the forks compile is kept in a cache that they share. Tests that hold what XLA makes of a program look at its text,
which a cache does not keep, and are left out.
"""

import argparse
import ast
import collections
import contextlib
import copy
import importlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
IMPORTED = ("jax.experimental.sparse", "optax", "chex", "flax.nnx", "flax.linen", "equinox", "hypothesis", "h5py")
IMPORTED += ("keras", "pytest", "_pytest.doctest")
TIMES_SLOWER = 2  # A mutant that takes so many times longer than the code as it is has never ended.

# The tests that mirror a module, the quickest first.
_STEP = (
    "test_messages.py",
    "test_hyperparameter.py",
    "test_kadam.py",
    "test_refusals.py",
    "test_gradients.py",
    "test_precision.py",
)
_ORACLE = ("test_oracle.py",)
_TABLES = (
    "embeddings/test_catch_up.py",
    "embeddings/test_row_gradients.py",
    "embeddings/test_deferred.py",
    "embeddings/test_embeddings.py",
    "embeddings/test_ids.py",
    "embeddings/test_from_keras.py",
    "embeddings/test_checkpoints.py",
)
_ZIPS, _HDF5 = ("keras_files/containers/test_archive.py",), ("keras_files/containers/test_hdf5.py",)
_READ = ("keras_files/test_load_keras.py", "keras_files/test_corpus.py")
_ORDERS = ("keras_files/layouts/test_order.py",)
_CHECKPOINTS = ("keras_files/containers/test_tf_checkpoint.py", "keras_files/layouts", _READ[0])
_SAVED, _RESTORED = ("keras_files/test_save_keras.py",), ("keras_files/test_restore_keras.py",)
TESTS = {
    "_call.py": ("test_call.py", "test_foreign_arguments.py"),
    "_check.py": (
        "test_check.py",
        "stages/test_weight_decay.py",
        "test_messages.py",
        "test_refusals.py",
        "test_foreign_arguments.py",
        "test_mesh.py",
    ),
    "_generations.py": ("test_generations.py", "test_refusals.py", "stages", "test_oracle.py"),
    "_gradients.py": ("embeddings/test_row_gradients.py", "test_gradients.py", "test_refusals.py", *_TABLES[2:]),
    "_hyperparameter.py": ("test_hyperparameter.py", "test_messages.py", "test_refusals.py"),
    "_kadam.py": (
        "test_kadam.py",
        "stages",
        "test_refusals.py",
        "test_messages.py",
        "test_mesh.py",
        "test_gradients.py",
        *_ORACLE,
    ),
    "_mesh.py": ("test_mesh.py", "pods/test_shard_map.py", "pods/test_local_norms.py", "pods/test_sharded_rows.py"),
    "_precision.py": ("test_precision.py",),
    "_schedule.py": ("test_schedules.py", *_ORACLE),
    "_xla.py": ("test_xla.py", "test_schedules.py", "stages", "test_hyperparameter.py"),
    "_zero1.py": ("test_zero1.py",),
    "schedules.py": ("test_schedules.py",),
    "config/": ("config",),
    "embeddings/": (*_TABLES, "test_gradients.py", "test_optax_tools.py"),
    "stages/_accumulate.py": ("stages/test_accumulate.py", "test_gradients.py", "test_check.py", *_ORACLE),
    "stages/_adam.py": ("stages/test_adam.py", "test_precision.py", *_STEP, *_ORACLE),
    "stages/_clip.py": (
        "stages/test_clip.py",
        "test_messages.py",
        "test_mesh.py",
        "test_refusals.py",
        "test_gradients.py",
        *_ORACLE,
    ),
    "stages/_ema.py": ("stages/test_ema.py", "test_messages.py", "test_refusals.py", "test_gradients.py", *_ORACLE),
    "stages/_learning_rate.py": ("stages/test_learning_rate.py", *_STEP, "test_optax_tools.py", *_ORACLE),
    "stages/_loss_scale.py": (
        "stages/test_loss_scale.py",
        "test_messages.py",
        "test_refusals.py",
        "test_mesh.py",
        *_ORACLE,
    ),
    "stages/_weight_decay.py": ("stages/test_weight_decay.py", *_STEP, *_ORACLE),
    "keras_files/containers/_archive.py": (*_ZIPS, *_READ),
    "keras_files/containers/_hdf5.py": (*_HDF5, *_READ),
    "keras_files/containers/_leveldb.py": _CHECKPOINTS,
    "keras_files/containers/_object_graph.py": _CHECKPOINTS,
    "keras_files/containers/_shards.py": (*_ZIPS, *_READ),
    "keras_files/containers/_tf_checkpoint.py": _CHECKPOINTS,
    "keras_files/containers/_zip.py": (*_ZIPS, *_READ),
    "keras_files/layouts/": (*_ORDERS, *_READ),
    "keras_files/layouts/_graphs.py": _CHECKPOINTS,
    "keras_files/layouts/_saved_model.py": _CHECKPOINTS,
    "keras_files/_contents.py": ("keras_files/test_contents.py", "keras_files/layouts", *_READ, *_RESTORED),
    "keras_files/_hdf5_attribute.py": _SAVED,
    "keras_files/_json.py": (*_ZIPS, *_READ),
    "keras_files/_lazy_array.py": (*_READ, *_CHECKPOINTS),
    "keras_files/matching/_match.py": (*_SAVED, *_RESTORED),
    "keras_files/_named_arrays.py": (*_HDF5, *_READ),
    "keras_files/_open.py": (*_READ, *_ZIPS, *_CHECKPOINTS, *_SAVED),
    "keras_files/_protobuf.py": _CHECKPOINTS,
    "keras_files/_restore.py": _RESTORED,
    "keras_files/_replacements.py": (*_SAVED, *_RESTORED),
    "keras_files/_save.py": (*_SAVED, *_RESTORED),
    "keras_files/_source.py": (*_ZIPS, *_READ, *_CHECKPOINTS, *_SAVED),
    "keras_files/_training.py": (*_READ, *_RESTORED),
    "keras_files/_whole_file.py": _SAVED,
}

_COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq}
_COMPARISONS |= {ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
_ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
_ARITHMETIC |= {ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
_ARITHMETIC |= {ast.LShift: ast.RShift, ast.RShift: ast.LShift}
_TYPES_ONLY = ("TypeVar", "ParamSpec")


class Mutant(NamedTuple):
    """One change: what stands at a place of a module, and what takes its place."""

    module: str  # The path below the package.
    line: int
    column: int
    kind: str
    old: str
    new: str

    @property
    def key(self) -> str:
        return json.dumps(self)


def mutants_of(source: str) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Yield the kind of each mutant of a module, the node that it changes, and the node in its place."""
    yield from _of_block(ast.parse(source).body)


def _of_block(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    bound: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # A docstring.
        if _is_for_types(statement):
            continue
        if _can_be_dropped(statement, bound):
            yield "statement", statement, ast.Pass()
        if isinstance(statement, ast.Return) and statement.value is not None and not _is_none(statement.value):
            yield "return", statement.value, ast.Constant(None)
        bound |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and _is_stored(node)}
        yield from _inside(statement)


def _inside(node: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Yield the mutants of what a node holds, annotations and the texts of messages aside."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "format_spec", "bases", "type_params"):
            continue
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield from _of_block(value)
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_message(node, child):
                yield from _of_node(node, field, child)
                yield from _inside(child)


def _of_node(parent: ast.AST, field: str, node: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    is_condition = field == "test" or (field == "ifs" and isinstance(parent, ast.comprehension))
    if is_condition and not isinstance(node, (ast.UnaryOp, ast.Compare)):  # Of those, the mutants below say the same.
        yield "condition", node, ast.UnaryOp(ast.Not(), node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        yield "comparison", node, _changed(node, ops=[_COMPARISONS[type(node.ops[0])]()])
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _ARITHMETIC:
        yield "arithmetic", node, _changed(node, op=_ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield "boolean", node, _changed(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
    elif isinstance(node, ast.UnaryOp):
        yield "sign", node, node.operand
    elif isinstance(node, ast.Constant):
        yield from (("constant", node, ast.Constant(new)) for new in _other_constants(node.value))
    elif isinstance(node, ast.Call):
        for i in range(len(node.keywords)):
            yield "argument", node, _changed(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
        if len(node.args) > 1 and not isinstance(node.args[-1], ast.Starred):
            yield "argument", node, _changed(node, args=node.args[:-1])


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _other_constants(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [type(value)(0)] if value == 1 else [value + 1]
    return []


def _is_for_types(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.AnnAssign):
        return "TypeAlias" in ast.dump(statement.annotation)
    value = getattr(statement, "value", None)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in _TYPES_ONLY:
        return True
    is_union = isinstance(statement, ast.Assign) and isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr)
    return is_union and isinstance(statement.targets[0], ast.Name) and statement.targets[0].id[0].isupper()


def _can_be_dropped(statement: ast.stmt, bound: set[str]) -> bool:
    """Return whether the module would still make sense: a name that stands there for the first time would be missed."""
    if isinstance(statement, (ast.Expr, ast.AugAssign, ast.Raise, ast.Continue, ast.Break)):
        return True
    if not isinstance(statement, ast.Assign):
        return False
    names = [node for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return all(not _is_stored(node) or node.id in bound for node in names)


def _is_stored(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_message(parent: ast.AST, child: ast.AST) -> bool:
    """Return whether a node is the text of a message, or the call that builds an error out of one."""
    if isinstance(child, ast.JoinedStr) or isinstance(parent, ast.Raise):
        return True
    if not isinstance(child, ast.Call):
        return False
    name = ast.unparse(child.func)
    return name == "warnings.warn" or name.endswith("Error")


def collect(module: str, package: pathlib.Path) -> dict[Mutant, str]:
    """Return the mutants of a module, each with the whole text of the module."""
    source = (package / module).read_bytes()
    starts, found = [0], {}
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for kind, node, new in mutants_of(source.decode()):
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[node.end_lineno - 1] + node.end_col_offset
        text = ast.unparse(ast.fix_missing_locations(new))
        if isinstance(new, ast.expr) and not isinstance(new, ast.Constant):
            text = f"({text})"
        mutated = source[:first] + text.encode() + source[last:]
        with contextlib.suppress(SyntaxError):  # A number inside a pattern or a type, which cannot be an expression.
            ast.parse(mutated)
            mutant = Mutant(module, node.lineno, node.col_offset, kind, ast.unparse(node), text)
            found[mutant] = mutated.decode()
    return found


def sample(package: pathlib.Path, keras_files: bool, size: int, seed: int) -> dict[Mutant, str]:
    """Return a seeded share of the mutants of each module, of about `size` in all and at least three of each."""
    modules = [str(path.relative_to(package)) for path in sorted(package.rglob("*.py")) if path.name[:2] != "__"]
    modules = [m for m in modules if m.startswith("keras_files") == keras_files and not m.startswith("commands")]
    each = {module: collect(module, package) for module in modules}
    share, chosen = size / sum(map(len, each.values())), {}
    for module, mutants in each.items():
        order = list(mutants)
        random.Random(f"{seed} {module}").shuffle(order)
        chosen |= {mutant: mutants[mutant] for mutant in order[: max(3, round(share * len(order)))]}
    return chosen


def tests_of(module: str) -> list[str]:
    """Return the tests that mirror a module: those of the longest entry of the table that it begins with."""
    entry = max((entry for entry in TESTS if module.startswith(entry)), key=len)
    return [f"tests/{test}" for test in dict.fromkeys(TESTS[entry])] + [f"optax_kadam/{module}"]


def run_tests(place: pathlib.Path, tests: list[str], timeout: float) -> tuple[str, float, str]:
    """Run tests in a fork; return what became of the mutant, the seconds, and why.

    "killed" where a test failed or could not be collected, "survived", "timeout", or "broken" where pytest itself did
    not run.
    """
    begun, log = time.monotonic(), place / "log.txt"
    child = os.fork()
    if child == 0:
        status = 3
        try:
            os.setsid()
            with open(log, "wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            status = _run_pytest(place, tests)
        except BaseException:
            traceback.print_exc()
        finally:  # An exception must not leave the fork: the folder is the first process's to remove.
            sys.stdout.flush()
            os._exit(status)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - begun
        if done:
            break
        if seconds > timeout:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout", seconds, ""
        time.sleep(0.02)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return "survived", seconds, ""
    lines = log.read_text(errors="replace").splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "broken" if code > 2 else "killed", seconds, (failures or lines or [""])[-1][:300]


def _run_pytest(place: pathlib.Path, tests: list[str]) -> int:
    import pytest

    os.chdir(place)
    sys.path[:] = [str(place), *(path for path in sys.path if path not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]  # This program is among the tests: the others are to be those of the copy.
    options = ["-x", "-q", "-n0", "--tb=line", "-p", "no:cacheprovider", "--assert=plain"]
    options += ["-m", "not slow and not tpu and not gpu and not compiler"]
    # The jitted runs of 200 steps take minutes; those that are op by op, of 10 steps, hold the same equations.
    options += ["-k", "not (test_recorded_run and jit)"]
    return int(pytest.main([*options, *tests]))


def run(chosen: dict[Mutant, str], out: pathlib.Path, again: bool) -> None:
    """Run the tests of each mutant that has no result yet, or, with `again`, that survived."""
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]: it is a TextIOWrapper.
    results = read(out)
    todo = [m for m in chosen if m not in results or (again and results[m]["result"] == "survived")]
    print(f"{len(chosen)} mutants, {len(todo)} to run")
    os.environ |= {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax"}
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(tempfile.gettempdir()) / f"mutate-cache-{os.getuid()}")
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    for name in IMPORTED:
        importlib.import_module(name)
    assert not any(name.startswith("optax_kadam") for name in sys.modules), "the package must not be imported yet"

    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        for name in ("optax_kadam", "tests", "benchmarks"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", place)
        limits: dict[tuple[str, ...], float] = {}
        sys.dont_write_bytecode = True  # A module that is changed twice within a second would be read from it.
        for i, mutant in enumerate(todo):
            tests = tests_of(mutant.module)
            if tuple(tests[:-1]) not in limits:
                result, seconds, why = run_tests(place, tests, 1200)
                if result != "survived":
                    raise SystemExit(f"{mutant.module}: its tests must pass before anything is changed. {why}")
                limits[tuple(tests[:-1])] = 20 + TIMES_SLOWER * seconds
                print(f"        {seconds:5.1f} s  {mutant.module} as it is")
            path = place / "optax_kadam" / mutant.module
            original = path.read_bytes()
            path.write_text(chosen[mutant])
            result, seconds, why = run_tests(place, tests, limits[tuple(tests[:-1])])
            path.write_bytes(original)
            line = {**mutant._asdict(), "result": result, "seconds": round(seconds, 1), "by": why}
            with out.open("a") as file:
                file.write(f"{json.dumps(line)}\n")
            where = f"{mutant.module}:{mutant.line}"
            print(f"{i + 1:4}/{len(todo)} {seconds:5.1f} s  {result:8} {where}  {mutant.old} -> {mutant.new}")


def read(out: pathlib.Path) -> dict[Mutant, dict[str, object]]:
    """Return the last result of each mutant in a file of results."""
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return {Mutant(**{name: line[name] for name in Mutant._fields}): line for line in lines}


def report(results: dict[Mutant, dict[str, object]]) -> str:
    """Return the table of killed and survived mutants by module, and the survivors."""
    counts = collections.Counter((m.module, result["result"] != "survived") for m, result in results.items())
    rows = [(m, counts[m, True], counts[m, False]) for m in sorted({m for m, _ in counts})]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = ["| module | killed | survived |", "|---|---|---|", *(f"| {m} | {k} | {s} |" for m, k, s in rows), ""]
    for mutant, result in sorted(results.items()):
        if result["result"] == "survived":
            lines.append(f"{mutant.module}:{mutant.line} ({mutant.kind})\n    {mutant.old}\n    {mutant.new}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file of the results, a line for each mutant")
    parser.add_argument("--size", type=int, default=250, help="how many mutants to choose")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keras-files", action="store_true", help="change keras_files, and not the core and config")
    parser.add_argument("--module", help="change only modules whose path below the package begins so")
    parser.add_argument("--again", action="store_true", help="run the tests of survivors again")
    parser.add_argument("--report", action="store_true", help="print the table, and run nothing")
    arguments = parser.parse_args()
    chosen = sample(ROOT / "optax_kadam", arguments.keras_files, arguments.size, arguments.seed)
    chosen = {mutant: text for mutant, text in chosen.items() if mutant.module.startswith(arguments.module or "")}
    if not arguments.report:
        run(chosen, arguments.out, arguments.again)
    results = read(arguments.out)
    print(report({mutant: results[mutant] for mutant in chosen if mutant in results}))


if __name__ == "__main__":
    main()
