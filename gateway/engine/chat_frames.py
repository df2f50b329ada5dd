"""The replies of chat completions: text, log-probabilities, calls of tools."""

from collections.abc import Sequence as Items
from typing import Any

import orjson

from gateway.engine.detokenizer import Vocabulary
from gateway.engine.frames import ReplyFrames, prompt_logprobs_object
from gateway.engine.generation import Choices
from gateway.engine.sequence import Delta, TokenLogprob
from gateway.engine.tool_parser import CallDelta, ToolParser

_ROLE = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
_CONTENT = b',"delta":{"content":'
_CONTENT_END = b'},"logprobs":null,"finish_reason":null}]'


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


class ChatFrames(ReplyFrames):
    """Renders the replies to one chat request.

    With ``reads_calls`` the answers may call tools; ``ends_with_stop`` says that a call which the
    request named ends an answer with the reason ``stop``, as OpenAI has it.
    """

    def __init__(
        self,
        head: dict[str, Any],
        *,
        vocabulary: Vocabulary,
        includes_usage: bool,
        has_logprobs: bool,
        returns_token_ids: bool = False,
        reads_calls: bool = False,
        ends_with_stop: bool = False,
    ) -> None:
        super().__init__(
            head,
            chunk_object="chat.completion.chunk",
            vocabulary=vocabulary,
            includes_usage=includes_usage,
            returns_token_ids=returns_token_ids,
        )
        self._has_logprobs = has_logprobs
        self._reads_calls = reads_calls
        self._ends_with_stop = ends_with_stop
        self._parsers: dict[int, ToolParser] = {}
        self._prefixes: dict[int, bytes] = {}

    def first(self, index: int, choices: Choices) -> bytes:
        """Return the chunk with the role."""
        if self.returns_token_ids:
            delta = {"role": "assistant", "content": ""}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            ids = choices.generations[index].sequence.prompt_ids
            return self.event(choice, prompt_token_ids=ids)
        return b"".join((self.prefix(index), _ROLE, self.end))

    def delta(self, index: int, delta: Delta) -> bytes:
        """Return the chunks of one delta, the finish reason included; maybe none."""
        if self._reads_calls or delta.logprobs or delta.token_ids:
            return self._rich(index, delta)
        chunk = b""
        if delta.text:
            text = orjson.dumps(delta.text)
            chunk = b"".join((self._content_prefix(index), text, _CONTENT_END, self.end))
        if delta.finish_reason is None:
            return chunk
        return chunk + self._finish(index, delta.finish_reason)

    def choice(self, index: int, deltas: Items[Delta], choices: Choices) -> dict[str, Any]:
        """Return one choice of a reply that is not streamed."""
        entries = [entry for delta in deltas for entry in delta.logprobs]
        reason: str | None = deltas[-1].finish_reason
        text = "".join(delta.text for delta in deltas)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._reads_calls:
            parser = ToolParser()
            parts = parser.push(text) + parser.flush()
            message["content"] = "".join(part for part in parts if isinstance(part, str)) or None
            if parser.num_calls:
                message["tool_calls"] = _calls(parts)
                reason = self._reason(str(reason))
            else:
                message["content"] = text
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs_object(entries, self.vocabulary) if self._has_logprobs else None,
            "finish_reason": reason,
        } | self._token_ids(token for delta in deltas for token in delta.token_ids)

    def whole(self, deltas: Items[Items[Delta]], choices: Choices) -> bytes:
        """Return the reply to a request that is not streamed."""
        sequence = choices.generations[0].sequence
        extra: dict[str, Any] = {}
        if sequence.params.prompt_logprobs is not None:
            entries = prompt_logprobs_object(sequence.prompt_logprobs, self.vocabulary)
            extra["prompt_logprobs"] = entries
        if self.returns_token_ids:
            extra["prompt_token_ids"] = sequence.prompt_ids
        return self.reply("chat.completion", deltas, choices, **extra)

    def _rich(self, index: int, delta: Delta) -> bytes:
        """Return the chunks of a delta with more than text, or of an answer that may call."""
        parts: Items[str | CallDelta] = [delta.text] if delta.text else []
        parser = None
        if self._reads_calls:
            parser = self._parsers.setdefault(index, ToolParser())
            parts = parser.push(delta.text)
            if delta.finish_reason is not None:
                parts = [*parts, *parser.flush()]
        beside: dict[str, Any] = {"logprobs": None, "finish_reason": None}
        if delta.logprobs:
            beside["logprobs"] = logprobs_object(delta.logprobs, self.vocabulary)
        if delta.token_ids:
            beside |= self._token_ids(delta.token_ids)
        if not parts and (delta.logprobs or delta.token_ids):
            parts = [""]
        chunks: list[bytes] = []
        for part in parts:
            fields = {"content": part} if isinstance(part, str) else {"tool_calls": [part.fields()]}
            chunks.append(self.event({"index": index, "delta": fields} | beside))
            beside = {"logprobs": None, "finish_reason": None}
        if delta.finish_reason is not None:
            has_calls = parser is not None and parser.num_calls > 0
            reason = self._reason(delta.finish_reason) if has_calls else delta.finish_reason
            chunks.append(self._finish(index, reason))
        return b"".join(chunks)

    def _reason(self, reason: str) -> str:
        """Return why an answer with calls ended."""
        return reason if reason != "stop" or self._ends_with_stop else "tool_calls"

    def _finish(self, index: int, reason: str) -> bytes:
        ending = b',"delta":{},"logprobs":null,"finish_reason":"%s"}]' % reason.encode()
        return b"".join((self.prefix(index), ending, self.end))

    def _content_prefix(self, index: int) -> bytes:
        found = self._prefixes.get(index)
        if found is None:
            found = self._prefixes[index] = self.prefix(index) + _CONTENT
        return found

    def _token_ids(self, token_ids: Any) -> dict[str, Any]:
        return {"token_ids": list(token_ids)} if self.returns_token_ids else {}


def _calls(parts: Items[str | CallDelta]) -> list[dict[str, Any]]:
    """Return the calls of a whole answer from its pieces."""
    calls: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            continue
        if part.id is not None:
            fields = part.fields()
            calls.append({"id": part.id, "type": "function", "function": fields["function"]})
        else:
            calls[part.index]["function"]["arguments"] += part.arguments
    return calls
