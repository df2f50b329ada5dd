"""The wire: types of OpenAI chat completions, model cards and an engine's description of itself."""

from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from gateway.errors import InvalidJson, InvalidRequest

MAX_ECHO = 100
"""Characters of a wrong value that a reply quotes."""


class _Wire(BaseModel):
    """Strict types; unknown keys are kept, because engines know more parameters than we do."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class ContentPart(_Wire):
    """One part of a message; ``text`` is there when ``type`` is ``text``."""

    type: str
    text: str | None = None

    @model_validator(mode="after")
    def _text_has_text(self) -> Self:
        if self.type == "text" and self.text is None:
            raise ValueError("a part of type 'text' needs the key 'text'")
        return self


class Message(_Wire):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _only_assistants_may_be_silent(self) -> Self:
        if self.content is None and self.role not in {"assistant", "function"}:
            raise ValueError(f"a message of role {self.role!r} needs the key 'content'")
        return self


class StreamOptions(_Wire):
    """What a stream carries beside the tokens."""

    include_usage: bool | None = None


StopString = Annotated[str, Field(min_length=1)]


class ChatRequest(_Wire):
    """Body of ``POST /v1/chat/completions``; the ranges are OpenAI's, ``top_k`` is an extension."""

    model: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    n: int | None = Field(default=None, ge=1, le=128)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @property
    def includes_usage(self) -> bool:
        """Return whether the client asked for the usage chunk of a stream."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class Usage(BaseModel):
    """Token counts of one request, as an engine reports them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class ModelCard(BaseModel):
    """One entry of ``GET /v1/models``: OpenAI's four keys and what was done to the model."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "narrowgate"
    variant: str
    recipe: str
    recipe_digest: str | None = None
    weight_bits: float | None = None
    weights_bytes: int | None = None
    weights_uncompressed_bytes: int | None = None
    max_model_len: int | None = None
    schemes: dict[str, int] | None = None
    kernels: dict[str, str] | None = None
    state: str


class ModelList(BaseModel):
    """Reply of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class EngineInfo(BaseModel):
    """Reply of ``GET /engine/info``: what the live engine says of itself and of its weights."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    served_model_name: str
    architecture: str
    max_model_len: int
    dtype: str
    recipe: str
    recipe_digest: str | None
    weights_bytes: int
    weights_bytes_before: int
    weight_bits: float
    schemes: dict[str, int]
    kernels: dict[str, str]
    kv_scheme: dict[str, dict[str, dict[str, int]]] | None = None
    kv_bytes_per_token: int | None = None
    threads: int
    pid: int


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object.

    Raises:
        InvalidJson: not JSON, not UTF-8, or something other than an object.
    """
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidJson(f"the body must be a JSON object, not {_json_type(fields)}")
    return fields


def parse_chat(fields: dict[str, Any]) -> ChatRequest:
    """Validate the fields of a chat request.

    Raises:
        InvalidRequest: names the first wrong field in ``param``.
    """
    try:
        request = ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' needs 'stream': true", param="stream_options")
    return request


def _invalid(error: ValidationError) -> InvalidRequest:
    problem = max(error.errors(include_url=False), key=_closeness)
    param = ".".join(_path(problem["loc"]))
    if problem["type"] == "missing":
        return InvalidRequest(f"missing required parameter: {param!r}", param=param)
    reason = problem["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if problem["type"] == "value_error":
        return InvalidRequest(f"{param!r}: {reason}", param=param)
    return InvalidRequest(f"{param!r} is {_quote(problem['input'])}: {reason}", param=param)


def _closeness(problem: ErrorDetails) -> tuple[int, bool]:
    # Of a union's problems the sender meant the deepest, and not the arm of another type.
    return len(_path(problem["loc"])), not problem["type"].endswith("_type")


_UNION_TAGS = frozenset({"str", "list", "constrained-str"})


def _path(loc: tuple[int | str, ...]) -> list[str]:
    """Return a field's path without the tags that pydantic adds for the arms of a union."""
    parts = [str(part) for part in loc]
    return [part for part in parts if part not in _UNION_TAGS and "[" not in part]


def _quote(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "nested too deep"
    return text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + "…"


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
