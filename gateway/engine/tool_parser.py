"""Finds the calls of tools in the growing text of an answer and takes them apart as they come.

A call is ``<tool_call>``, a JSON object with ``name`` and ``arguments``, and ``</tool_call>``. Its
arguments are passed on as they are written; a call that is not well formed stays text.
"""

import json
import re
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from gateway.engine.stopping import overlap
from gateway.engine.tool_markup import CALL_END, CALL_START

_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of one call; the first has ``id`` and ``name``."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return the piece as a stream sends it."""
        function: dict[str, Any] = {"arguments": self.arguments}
        if self.id is None:
            return {"index": self.index, "function": function}
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": self.index, "id": self.id, "type": "function", "function": function}


class ObjectEnd:
    """Finds where a JSON object ends, piece by piece."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_text = False
        self._is_escaped = False

    def find(self, text: str) -> int | None:
        """Return the index behind the object's end, or None if the text ends before."""
        for index, character in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_text:
                self._is_escaped = character == "\\"
                self._is_text = character != '"'
            elif character == '"':
                self._is_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    return index + 1
        return None


class ToolParser:
    """Cuts an answer into text and calls."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._rest = ""  # not yet known to be text or part of a call
        self._is_inside = False  # between the marks of a call
        self._arguments: ObjectEnd | None = None  # while arguments are passed on
        self._is_done = False  # the call under way was passed on as a whole

    def push(self, text: str) -> list[str | CallDelta]:
        """Return what the text completes, in order."""
        self._rest += text
        found: list[str | CallDelta] = []
        while self._step(found):
            pass
        return found

    def flush(self) -> list[str | CallDelta]:
        """Return what is left at the end of the answer."""
        rest, self._rest = self._rest, ""
        if not self._is_inside:
            return [rest] if rest and not (self.num_calls and rest.isspace()) else []
        if self._arguments is not None or self._is_done:
            return []
        return [self._whole(rest) or CALL_START + rest]

    def _step(self, found: list[str | CallDelta]) -> bool:
        """Take one part off the rest; return whether there may be another one."""
        if not self._is_inside:
            return self._outside(found)
        if self._arguments is not None:
            return self._pass_arguments(found, self._arguments)
        if not self._is_done and (head := _HEAD.match(self._rest)):
            self._rest = self._rest[head.end() :]
            self._arguments = ObjectEnd()
            found.append(self._start(json.loads(head[1]), ""))
            return True
        return self._close(found)

    def _outside(self, found: list[str | CallDelta]) -> bool:
        before, mark, after = self._rest.partition(CALL_START)
        if mark:
            if before.strip():
                found.append(before.rstrip())
            self._rest, self._is_inside = after, True
            return True
        # White space goes to the text behind it, because before a call it belongs to nothing.
        safe = before[: len(before) - overlap(before, CALL_START)].rstrip()
        if safe:
            found.append(safe)
            self._rest = before[len(safe) :]
        return False

    def _pass_arguments(self, found: list[str | CallDelta], end: ObjectEnd) -> bool:
        stop = end.find(self._rest)
        piece = self._rest if stop is None else self._rest[:stop]
        self._rest = self._rest[len(piece) :]
        if piece:
            found.append(CallDelta(self.num_calls - 1, piece))
        if stop is None:
            return False
        self._arguments, self._is_done = None, True
        return True

    def _close(self, found: list[str | CallDelta]) -> bool:
        body, mark, after = self._rest.partition(CALL_END)
        if not mark:
            return False
        if not self._is_done:
            found.append(self._whole(body) or CALL_START + body + CALL_END)
        self._rest, self._is_inside, self._is_done = after, False, False
        return True

    def _whole(self, body: str) -> CallDelta | None:
        """Return a call that could not be passed on piece by piece, None if it is none."""
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        arguments = call.get("arguments", call.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        return self._start(call["name"], text)

    def _start(self, name: str, arguments: str) -> CallDelta:
        self.num_calls += 1
        return CallDelta(self.num_calls - 1, arguments, f"call_{uuid4().hex[:24]}", name)
