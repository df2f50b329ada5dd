"""How many tokens a request will take, guessed before anybody has counted them."""

from typing import NamedTuple

from gateway.completion import CompletionRequest
from gateway.protocol import ChatRequest, Message

BYTES_PER_TOKEN = 4


class Estimate(NamedTuple):
    """Tokens of the prompt, by its bytes, and of the answer, where a limit is given."""

    prompt: int
    answer: int


def estimated(body: ChatRequest | CompletionRequest) -> Estimate:
    """Return about how many tokens a request will take."""
    if isinstance(body, CompletionRequest):
        prompt = sum(_tokens(item) if isinstance(item, str) else len(item) for item in body.prompts)
        return Estimate(prompt, (body.max_tokens or 0) * body.num_choices)
    prompt = sum(map(_tokens_of, body.messages))
    limit = body.max_completion_tokens or body.max_tokens or 0
    return Estimate(prompt, limit * body.num_choices)


def _tokens_of(message: Message) -> int:
    if message.content is None or isinstance(message.content, str):
        return _tokens(message.content or "")
    return sum(_tokens(part.text or "") for part in message.content)


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)
