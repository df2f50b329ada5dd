"""What vLLM tells of its own log-probabilities while it answers, taken out before the client."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

import orjson

from gateway.shadow.records import Captured, Position, TooLong
from gateway.upstream import EngineClient
from gateway.wire import MAX_TOP_LOGPROBS

MIN_TOP = 2
"""Of one alone nobody could tell whether it is the likeliest token or the one that was drawn."""

NOTHING = -9999.0
"""What vLLM writes for minus infinity: a token that a grammar forbade."""

_ID = "token_id:"
_DATA = b"data:"

_OWN_LOGPROBS = ("logprobs", "prompt_logprobs", "logprob_token_ids")
_OTHER_ANSWERS = ("echo", "use_beam_search")
_GRAMMARS = ("guided_json", "guided_regex", "guided_choice", "structured_outputs")


class VllmCapture:
    """Takes note of one reply of vLLM, chat or text, streamed or plain.

    vLLM's log-probabilities are the model's own, before temperature, penalties, biases and bans,
    as long as it runs with its default ``--logprobs-mode raw_logprobs``; a grammar alone is applied
    before they are taken. Requests with one are not captured, nor are those that ask for
    log-probabilities themselves, for several answers, for an echo, or that show more than text.
    Of a reply that has more than ``max_tokens`` with its prompt nothing is held.
    """

    def __init__(self, *, top: int = MAX_TOP_LOGPROBS, max_tokens: int) -> None:
        if not MIN_TOP <= top <= MAX_TOP_LOGPROBS:
            raise ValueError(f"top is {top}: must be {MIN_TOP} to {MAX_TOP_LOGPROBS}")
        self._top = top
        self._max_tokens = max_tokens
        self._is_on = False
        self._shows_ids = False
        self._is_sound = True
        self._prompt_token_ids: tuple[int, ...] = ()
        self._positions: list[Position] = []
        self._too_long: TooLong | None = None

    def fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to ask the engine instead; the same if this request is not captured."""
        if _is_declined(fields):
            return dict(fields)
        self._is_on = True
        self._shows_ids = bool(fields.get("return_token_ids"))
        # Of likely tokens vLLM tells only the text, which may stand for several ids.
        ids = {"return_token_ids": True, "return_tokens_as_token_ids": True}
        if "messages" in fields:
            return {**fields, "logprobs": True, "top_logprobs": self._top, **ids}
        return {**fields, "logprobs": self._top, **ids}

    def headers(self) -> Mapping[str, str]:
        """Return nothing: vLLM is asked in the body."""
        return MappingProxyType({})

    def pass_on(self, event: bytes) -> bytes:
        """Return what the client may see of one SSE event, or of a whole plain body.

        Empty for an event that vLLM sends only to those who ask for token ids.
        """
        if not self._is_on:
            return event
        start, end = _payload(event)
        try:
            reply = orjson.loads(event[start:end])
        except orjson.JSONDecodeError:
            return event  # the end mark, a comment, or nothing that could be read
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not isinstance(choices, list) or not choices:
            return event  # usage, or an error
        if self._is_sound and self._too_long is None:
            try:
                for choice in choices:
                    self._take(reply, choice)
            except (LookupError, TypeError, ValueError, AttributeError):
                self._is_sound = False
                self._positions.clear()
        if start and not self._shows_ids and all(map(_is_empty, choices)):
            return b""
        return event[:start] + orjson.dumps(self._without(reply)) + event[end:]

    def forget(self, client: EngineClient) -> None:
        """Do nothing: vLLM keeps nothing."""

    async def result(self, client: EngineClient) -> Captured | None:
        """Return what was captured; None if the engine did not tell all of it.

        Raises:
            TooLong: there was more than is held.
        """
        if self._too_long is not None:
            raise self._too_long
        if not (self._is_sound and self._prompt_token_ids and self._positions):
            return None
        return Captured(self._prompt_token_ids, tuple(self._positions))

    def _take(self, reply: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        prompt = reply.get("prompt_token_ids") or choice.get("prompt_token_ids")
        if prompt:
            self._prompt_token_ids = tuple(map(int, prompt))
        told = choice.get("token_ids")
        room = self._max_tokens - len(self._prompt_token_ids) - len(self._positions)
        positions = list(islice(_positions(choice.get("logprobs")), max(0, room + 1)))
        if len(positions) > room:
            self._too_long = TooLong(len(self._prompt_token_ids))
            self._prompt_token_ids = ()
            self._positions.clear()
            return
        if told is not None and [each.token_id for each in positions] != told:
            raise ValueError("tokens without log-probabilities")
        self._positions += positions

    def _without(self, reply: dict[str, Any]) -> dict[str, Any]:
        """Empty the fields that vLLM fills only for those who ask; it always sends their keys."""
        hidden = () if self._shows_ids else ("token_ids", "prompt_token_ids")
        for part in (reply, *(each for each in reply["choices"] if isinstance(each, dict))):
            for name in ("logprobs", *hidden):
                if name in part:
                    part[name] = None
        return reply


def _is_declined(fields: Mapping[str, Any]) -> bool:
    """Return whether the numbers would not be the model's own, or not of one answer to text."""
    form = fields.get("response_format")
    prompt = fields.get("prompt")
    choice = fields.get("tool_choice")
    return (
        any(fields.get(name) is not None for name in _OWN_LOGPROBS if fields.get(name) is not False)
        or any(fields.get(name) for name in _OTHER_ANSWERS)
        or any(fields.get(name) is not None for name in _GRAMMARS)
        or any((fields.get(name) or 1) != 1 for name in ("n", "best_of"))
        or (isinstance(form, Mapping) and form.get("type") != "text")
        or (choice is not None and choice not in ("none", "auto"))
        or (isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int))
        or _shows_more_than_text(fields.get("messages"))
    )


