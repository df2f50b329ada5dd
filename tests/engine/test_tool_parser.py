"""Tests of calls found in text, wherever its pieces end."""

import json
import random
from typing import Any

import pytest

from gateway.engine.tool_parser import CallDelta, ToolParser

CALL = (
    '<tool_call>\n{"name": "f", "arguments": {"a": "}</tool_call>\\"", "b": [1, {}]}}\n</tool_call>'
)
OTHER = '<tool_call>{"name":"g","arguments":{}}</tool_call>'


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Return the text, and name and arguments of each call."""
    parser = ToolParser()
    found: list[str | CallDelta] = [part for piece in pieces for part in parser.push(piece)]
    found += parser.flush()
    text = "".join(part for part in found if isinstance(part, str))
    calls: list[tuple[str, str]] = []
    for part in found:
        if isinstance(part, CallDelta):
            if part.id is not None:
                assert part.id.startswith("call_")
                calls.append((str(part.name), part.arguments))
            else:
                calls[part.index] = (calls[part.index][0], calls[part.index][1] + part.arguments)
    return text, calls


CASES: list[tuple[str, str, list[tuple[str, Any]]]] = [
    ("plain text", "plain text", []),
    ("ends white \n", "ends white \n", []),
    ("a < b <tool", "a < b <tool", []),
    (CALL, "", [("f", {"a": '}</tool_call>"', "b": [1, {}]})]),
    (f"Let me see.\n\n{CALL}", "Let me see.", [("f", {"a": '}</tool_call>"', "b": [1, {}]})]),
    (f"{OTHER}\n{OTHER}\n", "", [("g", {}), ("g", {})]),
    ('<tool_call>{"arguments": {"x": 1}, "name": "g"}</tool_call>', "", [("g", {"x": 1})]),
    ('<tool_call>{"name": "g", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [("g", {"x": 1})]),
    ('<tool_call>{"name": "g", "parameters": {"x": 1}}</tool_call>', "", [("g", {"x": 1})]),
    ('<tool_call>{"name": "g", "arguments": {"x": 1}}', "", [("g", {"x": 1})]),
    ("<tool_call>no JSON</tool_call> b", "<tool_call>no JSON</tool_call> b", []),
    ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
    ("<tool_call>cut", "<tool_call>cut", []),
]


@pytest.mark.parametrize(("answer", "text", "calls"), CASES)
def test_calls_are_found_wherever_pieces_end(
    answer: str, text: str, calls: list[tuple[str, Any]]
) -> None:
    """One piece, single characters and random pieces give the same text and calls."""
    chooser = random.Random(1)
    for size in (len(answer), 1, *[0] * 20):
        pieces, rest = [], answer
        while rest:
            cut = size or chooser.randrange(1, 9)
            pieces.append(rest[:cut])
            rest = rest[cut:]
        found_text, found_calls = read(pieces)
        assert found_text == text
        assert [(name, json.loads(arguments)) for name, arguments in found_calls] == calls


def test_arguments_stream_as_they_are_written() -> None:
    """The name comes before the arguments are complete, and each piece at once."""
    parser = ToolParser()
    parser.push('<tool_call>{"name": "f", "arguments": ')
    [start, piece] = parser.push('{"a": ')

    assert isinstance(start, CallDelta)
    assert (start.name, start.arguments) == ("f", "")
    assert piece == CallDelta(0, '{"a": ')
    assert parser.push("1") == [CallDelta(0, "1")]


def test_a_call_cut_off_keeps_what_it_has() -> None:
    """An answer that ends within arguments has passed them on, and says nothing else."""
    assert read(['<tool_call>{"name": "f", "arguments": {"a": 1']) == ("", [("f", '{"a": 1')])
