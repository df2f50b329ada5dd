"""The replies of text completions, with OpenAI's legacy form of log-probabilities."""

from collections.abc import Sequence as Items
from typing import Any

import orjson

from gateway.engine.detokenizer import Vocabulary
from gateway.engine.frames import ReplyFrames, prompt_logprobs_object, token_text
from gateway.engine.generation import Choices
from gateway.engine.prompts import Prompt
from gateway.engine.sequence import Delta, Sequence, TokenLogprob
from gateway.engine.text_offsets import TextOffsets

_TEXT = b',"text":'
_TEXT_END = b',"logprobs":null,"finish_reason":null}]'


class LegacyLogprobs:
    """Log-probabilities of one choice: four lists, with where each token begins in the text."""

    def __init__(self, vocabulary: Vocabulary, *, echoed: str = "") -> None:
        self._vocabulary = vocabulary
        self._offsets = TextOffsets(vocabulary, text=echoed)

    def of_prompt(self, sequence: Sequence) -> dict[str, list[Any]]:
        """Return the entries of an echoed prompt; its first token has no probability."""
        first = sequence.prompt_ids[0]
        found: dict[str, list[Any]] = {
            "text_offset": [self._offsets.push(first)],
            "token_logprobs": [None],
            "tokens": [token_text(first, self._vocabulary)],
            "top_logprobs": [None],
        }
        num_top = sequence.params.top_logprobs or 0
        return self._extend(found, sequence.prompt_logprobs, num_top)

    def of_answer(self, entries: Items[TokenLogprob], num_top: int) -> dict[str, list[Any]]:
        """Return the entries of the next tokens of the answer."""
        names = ("text_offset", "token_logprobs", "tokens", "top_logprobs")
        return self._extend({name: [] for name in names}, entries, num_top)

    def _extend(
        self, found: dict[str, list[Any]], entries: Items[TokenLogprob], num_top: int
    ) -> dict[str, list[Any]]:
        for entry in entries:
            text = token_text(entry.token_id, self._vocabulary)
            found["text_offset"].append(self._offsets.push(entry.token_id))
            found["token_logprobs"].append(entry.logprob)
            found["tokens"].append(text)
            found["top_logprobs"].append(self._top(entry, text, num_top) if num_top else None)
        return found

    def _top(self, entry: TokenLogprob, text: str, num_top: int) -> dict[str, float]:
        # Of tokens with the same text the most probable counts; the chosen one is always there.
        top: dict[str, float] = {}
        for token_id, logprob in entry.top[:num_top]:
            top.setdefault(token_text(token_id, self._vocabulary), logprob)
        top.setdefault(text, entry.logprob)
        return top


class CompletionFrames(ReplyFrames):
    """Renders the replies to one completion request; ``echoes`` repeats the prompts."""

    def __init__(
        self,
        head: dict[str, Any],
        *,
        vocabulary: Vocabulary,
        includes_usage: bool,
        num_top: int | None,
        prompts: Items[Prompt],
        echoes: bool,
        returns_token_ids: bool = False,
    ) -> None:
        super().__init__(
            head,
            chunk_object="text_completion",
            vocabulary=vocabulary,
            includes_usage=includes_usage,
            returns_token_ids=returns_token_ids,
        )
        self._num_top = num_top
        self._prompts = prompts
        self._echoes = echoes
        self._logprobs: dict[int, LegacyLogprobs] = {}

    def first(self, index: int, choices: Choices) -> bytes:
        """Return the echo of the prompt, if asked for."""
        sequence = choices.generations[index].sequence
        text = self._echo(index, choices)
        self._logprobs[index] = LegacyLogprobs(self.vocabulary, echoed=text)
        if not self._echoes and not self.returns_token_ids:
            return b""
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None}
        if self._echoes and self._num_top is not None:
            choice["logprobs"] = self._logprobs[index].of_prompt(sequence)
        choice["finish_reason"] = None
        if self.returns_token_ids:
            choice |= {"prompt_token_ids": sequence.prompt_ids, "token_ids": []}
        return self.event(choice)

    def delta(self, index: int, delta: Delta) -> bytes:
        """Return the chunk of one delta, the finish reason included; maybe none."""
        is_plain = not delta.logprobs and not delta.token_ids and delta.finish_reason is None
        if is_plain:
            if not delta.text:
                return b""
            text = orjson.dumps(delta.text)
            return b"".join((self.prefix(index), _TEXT, text, _TEXT_END, self.end))
        choice: dict[str, Any] = {"index": index, "text": delta.text, "logprobs": None}
        if delta.logprobs:
            entries = self._logprobs[index].of_answer(delta.logprobs, self._num_top or 0)
            choice["logprobs"] = entries
        choice["finish_reason"] = delta.finish_reason
        if self.returns_token_ids:
            choice["token_ids"] = list(delta.token_ids)
        return self.event(choice)

    def choice(self, index: int, deltas: Items[Delta], choices: Choices) -> dict[str, Any]:
        """Return one choice of a reply that is not streamed."""
        sequence = choices.generations[index].sequence
        echo = self._echo(index, choices)
        choice: dict[str, Any] = {
            "index": index,
            "text": echo + "".join(delta.text for delta in deltas),
            "logprobs": None,
            "finish_reason": deltas[-1].finish_reason,
        }
        if self._num_top is not None:
            entries = [entry for delta in deltas for entry in delta.logprobs]
            choice["logprobs"] = self._all_logprobs(sequence, entries, echo)
        if sequence.params.prompt_logprobs is not None and not self._echoes:
            choice["prompt_logprobs"] = prompt_logprobs_object(
                sequence.prompt_logprobs, self.vocabulary
            )
        if self.returns_token_ids:
            choice["prompt_token_ids"] = sequence.prompt_ids
            choice["token_ids"] = [token for delta in deltas for token in delta.token_ids]
        return choice

    def whole(self, deltas: Items[Items[Delta]], choices: Choices) -> bytes:
        """Return the reply to a request that is not streamed."""
        return self.reply("text_completion", deltas, choices)

    def _all_logprobs(
        self, sequence: Sequence, entries: Items[TokenLogprob], echo: str
    ) -> dict[str, list[Any]]:
        legacy = LegacyLogprobs(self.vocabulary, echoed=echo)
        prompt = legacy.of_prompt(sequence) if self._echoes else {}
        answer = legacy.of_answer(entries, self._num_top or 0)
        return {name: prompt.get(name, []) + values for name, values in answer.items()}

    def _echo(self, index: int, choices: Choices) -> str:
        return self._prompts[choices.prompt_of(index)].text if self._echoes else ""
