"""Sphinx's configuration: `sphinx-build -W --keep-going -n docs build/docs`."""

import ast
import dataclasses
import functools
import inspect
import os
import pathlib
import re
import shutil
import textwrap
import types
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

import optax_kadam

HERE = pathlib.Path(__file__).parent
REPOSITORY = "https://github.com/optax-kadam/optax_kadam/blob/main"
# Sphinx reads below its own folder alone. Times are kept, so that what did not change is not read again.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns("__pycache__", ".*"))

project = "optax_kadam"
version = release = optax_kadam.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
default_role = "public"

html_theme = "furo"
html_title = "optax_kadam"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_copyright = False
html_domain_indices = False  # Of modules, of which there are two to name.
pygments_dark_style = "a11y-high-contrast-dark"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # The outputs are stored; `pytest --nbmake notebooks` runs them.

autosummary_generate = True
autodoc_member_order = "bysource"
maximum_signature_line_length = 80
napoleon_use_rtype = False
napoleon_preprocess_types = False
# There are no inventories of other projects, so that the build needs no network. Every name of this one must resolve.
nitpick_ignore_regex = [("py:.*", r"(?!optax_kadam).*")]

# What annotations call by names that are not public.
ALIASES = {
    "Arrays": "dict[str, np.ndarray]",
    "Conversion": "Callable[[np.ndarray], np.ndarray]",
    "Generation": "Literal['keras3', 'tf_keras', 'legacy']",
    "Mask": "Callable | PyTree",
    "Number": "float | jax.Array",
    "Order": "Literal['named', 'listed', 'shapes', 'given', 'live'] | None",
    "Rename": "Callable | Mapping",
    "Trainable": "Sequence | str | os.PathLike",
    "Training": "KerasTraining",
    "Tree": "PyTree",
}

# A type has no docstring of its own.
TYPES = {
    "optax_kadam.Hyperparameter": "A learning rate or a beta may be a number, a scalar array or a `Schedule`.",
    "optax_kadam.Schedule": """A function from the step, counted from 0, to a number; or a callable without arguments,
which is asked for its value at every step, under `jit` through a host callback.""",
}


def public_names() -> Iterator[str]:
    """Yield what a user may name: `kadam`, `schedules`, `schedules.CosineDecay`, `KerasTraining.restore`."""
    for name, value in vars(optax_kadam).items():
        internal = isinstance(value, types.ModuleType) and name not in ("conversions", "schedules")
        if name.startswith("_") or internal:
            continue
        yield name
        if isinstance(value, type | types.ModuleType):
            own = getattr(value, "__module__", value.__name__)
            for member, attribute in vars(value).items():
                if not member.startswith("_") and getattr(attribute, "__module__", own) == own and callable(attribute):
                    yield f"{name}.{member}"


@functools.cache
def targets() -> dict[str, str]:
    """Return where single backticks lead: the full path of each public name, by its full and its last words."""
    full = {name: f"optax_kadam.{name}" for name in public_names()}
    short = {name.split(".")[-1]: path for name, path in full.items() if "schedules." in name or "conversions." in name}
    return short | full | {f"ok.{name}": path for name, path in full.items()}


def linked(code: nodes.literal, name: str) -> nodes.Node:
    """Return `code`, inside a link where it is a public name."""
    target = targets().get(re.split(r"[(\[]", name)[0])
    if target is None:
        return code
    options = {"refdomain": "py", "reftype": "obj", "reftarget": target, "refexplicit": True}
    return addnodes.pending_xref(name, code, **options)


def public(role: str, rawtext: str, text: str, *_: Any) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """Show what stands in single backticks as code, with a link where it is a public name."""
    return [linked(nodes.literal(rawtext, text, classes=["py", "py-obj"]), text)], []


def lead_out(app: Sphinx, page: str, source: list[str]) -> None:
    """Lead a link out of `docs`, as it works in the repository, to the page of a notebook or to the repository."""
    folder = (HERE / page).parent

    def led(link: re.Match[str]) -> str:
        path = (folder / link[1]).resolve()
        if path.is_relative_to(HERE) or not path.exists() or path.suffix == ".png":
            return link[0]
        if path.suffix == ".ipynb":
            return f"]({os.path.relpath(HERE / 'notebooks' / path.name, folder)}"
        return f"]({REPOSITORY}/{path.relative_to(HERE.parent)}"

    source[0] = re.sub(r"\]\(((?:\.\./)+[^)#\s]+)", led, source[0])


def tidy(app: Sphinx, doctree: nodes.document) -> None:
    """Link public names that stand with `ok.` in code, and drop the blank line that a doctest needs at its end."""
    for block in doctree.findall(nodes.literal_block):
        if block.rawsource == block.astext() != block.astext().rstrip():
            block.rawsource = block.astext().rstrip()
            block.children = [nodes.Text(block.rawsource)]
    for code in list(doctree.findall(nodes.literal)):
        if code.astext().startswith("ok.") and not isinstance(code.parent, nodes.reference | addnodes.pending_xref):
            code.replace_self(linked(code.deepcopy(), code.astext()))


def with_blocks(app: Sphinx, what: str, name: str, value: object, options: Any, lines: list[str]) -> None:
    """Make code blocks of what a docstring indents, and let a plural's s follow a backtick."""
    if name in TYPES:
        lines[:] = TYPES[name].splitlines()
    lines[:] = [re.sub(r"(`[^`]+`)(s\b)?", lambda m: m[1] + (r"\ s" if m[2] else ""), line) for line in lines]
    result: list[str] = []
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        before = [earlier for earlier in lines[:i] if earlier.strip()]
        starts = i > 0 and not lines[i - 1].strip() and bool(before)
        deeper = starts and indent - (len(before[-1]) - len(before[-1].lstrip())) == 4
        if deeper and before[-1].rstrip().endswith((":", ".")) and not line.lstrip().startswith((">>>", "- ")):
            result += [f"{' ' * (indent - 4)}.. code-block:: default", ""]
        result.append(line)
    lines[:] = result


def signature_of(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str] | None:
    """Write a signature as the source does, with the words of `ALIASES` in the place of names that are not public."""
    if what == "class" and "__init__" in vars(value) and not dataclasses.is_dataclass(value):
        value = value.__init__
    elif what == "class":  # A dataclass or a NamedTuple.
        fields = inspect.signature(value).parameters.values()
        plain = [
            field.annotation if field.annotation in (bool, int, float, str | None) else field.empty for field in fields
        ]
        fields = [field.replace(annotation=kind) for field, kind in zip(fields, plain, strict=True)]
        return str(inspect.Signature(fields)), ""
    function = inspect.unwrap(value) if callable(value) else value
    if not isinstance(function, types.FunctionType):
        return None
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[-1]
    if not isinstance(node, ast.FunctionDef):
        return None
    arguments = node.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]

    def plain(text: str) -> str:
        for alias, meaning in ALIASES.items():
            text = re.sub(rf"\b(?<![.]){alias}\b", meaning, text)
        return text.replace("jax.typing.", "")

    return f"({plain(ast.unparse(arguments))})", plain(ast.unparse(node.returns)) if node.returns else ""


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.add_role("public", public)
    app.connect("source-read", lead_out)
    app.connect("doctree-read", tidy)
    app.connect("autodoc-process-docstring", with_blocks, priority=400)  # Before napoleon.
    app.connect("autodoc-process-signature", signature_of)
