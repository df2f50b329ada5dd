"""The loop that scripts of peers share; standard library only."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Generate = Callable[[list[list[int]], int, Callable[[], None]], int]
"""Prompts, tokens of each answer, to be called at the first token; returns the tokens made."""


def answer_lines(generate: Generate, versions: dict[str, str]) -> None:
    """Answer requests until standard input ends."""
    # What libraries print must not get among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _say(answers, {"versions": versions})
    for line in sys.stdin:
        request = json.loads(line)
        first: list[float] = []
        started = time.perf_counter()
        tokens = generate(
            request["prompts"],
            request["tokens"],
            lambda: first.append(time.perf_counter()) if not first else None,  # noqa: B023
        )
        ended = time.perf_counter()
        first_s = (first[0] if first else ended) - started
        _say(answers, {"first_s": first_s, "last_s": ended - started, "tokens": tokens})


def _say(answers: Any, line: dict[str, Any]) -> None:
    answers.write(json.dumps(line) + "\n")
    answers.flush()
