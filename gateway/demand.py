"""What a request will cost and how it begins, guessed before anybody has counted its tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

BYTES_PER_TOKEN = 4
"""English text has about this."""

PREFIX_BYTES = 1024
"""Requests that begin with the same bytes share what an engine has read of them."""

_MAX_DEPTH = 16
_PROMPTS = ("messages", "prompt", "input", "tokens")
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Demand:
    """Tokens of the prompt, by its bytes; of the answers, 0 without a limit; and the beginning."""

    prompt_tokens: int = 0
    answer_tokens: int = 0
    prefix: bytes = b""


def demand_of(fields: Mapping[str, Any]) -> Demand:
    """Return the demand of a request, whatever rubbish it holds."""
    num_bytes = num_ids = 0
    prefix = b""
    for piece in (each for name in _PROMPTS for each in _pieces(fields.get(name))):
        if isinstance(piece, str):
            raw = piece.encode(errors="replace")
            num_bytes += len(raw)
        else:
            raw = b"".join(b"%d," % token for token in islice(piece, PREFIX_BYTES - len(prefix)))
            num_ids += len(piece)
        if len(prefix) < PREFIX_BYTES:
            prefix += raw[: PREFIX_BYTES - len(prefix)]
    limit = next((fields[name] for name in _LIMITS if _is_count(fields.get(name))), 0)
    num_choices = fields["n"] if _is_count(fields.get("n")) else 1
    return Demand(
        prompt_tokens=-(-num_bytes // BYTES_PER_TOKEN) + num_ids,
        answer_tokens=limit * num_choices * _num_prompts(fields.get("prompt")),
        prefix=prefix,
    )


def _pieces(value: object, depth: int = 0) -> Iterator[str | list[int]]:
    """Return the texts and token ids of a prompt, of messages or of parts; other media are none.

    Of a list, its texts come first, in one piece, then its ids, then what its lists and objects
    hold: of texts and ids there may be millions, and no loop of Python's must go over them.
    """
    if isinstance(value, str):
        yield value
    elif type(value) is int:
        yield [value]
    elif depth == _MAX_DEPTH:
        return  # no prompt is nested so deep
    elif isinstance(value, list):
        kinds = set(map(type, value))
        if str in kinds:
            yield "".join(_only(str, value, kinds))
        if int in kinds:
            yield _only(int, value, kinds)
        if not kinds.isdisjoint({list, dict}):
            for inner in value:
                if isinstance(inner, (list, dict)):
                    yield from _pieces(inner, depth + 1)
    elif isinstance(value, dict):
        yield from _pieces(value.get("content"), depth + 1)
        yield from _pieces(value.get("text"), depth + 1)


def _only(kind: type[_T], items: list[Any], kinds: set[type]) -> list[_T]:
    return items if len(kinds) == 1 else [each for each in items if type(each) is kind]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _num_prompts(prompts: object) -> int:
    if isinstance(prompts, list) and prompts and isinstance(prompts[0], (str, list)):
        return len(prompts)
    return 1
