"""The arrows between the files: imports lead one way, as the house is drawn.

The files are read and not run, so that an import inside a function counts too.
"""

import ast
import graphlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
PATHS = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("optax_kadam/**/*.py")}
FILES = {name.removesuffix(".__init__"): path for name, path in PATHS.items()}
FLOORS = (
    {"__main__"},
    {"__init__"},
    {"commands"},
    {"keras_files"},
    {"config"},
    {"_kadam", "embeddings"},
    {"stages"},
    {"_gradients", "_hyperparameter", "_generations", "_masks", "_zero1", "_placed", "schedules"},
    {"_schedule"},
    {"_xla", "_mesh", "_check", "_flax", "_precision", "_call", "conversions"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
BEYOND_THE_CORE = {"__main__", "commands", "keras_files", "config"}
CORE_NEEDS = {"optax_kadam", "jax", "jaxlib", "numpy", "optax", "chex", *sys.stdlib_module_names}


def imported_names(path):
    """What a file imports: modules, and `module.name` for what it takes out of one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} must import by full names"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = sorted((file, name) for file, path in FILES.items() for name in imported_names(path))
OWN = [(file, name) for file, name in IMPORTS if name.split(".")[0] == "optax_kadam"]
ARROWS = [(file, name if name in FILES else name.rpartition(".")[0]) for file, name in OWN]


def room(file):
    """The file or folder directly in the package that `file` is, or is in."""
    return f"{file}.__init__".split(".")[1]


def test_imports_lead_down():
    assert not [(file, to) for file, to in ARROWS if FLOOR_OF[room(to)] < FLOOR_OF[room(file)]]
    assert not [(file, to) for file, to in ARROWS if room(file) == room(to) == "stages"]
    assert {room(file) for file, to in ARROWS if room(to) == "embeddings"} == {"__init__", "embeddings"}


def test_the_core_needs_jax_and_optax_alone():
    core = [(file, name) for file, name in IMPORTS if room(file) not in BEYOND_THE_CORE]
    assert not [(file, name) for file, name in core if name.split(".")[0] not in CORE_NEEDS]
    assert not [(file, name) for file, name in IMPORTS if name.startswith(("jax._src", "optax._src"))]


def test_only_one_file_knows_both_containers_and_layouts():
    containers, layouts = "optax_kadam.keras_files.containers", "optax_kadam.keras_files.layouts"
    know_containers, know_layouts = ({file for file, to in ARROWS if to.startswith(f)} for f in (containers, layouts))
    assert know_containers & know_layouts == {"optax_kadam.keras_files._open"}
    assert not [file for file in know_containers if file.startswith(layouts)]
    assert not [file for file in know_layouts if file.startswith(containers)]


def test_there_is_no_circle():
    """A folder stands for all that is in it: where its neighbours and it form no circle, neither do files."""
    for folder in {name.rpartition(".")[0] for name in PATHS}:
        inside, depth = f"{folder}.", folder.count(".") + 1
        graph = graphlib.TopologicalSorter()
        for arrow in ARROWS:
            if all(file.startswith(inside) for file in arrow):
                start, end = (file.split(".")[depth] for file in arrow)
                graph.add(start, *{end} - {start})
        graph.prepare()
