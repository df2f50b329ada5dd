"""A scored request that the reference is to answer itself: what it is asked, what is held of both.

Its text stays in memory until the reference has answered or the free run is given up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gateway.completion import DEFAULT_MAX_TOKENS
from gateway.shadow import output_checks
from gateway.shadow.answer import Answer
from gateway.shadow.refusal import is_refusal

MAX_TOKENS = 256
"""Of the reference's answer."""
_LONGER = 2
"""Times the served answer that the reference's may be."""

Result = Literal[
    "compared",
    "unsupported",
    "too_many",
    "budget",
    "unscored",
    "busy",
    "timeout",
    "error",
    "stopped",
]

# What is about the reply's form, its limits or its sender, and not about what is answered.
_LEFT_OUT = frozenset(
    {"model", "stream", "stream_options", "n", "best_of", "user", "metadata", "store"}
    | {"max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "prompt_logprobs"}
    | {"return_token_ids", "return_tokens_as_token_ids"}
)
_CUT = "length"
_MAX_BYTES = 256 * 1024
"""Of a request that is kept; a schema may be long without a token of it in the prompt."""


@dataclass(frozen=True, slots=True)
class Side:
    """One answer in numbers: its tokens up to the limit, and the checks that apply to it."""

    num_tokens: int
    checks: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Again:
    """A request to be asked again, as few tokens as it may cost."""

    path: str
    fields: Mapping[str, Any]
    limit: int


class FreeRun:
    """One free run; ends once, and then holds no text."""

    def __init__(
        self,
        model: str,
        variant: str,
        again: Again,
        served: Side,
        *,
        recipe_digest: str | None,
        on_end: Callable[["FreeRun", Result], None],
    ) -> None:
        self.model = model
        self.variant = variant
        self.path = again.path
        self.fields = again.fields
        self.limit = again.limit
        self.served = served
        self.recipe_digest = recipe_digest
        self.is_over = False
        self.was_asked = False
        """Whether the reference was given it, at least once."""
        self.on_unread: Callable[[], None] | None = None
        """Called where it ends and nobody was asked."""
        self._on_end = on_end

    def end(self, result: Result) -> None:
        """Take note of what became of it; safe to repeat."""
        if not self.is_over:
            self.is_over = True
            self.fields = {}
            if self.on_unread is not None and not self.was_asked:
                self.on_unread()
            self._on_end(self, result)


def ask_again(fields: Mapping[str, Any], num_served: int) -> Again | None:
    """Return what to ask the reference; None: it is more than text, or too much.

    Sampling and seed stay as the client wanted them. The limit is the least of the client's own,
    twice the served answer and :data:`MAX_TOKENS`.
    """
    is_chat = "messages" in fields
    if is_chat and not all(map(_is_text, fields["messages"])):
        return None
    wanted = fields.get("max_completion_tokens") or fields.get("max_tokens")
    if wanted is None and not is_chat:
        wanted = DEFAULT_MAX_TOKENS
    limits = (MAX_TOKENS, _LONGER * num_served, *(() if wanted is None else (wanted,)))
    limit = max(1, min(limits))
    kept = {name: value for name, value in fields.items() if name not in _LEFT_OUT}
    if kept.get("min_tokens"):
        kept["min_tokens"] = min(kept["min_tokens"], limit)
    if len(orjson.dumps(kept)) > _MAX_BYTES:
        return None
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    return Again(path, {**kept, "max_tokens": limit, "stream": False}, limit)


def judge(answer: Answer, fields: Mapping[str, Any], *, num_tokens: int, limit: int) -> Side:
    """Return an answer in numbers; ``fields`` say what was asked for."""
    results = output_checks.check(answer, fields)
    results["finish"] = answer.finish_reason not in {"", _CUT} and num_tokens <= limit
    if not answer.calls and answer.text.strip():
        results["refusal"] = not is_refusal(answer.text)
    return Side(min(num_tokens, limit), results)


def _is_text(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        return all(part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)
