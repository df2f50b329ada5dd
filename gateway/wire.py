"""What every generating request has in common: strict types, sampling fields, exact errors."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from gateway.errors import InvalidRequest, UnsupportedParameter

MAX_ECHO = 100
"""Characters of a wrong value that a reply quotes."""

MAX_STOPS = 4
MAX_STOP_TOKENS = 128
MAX_TOP_LOGPROBS = 20

_T = TypeVar("_T", bound=BaseModel)
_Item = TypeVar("_Item")


def _texts_or_first_other(value: object) -> object:
    return _first_wrong(value, frozenset({str}))


def _numbers_or_first_other(value: object) -> object:
    return _first_wrong(value, frozenset({int, float}))


def _first_wrong(value: object, kinds: frozenset[type]) -> object:
    """Return a mapping, or the first of its entries with another value, alone."""
    if not isinstance(value, dict):
        return value
    wrong = (key for key, item in value.items() if type(item) not in kinds)
    found = next(wrong, None)
    return value if found is None else {found: value[found]}


# A reply names one wrong field. Left to itself pydantic describes each of the millions that fit
# into a body: that took a second and hundreds of megabytes for 100 kB, with all streams standing.
Items = Annotated[list[_Item], Field(fail_fast=True)]
"""A list of which the first wrong item is told."""
TextByName = Annotated[dict[str, str], BeforeValidator(_texts_or_first_other)]
NumberByName = Annotated[dict[str, float], BeforeValidator(_numbers_or_first_other)]


class Wire(BaseModel):
    """Strict types; unknown keys are kept, because engines know more parameters than we do."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class ExactWire(Wire):
    """A body that only this service reads: it has no other keys than these."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Wire):
    """What a stream carries beside the tokens."""

    include_usage: bool | None = None


class JsonSchema(Wire):
    """A named JSON schema, as ``response_format`` carries it."""

    name: str = Field(min_length=1, max_length=64)
    # On the wire its key is `schema`, a name that pydantic keeps for itself.
    json_schema: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    """The form that an answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


StopString = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class SamplingFields(Wire):
    """How tokens are chosen and where an answer ends; the ranges are OpenAI's.

    ``top_k``, ``min_p``, ``repetition_penalty``, ``ignore_eos``, ``min_tokens``,
    ``stop_token_ids``, ``prompt_logprobs``, ``return_token_ids``, ``guided_*`` and
    ``structured_outputs`` are vLLM's extensions.
    """

    model: str = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    logit_bias: NumberByName | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[Items[StopString], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[Items[TokenId], Field(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(default=None, ge=0)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    structured_outputs: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def includes_usage(self) -> bool:
        """Return whether the client asked for the usage chunk of a stream."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def validated(kind: type[_T], fields: dict[str, Any]) -> _T:
    """Return ``fields`` as a request of this kind.

    Raises:
        InvalidRequest: names the first wrong field in ``param``.
    """
    if kind.model_config.get("extra") == "forbid":
        _refuse_unknown(kind, fields)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None


def _refuse_unknown(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    """Tell the first key that is not known; pydantic would describe every one of them."""
    unknown = next((key for key in fields if key not in kind.model_fields), None)
    if unknown is not None:
        shown = unknown[:MAX_ECHO]
        known = ", ".join(kind.model_fields)
        raise UnsupportedParameter(
            f"{shown!r} is not known here: use one of {known}, or leave it out", param=shown
        )


def check_stream_options(request: SamplingFields) -> None:
    """Refuse options of a stream where none was asked for.

    Raises:
        InvalidRequest: names ``stream_options``.
    """
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' needs 'stream': true", param="stream_options")


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


_UNION_TAGS = frozenset({"str", "list", "constrained-str", "bool", "dict"})


def _path(loc: tuple[int | str, ...]) -> list[str]:
    """Return a field's path without the tags that pydantic adds for the arms of a union."""
    parts = [str(part) for part in loc]
    return [part for part in parts if part not in _UNION_TAGS and "[" not in part]


def _quote(value: object) -> str:
    if isinstance(value, (list, str)):
        value = value[:MAX_ECHO]  # there may be millions, and no more are shown
    try:
        text = repr(value)
    except RecursionError:
        return "nested too deep"
    return text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + "…"
