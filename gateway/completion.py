"""The wire types of OpenAI's text completions."""

from typing import Any

from pydantic import Field

from gateway.errors import InvalidRequest
from gateway.wire import (
    MAX_TOP_LOGPROBS,
    Items,
    SamplingFields,
    TokenId,
    check_stream_options,
    validated,
)

MAX_PROMPTS = 2048
"""Prompts of one request."""

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for text completions only."""


class CompletionRequest(SamplingFields):
    """Body of ``POST /v1/completions``.

    A prompt is text or token ids, one or several. ``max_tokens`` 0 is for ``echo`` alone.
    """

    prompt: str | Items[str] | Items[TokenId] | Items[Items[TokenId]]
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = Field(default=None, ge=1)
    add_special_tokens: bool | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Return every prompt of the request, all as text or all as ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        ids = [item for item in prompt if isinstance(item, int)]
        return [ids] if ids else [item for item in prompt if not isinstance(item, int)]

    @property
    def num_choices(self) -> int:
        """Return how many answers the request asks for."""
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return (1 if is_one else len(self.prompt)) * (self.n or 1)


def parse_completion(fields: dict[str, Any]) -> CompletionRequest:
    """Validate the fields of a completion request.

    Raises:
        InvalidRequest: names the first wrong field in ``param``.
    """
    _check_prompt(fields.get("prompt"))
    request = validated(CompletionRequest, fields)
    check_stream_options(request)
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest(
            "'max_tokens' is 0: must be 1 or more, or send 'echo': true", param="max_tokens"
        )
    return request


def _check_prompt(prompt: object) -> None:
    """Refuse what no arm of the union takes, in one sentence instead of one for every arm."""
    if prompt is None:
        raise InvalidRequest("missing required parameter: 'prompt'", param="prompt")
    items = prompt if isinstance(prompt, list) else [prompt]
    kinds = set(map(type, items))
    if not items or kinds - {str, int, list} or len(kinds) > 1:
        raise InvalidRequest(
            "'prompt' must be a string, strings, token ids or lists of token ids, and not empty",
            param="prompt",
        )
    if kinds == {int} and not isinstance(prompt, list):
        raise InvalidRequest("'prompt' is a number: send text or token ids", param="prompt")
    if kinds != {int} and len(items) > MAX_PROMPTS:
        raise InvalidRequest(
            f"'prompt' holds {len(items)} prompts: send at most {MAX_PROMPTS}", param="prompt"
        )
