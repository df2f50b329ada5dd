"""The wire types of ``/tokenize`` and ``/detokenize``, as vLLM has them."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from gateway.errors import InvalidRequest
from gateway.protocol import MAX_TOOLS, Message, Tool
from gateway.wire import Items, TokenId, Wire, validated


class TokenizeRequest(Wire):
    """Body of ``POST /tokenize``: a prompt, or messages for the model's chat template."""

    model: str = Field(min_length=1)
    prompt: str | None = None
    messages: Annotated[Items[Message], Field(min_length=1)] | None = None
    tools: Annotated[Items[Tool], Field(max_length=MAX_TOOLS)] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @property
    def adds_special_tokens(self) -> bool:
        """Return whether the checkpoint's own ends are added; a chat template writes its own."""
        if self.add_special_tokens is None:
            return self.prompt is not None
        return self.add_special_tokens


class DetokenizeRequest(Wire):
    """Body of ``POST /detokenize``."""

    model: str = Field(min_length=1)
    tokens: Items[TokenId]


class Tokens(BaseModel):
    """Reply of ``POST /tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """Reply of ``POST /detokenize``."""

    prompt: str


def parse_tokenize(fields: dict[str, Any]) -> TokenizeRequest:
    """Validate the fields of a request for token ids.

    Raises:
        InvalidRequest: names the first wrong field in ``param``.
    """
    request = validated(TokenizeRequest, fields)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("send either 'prompt' or 'messages'", param="prompt")
    for name in ("tools", "add_generation_prompt"):
        if request.prompt is not None and name in request.model_fields_set:
            raise InvalidRequest(f"{name!r} is for 'messages': leave it out", param=name)
    return request


def parse_detokenize(fields: dict[str, Any]) -> DetokenizeRequest:
    """Validate the fields of a request for the text of tokens.

    Raises:
        InvalidRequest: names the first wrong field in ``param``.
    """
    return validated(DetokenizeRequest, fields)
