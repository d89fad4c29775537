"""The command line: `python -m optax_kadam {demo,inspect,convert,order,compare}`."""

import argparse
import contextlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jax

from optax_kadam._kadam import kadam
from optax_kadam.config._parse import parse
from optax_kadam.keras_files._contents import Hints
from optax_kadam.keras_files._open import hints_of

# The arguments of `kadam` that have a flag, with the help of the flag. Name and default are those of the argument.
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
_RESTORING = """\
To restore it, for a model whose modules are called as Keras's layers (otherwise use --rename):

  import orbax.checkpoint as ocp, optax_kadam as ok
  checkpointer = ocp.StandardCheckpointer()
  tx = ok.from_config(checkpointer.metadata(OUT).custom_metadata["optimizer"])
  target = {"params": params, "opt_state": tx.init(params), "non_trainable": batch_stats}
  restored = checkpointer.restore(OUT, target)

OUT is an absolute path. With Flax Linen, params is variables["params"] and batch_stats is
variables["batch_stats"], or {} where the model has none. With Flax NNX they are
nnx.to_pure_dict(nnx.state(model, nnx.Param)) and nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)); afterwards:

  nnx.update(model, restored["params"])
  nnx.update(model, restored["non_trainable"])
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  leaves = jax.tree.leaves(restored["opt_state"])
  optimizer.opt_state = jax.tree.unflatten(jax.tree.structure(optimizer.opt_state), leaves)

What Keras did not train is in non_trainable, frozen layers too. If FILE holds no optimizer configuration and
--config gives none, build tx with the arguments of Keras's optimizer.
"""
_IMAGES = 1797  # scikit-learn's digits are so many: a larger batch cannot be filled.


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print `message`, and leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that is named by `argv`, or by the command line if `argv` is None."""
    parser = _Parser(prog="python -m optax_kadam", description="Keras's Adam for JAX, exact to the bit.")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_demo(commands.add_parser("demo", help="train a digits classifier with Keras, kadam and optax, and compare"))
    _add_inspect(commands.add_parser("inspect", help="show what a file that Keras saved holds"))
    _add_convert(commands.add_parser("convert", help="write a training that Keras saved as an Orbax checkpoint"))
    _add_order(
        commands.add_parser("order", help="write in which order an optimizer keeps its variables, where Keras is")
    )
    _add_compare(commands.add_parser("compare", help="say whether two trainings are the same, and where they differ"))
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
        ("--seed", 0, 0, None, "seed of the initial weights and of the shuffling"),
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
        from optax_kadam.commands import _demo
    except ImportError as error:
        parser.error(f"{error}. Install what the demo needs: pip install -e '.[demo]'")
    _demo.run(hyperparameters, arguments.epochs, arguments.batch_size, arguments.seed, arguments.out)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show the optimizer, and the variables with the norms (in float64) of weights and moments."
    _add_file(parser)
    parser.set_defaults(run=lambda arguments: _run_inspect(parser, arguments))


def _run_inspect(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from optax_kadam.commands import _inspect

    with _refusing(parser):
        text = _inspect.describe(arguments.file, _hints(arguments))
    _print(text)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` closes the pipe; without this, Python complains again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Write an Orbax checkpoint of {'params', 'opt_state', 'non_trainable'}: nested dicts under Keras's paths,\n"
        "without the model's name, in Flax's words (embedding, scale, bias, mean, var)."
    )
    parser.epilog = _RESTORING
    _add_file(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the checkpoint, which must not exist")
    _add_rename(parser, "what a part of Keras's paths is called in the checkpoint, as m/d1=Dense_0")
    parser.set_defaults(run=lambda arguments: _run_convert(parser, arguments))


def _add_rename(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument(
        "--rename", type=_renaming, action="extend", nargs="+", default=[], metavar="KERAS=HERE", help=meaning
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
        "Load a model in Keras, and write the order in which its optimizer keeps the variables: for a file that "
        "inspect and convert refuse because its order does not follow, on a machine without Keras."
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
        "Compare two trainings: files that Keras saved, or Orbax checkpoints of {'params', 'opt_state'}. The exit "
        "status is 0 if they are equal, or within the bounds that are given, 1 if not, and 2 if they are no trainings."
    )
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
    from optax_kadam.keras_files._compare import compare

    rename = _rename(parser, arguments.rename)
    with _refusing(parser):
        found = compare(arguments.a, arguments.b, rename=rename or None, skip=arguments.skip, start=arguments.start)
    _print(str(found))
    bounds = {name: bound for name in ("ulp", "share") if (bound := getattr(arguments, name)) is not None}
    sys.exit(0 if found.within(**bounds or {"ulp": 0}) else 1)


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ulp", type=_bound, metavar="N", help="largest distance in units in the last place")
    parser.add_argument("--share", type=_bound, metavar="X", help="largest distance as a share, as 1e-6")


def _bound(text: str) -> float:
    """Return the number >= 0 that `text` is."""
    with contextlib.suppress(ValueError):
        if (bound := float(text)) >= 0:
            return bound
    raise argparse.ArgumentTypeError(f"must be a number >= 0. Received: {text!r}.")


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what Keras saved, of any format that load_keras reads")
    parser.add_argument(
        "--config",
        type=_config_file,
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


def _config_file(text: str) -> Mapping[str, object]:
    """Return the configuration of an optimizer in the JSON file whose path is `text`."""
    try:
        config = json.loads(Path(text).read_bytes())
        parse(config)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot be read: {error.strerror}. Received: {text!r}.") from error
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must be a JSON file of an optimizer's get_config(). {error}") from error
    return config


def _renaming(text: str) -> tuple[str, str]:
    """Return both sides of `KERAS=HERE`."""
    keras_name, _, new_name = text.partition("=")
    if not keras_name or not new_name:
        raise argparse.ArgumentTypeError(f"must be KERAS=HERE. Received: {text!r}.")
    return keras_name, new_name


def _integer(low: int, high: int | None) -> Callable[[str], int]:
    """Return the function that reads an integer from `low` to `high`; None is no bound."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            bounds = f">= {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be an integer {bounds}. Received: {text!r}.")
        return int(text)

    return parse


def _writable_png(text: str) -> Path:
    """Return the path `text` if a PNG can be written there. Only trying to write tells."""
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
