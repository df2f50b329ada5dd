"""Replies of a chat completion as bytes: one JSON object, or server-sent events.

Everything that does not change between the chunks of a stream is rendered once.
"""

import json
from collections.abc import Sequence as Items
from typing import Any

import orjson

from gateway.engine.detokenizer import Vocabulary
from gateway.engine.sequence import Delta, FinishReason, TokenLogprob

DONE = b"data: [DONE]\n\n"
ROLE_DELTA = b'{"role":"assistant","content":""}'


def usage(num_prompt_tokens: int, num_output_tokens: int) -> dict[str, int]:
    """Return OpenAI's usage object."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
    }


def logprobs_object(entries: Items[TokenLogprob], vocabulary: Vocabulary) -> dict[str, Any]:
    """Return OpenAI's log-probabilities, with each token as text and as bytes."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        raw = vocabulary.bytes_of(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    content = [
        entry(item.token_id, item.logprob) | {"top_logprobs": [entry(*pair) for pair in item.top]}
        for item in entries
    ]
    return {"content": content, "refusal": None}


class ReplyFrames:
    """Renders the replies to one request."""

    def __init__(
        self,
        head: dict[str, Any],
        *,
        vocabulary: Vocabulary,
        includes_usage: bool,
        has_logprobs: bool,
    ) -> None:
        self._head = head
        self._vocabulary = vocabulary
        self._has_logprobs = has_logprobs
        chunk = {**head, "object": "chat.completion.chunk"}
        # ASCII escapes keep any model name valid.
        self._opening = b"data: " + json.dumps(chunk, separators=(",", ":")).encode()[:-1]
        self._prefix = self._opening + b',"choices":[{"index":0,"delta":'
        self._end = b',"usage":null}\n\n' if includes_usage else b"}\n\n"
        self._content_suffix = b'},"logprobs":null,"finish_reason":null}]' + self._end
        self._content_prefix = self._prefix + b'{"content":'

    def role(self) -> bytes:
        """Return the first chunk."""
        return b"".join(
            (self._prefix, ROLE_DELTA, b',"logprobs":null,"finish_reason":null}]', self._end)
        )

    def content(self, delta: Delta) -> bytes:
        """Return a chunk with text, or nothing if the delta has neither text nor log-probs."""
        if not delta.logprobs:
            if not delta.text:
                return b""
            return b"".join((self._content_prefix, orjson.dumps(delta.text), self._content_suffix))
        logprobs = orjson.dumps(logprobs_object(delta.logprobs, self._vocabulary))
        return b"".join(
            (
                self._content_prefix,
                orjson.dumps(delta.text),
                b'},"logprobs":',
                logprobs,
                b',"finish_reason":null}]',
                self._end,
            )
        )

    def finish(self, reason: FinishReason) -> bytes:
        """Return the chunk with the finish reason."""
        ending = b'{},"logprobs":null,"finish_reason":"%s"}]' % reason.encode()
        return b"".join((self._prefix, ending, self._end))

    def usage(self, num_prompt_tokens: int, num_output_tokens: int) -> bytes:
        """Return the chunk that carries the usage."""
        counts = orjson.dumps(usage(num_prompt_tokens, num_output_tokens))
        return b"".join((self._opening, b',"choices":[],"usage":', counts, b"}\n\n"))

    def whole(self, deltas: Items[Delta], num_prompt_tokens: int, num_output_tokens: int) -> bytes:
        """Return the reply to a request that is not streamed."""
        entries = [entry for delta in deltas for entry in delta.logprobs]
        text = "".join(delta.text for delta in deltas)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": logprobs_object(entries, self._vocabulary) if self._has_logprobs else None,
            "finish_reason": deltas[-1].finish_reason,
        }
        counts = usage(num_prompt_tokens, num_output_tokens)
        reply = {**self._head, "object": "chat.completion", "choices": [choice], "usage": counts}
        return orjson.dumps(reply)
