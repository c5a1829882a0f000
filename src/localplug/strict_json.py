"""JSON from files that others may have written: whatever is wrong with it is one ValueError, and nothing is ambiguous."""

import json
from typing import Any


def parse(data: bytes | str, what: str) -> Any:
    """The value.

    Args:
        data: the text, in UTF-8 if it is bytes.
        what: names it in errors.

    Raises:
        ValueError: it is no JSON or no UTF-8, gives a key twice, or is nested too deeply to be read.

    Example:
        >>> parse(b'{"a": [1, 2]}', "this")
        {'a': [1, 2]}
    """
    try:
        return json.loads(data if isinstance(data, str) else data.decode("utf-8"), object_pairs_hook=_object)
    except ValueError as error:  # also of UTF-8, of keys, and of integers with thousands of digits
        raise ValueError(f"{what} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{what} is not valid JSON: it is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {twice!r} twice")
    return found
