"""The command line: `kadam {demo,inspect,convert,order,compare,replay}`, or `python -m optax_kadam`."""

import argparse
import contextlib
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

from optax_kadam import __version__
from optax_kadam._kadam import kadam
from optax_kadam.commands._arguments import bound, config_file, integer, renaming, writable_png
from optax_kadam.commands._recipe import RECIPE
from optax_kadam.keras_files._contents import Hints
from optax_kadam.keras_files._open import hints_of

# The arguments of `kadam` that have a flag, with the help of the flag. Name and default are those of the argument.
_HYPERPARAMETERS = {
    "learning_rate": "size of a step",
    "beta_1": "decay of the first moment",
    "beta_2": "decay of the second moment",
    "epsilon": "what Keras adds to the root of the raw second moment",
    "amsgrad": "divide by the running maximum of the second moment",
    "weight_decay": "decoupled weight decay per unit of learning rate",
    "clipnorm": "largest norm of each gradient",
    "clipvalue": "largest absolute value of an element of a gradient",
    "global_clipnorm": "largest norm of all gradients together",
}
_IMAGES = 1797  # scikit-learn's digits are so many: a larger batch cannot be filled.


class _Parser(argparse.ArgumentParser):
    """A parser whose texts are printed as they are written, and whose errors are one line, without the usage."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **arguments)

    def error(self, message: str) -> NoReturn:
        """Print `message`, and leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that is named by `argv`, or by the command line if `argv` is None."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        parser.exit(2, parser.format_help())
    arguments.run(arguments)


def _parser() -> _Parser:
    """Return the parser of the whole command line. Its program's name is the one under which it runs."""
    parser = _Parser(
        prog="kadam" if Path(sys.argv[0]).stem == "kadam" else "python -m optax_kadam",
        description="Keras's Adam for JAX, exact to the bit, and the files that Keras saves.",
        epilog="`kadam COMMAND --help` explains a command, with an example.",
        add_help=False,  # It is in the group below, so that the commands stand first.
    )
    commands = parser.add_subparsers(title="commands", metavar="command")
    for name, (summary, add_arguments) in _COMMANDS.items():
        add_arguments(commands.add_parser(name, help=summary))
    options = parser.add_argument_group("options")
    options.add_argument("-h", "--help", action="help", help="show this help")
    options.add_argument("--version", action="version", version=f"optax_kadam {__version__}", help="show the version")
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a digits classifier three times, from the same weights on the same\n"
        "batches: with Keras's Adam, with kadam, and with what optax has for the same\n"
        "arguments. Print how far the weights are from Keras's, and the losses, and draw\n"
        "both. Without flags it is Adam(amsgrad=True), where the optimizer decides."
    )
    parser.epilog = "example:\n  kadam demo --no-amsgrad --epsilon 1e-3 --out epsilon.png"
    for name, meaning in _HYPERPARAMETERS.items():
        flag, default = f"--{name.replace('_', '-')}", inspect.signature(kadam).parameters[name].default
        if name == "amsgrad":
            shown = f"{meaning} (default: on, which makes the difference to optax plain)"
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=True, help=shown)
        else:
            shown = "off" if default is None else default
            parser.add_argument(flag, type=float, default=default, metavar="X", help=f"{meaning} (default: {shown})")
    for flag, default, low, high, meaning in (
        ("--epochs", 20, 1, None, "how often all images are seen"),
        ("--batch-size", 32, 1, _IMAGES, "images to a step"),
        ("--seed", 0, 0, None, "seed of the initial weights and of the shuffling"),
    ):
        kind, shown = integer(low, high), f"{meaning} (default: {default})"
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=shown)
    parser.add_argument(
        "--out",
        type=writable_png,
        default="kadam_demo.png",
        metavar="PNG",
        help="path of the plot (default: %(default)s)",
    )
    parser.set_defaults(run=lambda arguments: _run_demo(parser, arguments))


def _run_demo(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    hyperparameters = {name: getattr(arguments, name) for name in _HYPERPARAMETERS}
    try:
        kadam(**hyperparameters)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    try:
        from optax_kadam.commands import _demo
    except ImportError as error:
        parser.error(f"{error}. Install what the demo needs: pip install -e '.[demo]'")
    _demo.run(hyperparameters, arguments.epochs, arguments.batch_size, arguments.seed, arguments.out)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the optimizer, its settings and its step count, and of each variable the\n"
        "shape and the norms of its weights and moments."
    )
    parser.epilog = "example:\n  kadam inspect model.keras"
    _add_file(parser)
    parser.set_defaults(run=lambda arguments: _run_inspect(parser, arguments))


