"""JSON objects in Keras's files: parsed strictly and within bounds, or refused by the name of the file.

A configuration is small, but its values take up to 30 times the memory of its text. Hence the text is bounded.
"""

import collections
import json
import math
from typing import NoReturn

from optax_kadam.keras_files._source import DAMAGED, UNTRUSTED, Source

LONGEST = 1 << 20  # Bytes; a layer takes about 1 KB.
_MOST_DIGITS = 20  # Those of 2^64 - 1.
_MOST_LEVELS = 200  # A model of 30 nested models has about 130.


def read_json(source: Source, longest: int = LONGEST) -> dict[str, object]:
    """Return the JSON object that is all of `source`, if it has at most `longest` bytes."""
    if source.size > longest:
        raise _too_long(source.size, source.name, longest)
    return parse_json(source.read(), source.name, longest)


def parse_json(text: bytes, where: object, longest: int = LONGEST) -> dict[str, object]:
    """Return the JSON object in `text`, read from `where`, if it has at most `longest` bytes."""
    if len(text) > longest:
        raise _too_long(len(text), where, longest)
    try:
        parsed = json.loads(
            text.decode(),
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"A configuration must be JSON as Keras writes it. Received: {str(where)!r}, in which this is wrong: "
            f"{error}. {DAMAGED}"
        ) from error
    if not isinstance(parsed, dict):
        raise ValueError(
            f"A configuration must be a JSON object. Received: {str(where)!r}, which is a {type(parsed).__name__}. "
            f"{UNTRUSTED}"
        )
    _check_levels(parsed, where)
    return parsed


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        ((repeated, _),) = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated[:50]!r} is there more than once")
    return parsed


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:50]} is no float")
    return number


def _int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits")
    return int(text)


def _check_levels(parsed: object, where: object) -> None:
    """Raise if objects and lists are nested too deeply for the functions that call themselves to walk through them."""
    level = [parsed]
    for _ in range(_MOST_LEVELS):
        nested = [value for value in level if isinstance(value, (dict, list))]
        level = [inner for value in nested for inner in (value.values() if isinstance(value, dict) else value)]
    if level:
        raise ValueError(
            f"A configuration may be nested {_MOST_LEVELS} times. Received: {str(where)!r}, which is nested more. "
            f"{UNTRUSTED}"
        )


def _too_long(size: int, where: object, longest: int) -> ValueError:
    return ValueError(
        f"A configuration may have {longest} bytes beside weights of this size. Received: {str(where)!r}, which has "
        f"{size}. {UNTRUSTED}"
    )
