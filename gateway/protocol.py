"""The wire: types of OpenAI chat completions, model cards and an engine's description of itself."""

from collections import Counter
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from compression.fidelity_record import SliceFidelity
from gateway.errors import InvalidJson, InvalidRequest
from gateway.wire import (
    MAX_TOP_LOGPROBS,
    Items,
    SamplingFields,
    TextByName,
    Wire,
    check_stream_options,
    validated,
)

MAX_TOOLS = 128


class ContentPart(Wire):
    """One part of a message; ``text`` is there when ``type`` is ``text``."""

    type: str
    text: str | None = None

    @model_validator(mode="after")
    def _text_has_text(self) -> Self:
        if self.type == "text" and self.text is None:
            raise ValueError("a part of type 'text' needs the key 'text'")
        return self


class Message(Wire):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Items[ContentPart] | None = None
    name: str | None = None
    tool_calls: Items["ToolCall"] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _only_assistants_may_be_silent(self) -> Self:
        if self.content is None and self.role not in {"assistant", "function"}:
            raise ValueError(f"a message of role {self.role!r} needs the key 'content'")
        return self


class CalledFunction(Wire):
    """The function that an earlier answer called, its arguments as JSON text."""

    name: str = Field(min_length=1)
    arguments: str


class ToolCall(Wire):
    """One call of an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Function(Wire):
    """What the model may call; ``parameters`` is a JSON schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Wire):
    """One tool on offer."""

    type: Literal["function"]
    function: Function


class ToolName(Wire):
    """The function that must be called."""

    name: str = Field(min_length=1)


class NamedToolChoice(Wire):
    """A ``tool_choice`` that names one function."""

    type: Literal["function"]
    function: ToolName


class ChatRequest(SamplingFields):
    """Body of ``POST /v1/chat/completions``."""

    messages: Items[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[Items[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: TextByName | None = None
    store: bool | None = None

    @property
    def num_choices(self) -> int:
        """Return how many answers the request asks for."""
        return self.n or 1


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
    numerics: dict[str, str] | None = None
    kv_dtype: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    state: str
    active: bool = True
    verdict: str | None = None


class ModelList(BaseModel):
    """Reply of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class EngineInfo(BaseModel):
    """Reply of ``GET /engine/info``: what the live engine says of itself and of its weights.

    An engine that is not ours says only its name and its context.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    served_model_name: str
    architecture: str | None = None
    max_model_len: int | None = None
    dtype: str = ""
    recipe: str | None = None
    recipe_digest: str | None = None
    source_digest: str | None = None
    recorded_schemes: tuple[str, ...] | None = None
    """What its artifact's manifest says that ``schemes`` must be."""
    fidelity: tuple[SliceFidelity, ...] | None = None
    """Measured when its artifact was made."""
    weights_bytes: int | None = None
    weights_bytes_before: int | None = None
    weight_bits: float | None = None
    schemes: dict[str, int] | None = None
    kernels: dict[str, str] | None = None
    numerics: dict[str, str] | None = None
    """Bits that a scheme's products are made of: ``W4A16`` has 4-bit weights, 16-bit inputs."""
    reads_with: str | None = None
    """What texts are read with: engines that tell the same differ by rounding alone."""
    kv_layers: tuple[str, ...] | None = None
    """vLLM's name for how each layer's keys and values are kept, the first layer's first."""
    kv_scheme: dict[str, dict[str, dict[str, int]]] | None = None
    kv_bytes_per_token: int | None = None
    max_capture: int | None = None
    vocab_size: int | None = None
    """The width of the logits."""
    row_memory_bytes: int = 0
    """For whole distributions that wait to be compared."""
    threads: int | None = None
    pid: int | None = None
    version: str | None = None
    program: str | None = None
    """What computes, with the versions of its libraries; others may round otherwise."""

    @property
    def kv_dtype(self) -> str | None:
        """Return how keys and values are kept, with the counts of layers where these differ."""
        if not self.kv_layers:
            return None
        (most, count), *others = Counter(self.kv_layers).most_common()
        if not others:
            return most
        rest = ", ".join(f"{name} in {fewer}" for name, fewer in others)
        return f"{most} in {count} layers, {rest}"


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
    request = validated(ChatRequest, fields)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
    check_stream_options(request)
    return request


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
