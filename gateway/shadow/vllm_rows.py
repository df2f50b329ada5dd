"""Rows of vLLM's prompt log-probabilities, cut out of a reply that is too long to be parsed whole.

A parser lets no other thread run before its end, and the reply to 4,096 tokens has 20 MB. So the
rows are found by their borders, and each that is wanted is parsed alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecoder
from typing import Any

import orjson

# An unescaped quote with a digit behind it opens a key: no text of a token looks like this.
_BEGIN = re.compile(rb'"prompt_logprobs"\s*:\s*\[\s*null\s*,\s*(?=\{\s*"\d)')
_BORDER = re.compile(rb'\}\s*\}(\s*,\s*)(?=\{\s*"\d+"\s*:)')


@dataclass(frozen=True, slots=True)
class PromptPosition:
    """What vLLM tells of one token of a prompt; log-probabilities are natural."""

    logprobs: Mapping[int, float]
    """Of the likeliest tokens, and of the one that really stands there."""
    top_token_id: int


def read_rows(raw: bytes, token_ids: Sequence[int], first: int) -> list[PromptPosition]:
    """Return what a reply says of the tokens from ``first`` on.

    Raises:
        ValueError: it tells of other tokens, or in another form.
        LookupError: likewise.
        TypeError: likewise.
        AttributeError: likewise.
    """
    begin = _BEGIN.search(raw)
    if begin is None:
        raise ValueError("there are no rows")
    borders = [match.span(1) for match in _BORDER.finditer(raw, begin.end())]
    if len(borders) + 2 != len(token_ids):
        raise ValueError("there are more or fewer rows than tokens")
    starts = [begin.end(), *(stop for _, stop in borders)]
    stops = [start for start, _ in borders]
    spans = list(zip(starts, [*stops, len(raw)], strict=True))[first - 1 :]
    positions = [_position(orjson.loads(raw[start:stop])) for start, stop in spans[:-1]]
    # Behind the last row comes the rest of the reply.
    tail = raw[spans[-1][0] :].decode()
    last, end = JSONDecoder().raw_decode(tail)
    if not tail[end:].lstrip().startswith("]"):
        raise ValueError("there are more rows than tokens")
    positions.append(_position(last))
    if any(
        token_id not in position.logprobs
        for token_id, position in zip(token_ids[first:], positions, strict=True)
    ):
        raise ValueError("it is another text")
    return positions


def _position(entry: Mapping[str, Any]) -> PromptPosition:
    logprobs = {int(token_id): float(told["logprob"]) for token_id, told in entry.items()}
    # Of equals the one that vLLM itself ranks first.
    top = min(entry, key=lambda token_id: (entry[token_id]["rank"], -logprobs[int(token_id)]))
    return PromptPosition(logprobs, int(top))
