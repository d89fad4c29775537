"""The command line: `python -m optax_kadam demo`."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from optax_kadam._kadam import kadam

# The arguments of `kadam` that have a flag, which takes its name and its default from there.
_HYPERPARAMETERS = {
    "learning_rate": "size of a step",
    "beta_1": "decay of the first moment",
    "beta_2": "decay of the second moment",
    "epsilon": "what Keras adds to the raw root; 1e-3 makes the difference to optax plain",
    "amsgrad": "divide by the running maximum of the second moment",
    "weight_decay": "decoupled weight decay per unit of learning rate",
    "clipnorm": "largest norm of each gradient",
    "clipvalue": "largest absolute value of an element of a gradient",
    "global_clipnorm": "largest norm of all gradients together",
}
_IMAGES = 1797  # The number of scikit-learn's digits: a larger batch could not be filled.


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that `argv`, by default the command line, names."""
    parser = _Parser(prog="python -m optax_kadam", description="Keras's Adam for JAX, exact to the bit.")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_demo(commands.add_parser("demo", help="train a digits classifier with Keras, kadam and optax, and compare"))
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a digits classifier with Keras, kadam and optax.adam, from one start on one stream."
    for name, meaning in _HYPERPARAMETERS.items():
        flag, default = f"--{name.replace('_', '-')}", inspect.signature(kadam).parameters[name].default
        if default is False:
            parser.add_argument(flag, action="store_true", help=meaning)
        else:
            shown = "off" if default is None else default
            parser.add_argument(flag, type=float, default=default, metavar="X", help=f"{meaning} (default: {shown})")
    for flag, default, low, high, meaning in (
        ("--epochs", 20, 1, None, "how often all images are seen"),
        ("--batch-size", 32, 1, _IMAGES, "images to a step"),
        ("--seed", 0, 0, None, "of the initial weights and of the shuffling"),
    ):
        kind, shown = _integer(low, high), f"{meaning} (default: {default})"
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=shown)
    parser.add_argument(
        "--out",
        type=_writable_png,
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
        from optax_kadam import _demo
    except ImportError as error:
        parser.error(f"{error}. Install what the demo needs: pip install -e '.[demo]'")
    _demo.run(hyperparameters, arguments.epochs, arguments.batch_size, arguments.seed, arguments.out)


def _integer(low: int, high: int | None) -> Callable[[str], int]:
    """Return the argument type of the integers from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            bounds = f">= {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be an integer {bounds}. Received: {text!r}.")
        return int(text)

    return parse


def _writable_png(text: str) -> Path:
    """Return the path if a PNG can be written there, which only an attempt can tell."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must end in .png. Received: {text!r}.")
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot be written: {error.strerror}. Received: {text!r}.") from error
    if not existed:
        path.unlink()
    return path


if __name__ == "__main__":
    main()