def _run_inspect(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from optax_kadam.commands import _inspect

    with _refusing(parser):
        text = _inspect.describe(arguments.file, _hints(arguments), shutil.get_terminal_size().columns)
    _print(text)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` closes the pipe; without this, Python complains again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write an Orbax checkpoint of params, opt_state and non_trainable: nested dicts\n"
        "under Keras's paths, without the model's name, in Flax's words (embedding,\n"
        "scale, bias, mean, var)."
    )
    parser.epilog = f"example:\n  kadam convert model.keras checkpoint --rename m/d1=Dense_0\n\n{RECIPE}"
    _add_file(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the checkpoint, which must not exist")
    _add_rename(parser, "what a part of Keras's paths is called in the checkpoint, as m/d1=Dense_0")
    parser.set_defaults(run=lambda arguments: _run_convert(parser, arguments))


def _add_rename(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument(
        "--rename", type=renaming, action="extend", nargs="+", default=[], metavar="KERAS=HERE", help=meaning
    )


def _rename(parser: argparse.ArgumentParser, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the pairs of `--rename` as a dict."""
    parts = [part for part, _ in pairs]
    if repeated := [part for part in parts if parts.count(part) > 1]:
        parser.error(f"argument --rename: must name each part of Keras's paths once. Received: {repeated[0]!r} twice.")
    return dict(pairs)


def _run_convert(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    rename = _rename(parser, arguments.rename)
    try:
        from optax_kadam.commands import _convert
    except ImportError as error:
        parser.error(f"{error}. Install what convert needs: pip install -e '.[convert]'")
    jax.config.update("jax_platforms", "cpu")  # An accelerator may be too small, or in use.
    with _refusing(parser):
        summary = _convert.convert(arguments.file, arguments.out, _hints(arguments), rename)
    print(summary)


def _add_order(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Load a model in Keras, and write the order in which its optimizer keeps the\n"
        "variables. A file that inspect and convert refuse because that order does not\n"
        "follow from it can then be read on a machine without Keras: --trainable."
    )
    parser.epilog = (
        "example:\n  kadam order model.keras --import my_layers\n"
        "  kadam inspect model.keras --trainable model.keras.order.json"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a whole model that Keras can load")
    parser.add_argument("--out", type=Path, metavar="JSON", help="path of the order file (default: FILE.order.json)")
    parser.add_argument(
        "--keras", choices=("keras", "tf_keras"), default="keras", help="package that loads it (default: %(default)s)"
    )
    parser.add_argument(
        "--import", dest="modules", nargs="+", default=[], metavar="MODULE", help="modules with the model's own classes"
    )
    parser.set_defaults(run=lambda arguments: _run_order(parser, arguments))


def _run_order(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from optax_kadam.commands import _order

    out = arguments.out or arguments.file.with_name(f"{arguments.file.name}.order.json")
    with _refusing(parser):
        summary = _order.write_order(arguments.file, out, arguments.keras, arguments.modules)
    print(summary)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare two trainings: files that Keras saved, or Orbax checkpoints of params\n"
        "and opt_state. The exit status is 0 if they are equal, or within the bounds that\n"
        "are given, 1 if not, and 2 if they are no trainings."
    )
    parser.epilog = "example:\n  kadam compare model.keras checkpoint --share 1e-6"
    parser.add_argument("a", type=Path, metavar="A", help="a training")
    parser.add_argument("b", type=Path, metavar="B", help="another")
    _add_rename(parser, "what a part of Keras's paths is called in the checkpoint, as m/d1=Dense_0")
    parser.add_argument(
        "--skip", nargs="+", action="extend", default=[], metavar="NAME", help="path, slot or number to leave out"
    )
    parser.add_argument("--start", type=Path, metavar="PATH", help="training that both began with, for the shares")
    _add_bounds(parser)
    parser.set_defaults(run=lambda arguments: _run_compare(parser, arguments))


def _run_compare(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from optax_kadam.keras_files.comparing._compare import compare

    rename = _rename(parser, arguments.rename)
    with _refusing(parser):
        found = compare(arguments.a, arguments.b, rename=rename or None, skip=arguments.skip, start=arguments.start)
    _print(str(found))
    bounds = {name: given for name in ("ulp", "share") if (given := getattr(arguments, name)) is not None}
    sys.exit(0 if found.within(**bounds or {"ulp": 0}) else 1)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Hand the gradients that optax_kadam.record kept to the transformation of the\n"
        "recorded configuration, and compare the weights after each step. The exit status\n"
        "is 0 if they agree to the bit, or within the bounds that are given, op by op or\n"
        "jitted; 1 if not; and 2 if the file cannot be read."
    )
    parser.epilog = "example:\n  kadam replay first_steps.npz"
    parser.add_argument("recording", type=Path, metavar="RECORDING", help="a file that record wrote")
    _add_bounds(parser)
    parser.set_defaults(run=lambda arguments: _run_replay(parser, arguments))


def _run_replay(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from optax_kadam.commands._replay import replay

    with _refusing(parser):
        text, agrees = replay(arguments.recording, arguments.ulp, arguments.share)
    _print(text)
    sys.exit(0 if agrees else 1)


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ulp", type=bound, metavar="N", help="largest distance in units in the last place")
    parser.add_argument("--share", type=bound, metavar="X", help="largest distance as a share, as 1e-6")


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what Keras saved, of any format that load_keras reads")
    parser.add_argument(
        "--config",
        type=config_file,
        metavar="JSON",
        help="file of the optimizer's get_config(), for formats that do not hold it (.weights.h5, checkpoints)",
    )
    parser.add_argument(
        "--trainable",
        type=Path,
        metavar="JSON",
        help="what the command order wrote, for a file from which the order of the moments does not follow",
    )
    parser.add_argument(
        "--optimizer",
        default="optimizer",
        metavar="NAME",
        help="attribute of the model that it is, for one with several, as d_optimizer (default: %(default)s)",
    )


def _hints(arguments: argparse.Namespace) -> Hints:
    return hints_of(arguments.config, arguments.trainable, arguments.optimizer)


@contextlib.contextmanager
def _refusing(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turn an error about a file into one line on stderr and exit code 2."""
    try:
        yield
    except (ImportError, OSError, TypeError, ValueError) as error:
        parser.error(" ".join(str(error).split()))


# Each command: what it does, in one line, and the function that tells its parser the arguments and what to run.
_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "demo": ("train a classifier with Keras, kadam and optax, side by side", _add_demo),
    "inspect": ("show what a file that Keras saved holds", _add_inspect),
    "convert": ("write a training that Keras saved as an Orbax checkpoint", _add_convert),
    "order": ("write down, where Keras is, the order of a model's variables", _add_order),
    "compare": ("say whether two trainings are the same, and where they differ", _add_compare),
    "replay": ("say whether the optimizer takes the recorded steps of Keras's", _add_replay),
}

if __name__ == "__main__":
    main()