def _shows_more_than_text(messages: object) -> bool:
    contents = [
        message.get("content")
        for message in (messages if isinstance(messages, list) else ())
        if isinstance(message, Mapping)
    ]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(not isinstance(part, Mapping) or part.get("type") != "text" for part in parts)


def _payload(event: bytes) -> tuple[int, int]:
    """Return where the JSON of an event with one line of data begins and ends; a body is all."""
    end = len(event.rstrip())
    if not event.startswith(_DATA):
        return 0, end
    start = len(_DATA)
    return start + (event[start : start + 1] == b" "), end


def _is_empty(choice: object) -> bool:
    """Return whether a streamed choice of a chat says nothing: a token that a parser keeps back."""
    return (
        isinstance(choice, Mapping)
        and choice.get("delta") == {}
        and choice.get("finish_reason") is None
    )


def _positions(logprobs: Any) -> Iterator[Position]:
    """Return the tokens of a choice's ``logprobs``, in the form of chats or of text completions.

    Raises:
        ValueError: a token is no id, or the numbers are not the model's own.
    """
    if logprobs is None:
        return
    if "content" in logprobs:
        for entry in logprobs["content"] or ():
            top = ((_token_id(each["token"]), each["logprob"]) for each in entry["top_logprobs"])
            yield _position(_token_id(entry["token"]), entry["logprob"], top)
        return
    columns = zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    )
    for token, logprob, tops in columns:
        top = ((_token_id(name), value) for name, value in tops.items())
        yield _position(_token_id(token), logprob, top)


def _position(token_id: int, logprob: float, top: Iterable[tuple[int, float]]) -> Position:
    ranked = sorted(top, key=lambda entry: -entry[1])
    if min([logprob, *(value for _, value in ranked)]) <= NOTHING:
        raise ValueError("a grammar has changed the log-probabilities")
    # vLLM lists the drawn token first, likely or not; in the last place it may be either.
    if len(ranked) > 1 and ranked[-1][0] == token_id:
        ranked.pop()
    return Position(token_id, float(logprob), MappingProxyType(dict(ranked)))


def _token_id(token: str) -> int:
    if not token.startswith(_ID):
        raise ValueError("a token is told as text")
    return int(token.removeprefix(_ID))
