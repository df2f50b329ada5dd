"""Text ↔ token ids for clients: the replies of ``/tokenize`` and ``/detokenize``."""

from typing import Any

from gateway.engine.chat import chat_text
from gateway.engine.parameters import ModelLimits
from gateway.engine.tokenizer import Tokenizer
from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.tokens import DetokenizeRequest, TokenizeRequest


def tokenized(
    request: TokenizeRequest, tokenizer: Tokenizer, limits: ModelLimits
) -> dict[str, Any]:
    """Return the ids of a prompt or of a conversation, as a generating request would read them.

    Raises:
        InvalidRequest: no chat template, or it refuses the messages.
        UnsupportedParameter: something that this engine cannot read.
    """
    if request.messages is None:
        text = request.prompt or ""
    else:
        if request.tools and not tokenizer.knows_tools:
            raise UnsupportedParameter(
                "'tools': this model's chat template knows no tools: leave them out", param="tools"
            )
        text = chat_text(
            request.messages,
            tokenizer,
            tools=request.tools or (),
            add_generation_prompt=request.add_generation_prompt,
        )
    ids = tokenizer.encode(text, add_special_tokens=request.adds_special_tokens)
    return {
        "count": len(ids),
        "max_model_len": limits.max_model_len,
        "tokens": ids,
        "token_strs": tokenizer.pieces(ids) if request.return_token_strs else None,
    }


def detokenized(
    request: DetokenizeRequest, tokenizer: Tokenizer, limits: ModelLimits
) -> dict[str, Any]:
    """Return the text of token ids, special tokens included.

    Raises:
        InvalidRequest: an id is outside the vocabulary.
    """
    largest = max(request.tokens, default=0)
    if largest >= limits.vocab_size:
        raise InvalidRequest(
            f"'tokens' holds {largest}: the vocabulary ends at {limits.vocab_size - 1}",
            param="tokens",
        )
    return {"prompt": tokenizer.decode(request.tokens)}
