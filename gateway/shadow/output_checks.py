"""What can be seen of an answer alone: signs of a broken model, and forms that were asked for."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.shadow.answer import Answer

_LONGEST_UNIT = 80
_MIN_REPEATS = 8
_MIN_REPEATED = 48
"""Characters that the repetitions must fill together."""

# Rules, headings and tables are drawn with the other signs.
_RUN = re.compile(r"([^\w\s\-=*#.~|+/])\1{19}")
_UNREADABLE = re.compile("[\ufffd\x00-\x08\x0e-\x1f]")


def check(answer: Answer, fields: Mapping[str, Any]) -> dict[str, bool]:
    """Return for each check that applies whether the answer stands it."""
    text = answer.text
    results = {
        "empty": bool(text.strip() or answer.calls),
        "repetition": not repeats_at_the_end(text),
        "runs": _RUN.search(text) is None,
        "encoding": _UNREADABLE.search(text) is None,
    }
    is_whole = answer.finish_reason != "length"
    if is_whole and not answer.calls and _asks_for_json(fields):
        results["json"] = _is_json(text)
    if is_whole and answer.calls:
        offered = _offered(fields)
        results["tool_call"] = all(
            call.name in offered and _is_json(call.arguments, kind=dict) for call in answer.calls
        )
    return results


def repeats_at_the_end(text: str) -> bool:
    """Return whether the text ends in one short piece again and again."""
    tail = text.rstrip()
    for size in range(1, _LONGEST_UNIT + 1):
        count = max(_MIN_REPEATS, -(-_MIN_REPEATED // size))
        if size * count > len(tail):
            continue
        if tail.endswith(tail[-size:] * count):
            return True
    return False


def _asks_for_json(fields: Mapping[str, Any]) -> bool:
    form = fields.get("response_format")
    return isinstance(form, Mapping) and form.get("type") in {"json_object", "json_schema"}


def _offered(fields: Mapping[str, Any]) -> set[str]:
    tools = fields.get("tools") or ()
    functions = (tool.get("function") or {} for tool in tools if isinstance(tool, Mapping))
    return {str(function.get("name")) for function in functions}


def _is_json(text: str, kind: type | None = None) -> bool:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return kind is None or isinstance(found, kind)
