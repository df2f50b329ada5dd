"""Replies as bytes: what chat and text completions have in common."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from typing import Any

import orjson

from gateway.engine.detokenizer import Vocabulary
from gateway.engine.generation import Choices
from gateway.engine.sequence import Delta, TokenLogprob

DONE = b"data: [DONE]\n\n"


def usage(num_prompt_tokens: int, num_output_tokens: int) -> dict[str, int]:
    """Return OpenAI's usage object."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
    }


def token_text(token_id: int, vocabulary: Vocabulary) -> str:
    """Return a token as text of its own, U+FFFD where it holds a part of a character."""
    return vocabulary.bytes_of(token_id).decode("utf-8", "replace")


def prompt_logprobs_object(
    entries: Items[TokenLogprob], vocabulary: Vocabulary
) -> list[dict[str, Any] | None]:
    """Return vLLM's ``prompt_logprobs``: nothing for the first token, else by token id."""

    def entry(token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        text = token_text(token_id, vocabulary)
        return {"logprob": logprob, "rank": rank, "decoded_token": text}

    found: list[dict[str, Any] | None] = [None]
    for item in entries:
        tops = enumerate(item.top, start=1)
        named = {str(token): entry(token, logprob, rank) for rank, (token, logprob) in tops}
        named.setdefault(str(item.token_id), entry(item.token_id, item.logprob, item.rank))
        found.append(named)
    return found


class ReplyFrames(ABC):
    """Renders the replies to one request; what all chunks of a stream share is rendered once."""

    def __init__(
        self,
        head: dict[str, Any],
        *,
        chunk_object: str,
        vocabulary: Vocabulary,
        includes_usage: bool,
        returns_token_ids: bool = False,
    ) -> None:
        self.head = head
        self.vocabulary = vocabulary
        self.returns_token_ids = returns_token_ids
        chunk = {**head, "object": chunk_object}
        # ASCII escapes keep any model name valid.
        self._opening = b"data: " + json.dumps(chunk, separators=(",", ":")).encode()[:-1]
        self.end = b',"usage":null}\n\n' if includes_usage else b"}\n\n"

    @abstractmethod
    def first(self, index: int, choices: Choices) -> bytes:
        """Return what comes before the first delta of a choice."""

    @abstractmethod
    def delta(self, index: int, delta: Delta) -> bytes:
        """Return the chunks of one delta, the finish reason included; maybe none."""

    @abstractmethod
    def choice(self, index: int, deltas: Items[Delta], choices: Choices) -> dict[str, Any]:
        """Return one choice of a reply that is not streamed."""

    @abstractmethod
    def whole(self, deltas: Items[Items[Delta]], choices: Choices) -> bytes:
        """Return the reply to a request that is not streamed, given the deltas of each choice."""

    def usage(self, choices: Choices) -> bytes:
        """Return the chunk that carries the usage."""
        counts = orjson.dumps(usage(choices.num_prompt_tokens, choices.num_output_tokens))
        return b"".join((self._opening, b',"choices":[],"usage":', counts, b"}\n\n"))

    def prefix(self, index: int) -> bytes:
        """Return a chunk up to and including the index of its choice."""
        return b'%s,"choices":[{"index":%d' % (self._opening, index)

    def event(self, choice: dict[str, Any], **extra: Any) -> bytes:
        """Return a chunk with one choice; ``extra`` are keys of the chunk itself."""
        rest = b"".join(
            b',"%s":%s' % (name.encode(), orjson.dumps(value)) for name, value in extra.items()
        )
        body = orjson.dumps(choice)
        return b"".join((self._opening, rest, b',"choices":[', body, b"]", self.end))

    def reply(
        self, kind: str, deltas: Items[Items[Delta]], choices: Choices, **extra: Any
    ) -> bytes:
        """Return a whole reply of this kind; ``extra`` are keys of the reply itself."""
        rendered = [self.choice(index, given, choices) for index, given in enumerate(deltas)]
        counts = usage(choices.num_prompt_tokens, choices.num_output_tokens)
        fields = {**self.head, "object": kind, "choices": rendered, "usage": counts}
        return orjson.dumps({**fields, **extra})
