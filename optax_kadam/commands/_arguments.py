"""The types of arguments: what argparse calls with the text of one, and whose errors it prints."""

import argparse
import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from optax_kadam.config._parse import parse


def config_file(text: str) -> Mapping[str, object]:
    """Return the configuration of an optimizer in the JSON file whose path is `text`."""
    try:
        config = json.loads(Path(text).read_bytes())
        parse(config)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot be read: {error.strerror}. Received: {text!r}.") from error
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must be a JSON file of an optimizer's get_config(). {error}") from error
    return config


def renaming(text: str) -> tuple[str, str]:
    """Return both sides of `KERAS=HERE`."""
    keras_name, _, new_name = text.partition("=")
    if not keras_name or not new_name:
        raise argparse.ArgumentTypeError(f"must be KERAS=HERE. Received: {text!r}.")
    return keras_name, new_name


def integer(low: int, high: int | None) -> Callable[[str], int]:
    """Return the function that reads an integer from `low` to `high`; None is no bound."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            bounds = f">= {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be an integer {bounds}. Received: {text!r}.")
        return int(text)

    return parse


def bound(text: str) -> float:
    """Return the number >= 0 that `text` is."""
    with contextlib.suppress(ValueError):
        if (number := float(text)) >= 0:
            return number
    raise argparse.ArgumentTypeError(f"must be a number >= 0. Received: {text!r}.")


def writable_png(text: str) -> Path:
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
