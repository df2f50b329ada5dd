"""Values of config.json, each checked as it is read: free of torch."""

import reprlib
from collections.abc import Mapping
from typing import Any

from compression.errors import CorruptCheckpoint

MAX_SIZE = 2**31
_MAX_NUMBER = 1e30
"""Far above any real model: a damaged count must not fill the memory with tensor names."""


def refusal(key: str, value: object, where: str, wanted: str) -> CorruptCheckpoint:
    """Return the error for a key whose value makes no sense."""
    return CorruptCheckpoint(
        f"{where}: config.json has {key} = {reprlib.repr(value)}, not {wanted}: "
        "fetch the checkpoint again"
    )


def read_size(
    config: Mapping[str, Any],
    key: str,
    where: str,
    *,
    default: int | None = None,
    limit: int = MAX_SIZE,
) -> int:
    """Return a whole number in 1..limit; ``default`` stands in for an absent or null one.

    Raises:
        CorruptCheckpoint: it is anything else.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is int and 0 < value <= limit:
        return value
    raise refusal(key, value, where, f"a whole number from 1 to {limit}")


def read_number(name: str, value: Any, where: str) -> float:
    """Return ``value`` if it is a number above 0.

    Raises:
        CorruptCheckpoint: it is anything else.
    """
    if type(value) in {int, float} and 0 < value <= _MAX_NUMBER:  # so not NaN
        return float(value)
    raise refusal(name, value, where, "a number above 0")


def read_flag(config: Mapping[str, Any], key: str, where: str, *, default: bool = False) -> bool:
    """Return true or false; ``default`` stands in for an absent or null one.

    Raises:
        CorruptCheckpoint: it is anything else.
    """
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise refusal(key, value, where, "true or false")
    return value
