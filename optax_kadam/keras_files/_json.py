"""JSON objects that stand in Keras's files: parsed, or refused by the name of the file."""

import json


def parse_json(text: bytes, where: object) -> dict[str, object]:
    """Return the JSON object in `text`, read from `where`."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"A configuration must be JSON: {error}. Received: {str(where)!r}. The file is damaged: copy it again."
        ) from error
    if not isinstance(parsed, dict):
        raise ValueError(f"A configuration must be a JSON object. Received: {type(parsed).__name__} in {str(where)!r}.")
    return parsed
