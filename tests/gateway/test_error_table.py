"""The errors as a whole: one status, type and code a class, and a README that knows them all."""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import errors
from gateway.engine_failures import refusal
from gateway.envelope import MAX_RETRY_AFTER_S, render
from gateway.errors import (
    ApiError,
    EngineRefused,
    InternalError,
    NarrowgateError,
    RequestRateExceeded,
    Unavailable,
)

DRAWING = (errors.__doc__ or "").split("\n\n")[1].splitlines()
README = Path(__file__).parents[2] / "README.md"
TYPES = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}


def classes(root: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    """Return the gateway's error classes that a client can meet, bases with children included."""
    for child in root.__subclasses__():
        if child.__module__.startswith("gateway.") and "engine." not in child.__module__:
            yield child
            yield from classes(child)


LEAVES = [kind for kind in classes() if kind is not EngineRefused]


def make(kind: type[ApiError]) -> ApiError:
    """Return an error of this class."""
    if issubclass(kind, RequestRateExceeded):
        return kind("m", retry_after_s=1, headers={})
    return InternalError() if kind is InternalError else kind("m")


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_error_is_a_whole_reply(kind: type[ApiError]) -> None:
    """Status and type agree, the envelope has its four keys, and what may be retried says when."""
    error = make(kind)
    status, headers, body = render(error)
    found = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["type"] == TYPES.get(status, found["type"])
    assert re.fullmatch(r"[a-z_]+", found["code"])
    if status in {429, 503}:
        assert 1 <= int(headers["retry-after"]) <= MAX_RETRY_AFTER_S
    assert headers["x-should-retry"] == ("true" if status in {408, 429, 503} else "false")


def test_codes_are_not_shared() -> None:
    """No two classes of errors have one code, but for the two rates, which OpenAI tells by type."""
    codes = [(kind.code, kind.type) for kind in LEAVES]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("headers", [{}, {"retry-after": "0"}, {"retry-after": "900"}])
def test_a_full_engine_always_says_when_to_come_again(headers: dict[str, str]) -> None:
    """429 and 503 of an engine carry Retry-After, whatever the engine said."""
    for status in (429, 503):
        _, found, _ = render(refusal(status, headers, b"{}"))
        assert 1 <= int(found["retry-after"]) <= MAX_RETRY_AFTER_S
        assert found["x-should-retry"] == "true"


def row(kind: type[ApiError]) -> str:
    """Return the README's row of one class; the meaning is the first line of its docstring."""
    meaning = (inspect.getdoc(kind) or "").partition("\n")[0].rstrip(".")
    again = "yes" if make(kind).should_retry else "no"
    return f"| {kind.status} | `{kind.code}` | {meaning} | {again} |"


def test_the_readme_lists_every_error() -> None:
    """The table in the README is that of the tree, row by row."""
    section = README.read_text(encoding="utf-8").partition("\n## Errors\n")[2].partition("\n## ")[0]
    found = [line for line in section.splitlines() if re.match(r"\| \d{3} ", line)]
    expected = sorted(map(row, LEAVES))
    assert found == expected, "the README's table should be:\n" + "\n".join(expected)


def drawn() -> list[tuple[int, str]]:
    """Return the tree at the head of the module: each depth and class, with the code it names."""
    lines = [re.match(r"([│├└─ ]*)(\w+)(?: +\d+ (\w+))?", line) for line in DRAWING]
    return [(len(at[1]) // 4, at[2] + (f" {at[3]}" if at[3] else "")) for at in lines if at]


def real(root: type[NarrowgateError] = NarrowgateError, depth: int = 0) -> set[tuple[int, str]]:
    """Return the same of the classes."""
    name = root.__name__
    if issubclass(root, ApiError) and root not in {ApiError, EngineRefused, Unavailable}:
        name += f" {root.code}"
    own = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return {(depth, name)}.union(*(real(child, depth + 1) for child in own))


def test_the_drawn_tree_is_the_tree() -> None:
    """No class of the module is missing in its drawing, and none stands there with another code."""
    found = drawn()
    assert len(found) == len(set(found))
    assert set(found) == real()
