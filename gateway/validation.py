"""What pydantic finds wrong with data from outside, reduced to one place and one reason."""

from typing import NamedTuple

from pydantic import ValidationError


class Problem(NamedTuple):
    """What is wrong first."""

    where: str
    """The field's path with dots; empty where it is the whole."""
    reason: str


def first_problem(error: ValidationError) -> Problem:
    """Return the first problem of several."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return Problem(where, first["msg"].removeprefix("Value error, "))
