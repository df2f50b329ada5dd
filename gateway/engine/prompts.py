"""The prompts of a text completion: text or token ids, within the model's context."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.completion import CompletionRequest
from gateway.engine.tokenizer import Tokenizer
from gateway.errors import ContextLengthExceeded, InvalidRequest


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model reads first; ``text`` is how a reply echoes it."""

    ids: list[int]
    text: str


def completion_prompts(
    request: CompletionRequest, tokenizer: Tokenizer, *, max_model_len: int, vocab_size: int
) -> list[Prompt]:
    """Return every prompt of the request; each leaves the room that its answer needs at least.

    Raises:
        InvalidRequest: a prompt is empty or holds ids outside the vocabulary.
        ContextLengthExceeded: a prompt is too long.
    """
    limit = max_model_len + (request.max_tokens == 0)
    adds = request.add_special_tokens is not False
    prompts: list[Prompt] = []
    for number, given in enumerate(request.prompts):
        if isinstance(given, str):
            prompt = _from_text(given, tokenizer, limit=limit, adds_special_tokens=adds)
        else:
            prompt = _from_ids(given, tokenizer, limit=limit, vocab_size=vocab_size)
        if not prompt.ids:
            which = f"prompt {number} is" if isinstance(request.prompt, list) else "'prompt' is"
            raise InvalidRequest(f"{which} empty: send one token at least", param="prompt")
        prompts.append(prompt)
    return prompts


def fit(
    text: str,
    encode: Callable[[], list[int]],
    tokenizer: Tokenizer,
    *,
    max_model_len: int,
    param: str,
) -> Prompt:
    """Return a text as a prompt of fewer than ``max_model_len`` tokens.

    Raises:
        ContextLengthExceeded: names ``param``.
    """
    fewest = len(text.encode()) // tokenizer.longest_token_bytes
    if fewest >= max_model_len:
        raise _too_long(f"at least {fewest}", max_model_len, param)
    ids = encode()
    if len(ids) >= max_model_len:
        raise _too_long(str(len(ids)), max_model_len, param)
    return Prompt(ids, text)


def _from_text(text: str, tokenizer: Tokenizer, *, limit: int, adds_special_tokens: bool) -> Prompt:
    return fit(
        text,
        lambda: tokenizer.encode(text, add_special_tokens=adds_special_tokens),
        tokenizer,
        max_model_len=limit,
        param="prompt",
    )


def _from_ids(ids: list[int], tokenizer: Tokenizer, *, limit: int, vocab_size: int) -> Prompt:
    if len(ids) >= limit:
        raise _too_long(str(len(ids)), limit, "prompt")
    largest = max(ids, default=0)
    if largest >= vocab_size:
        raise InvalidRequest(
            f"'prompt' holds the token id {largest}: the vocabulary ends at {vocab_size - 1}",
            param="prompt",
        )
    raw = b"".join(map(tokenizer.vocabulary.bytes_of, ids))
    return Prompt(ids, raw.decode("utf-8", "replace"))


def _too_long(num_tokens: str, limit: int, param: str) -> ContextLengthExceeded:
    # Clients look for this wording as well as for the code.
    return ContextLengthExceeded(
        f"This model's maximum context length is {limit} tokens, and your {param} "
        f"resulted in {num_tokens} tokens, which leaves no room for an answer. "
        f"Please reduce the length of the {param}.",
        param=param,
    )
