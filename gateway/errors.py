"""Everything the service refuses, as one tree; :mod:`gateway.envelope` makes replies of it.

NarrowgateError
├── StartupError                  no HTTP face: one line on stderr, exit code 2
│   ├── SettingsError             a setting, key or flag is wrong
│   ├── PortInUse                 another process listens there
│   ├── LoadRefused               the model or the recipe cannot be used (the child's words)
│   ├── ChildFailed               a child process crashed or never became ready
│   ├── SchemeMismatch            the engine runs other schemes than the artifact records
│   ├── SmokeCheckFailed          a started engine finds a known text unlikely
│   └── RemoteFailed              a running endpoint is not there, or refuses
├── ClientGone                    nobody is left to read a reply
├── Superseded                    a step that was decided before somebody else changed the model
└── ApiError                      status, type, code, param, retry_after_s
    ├── InvalidRequest            400 invalid_value
    │   ├── InvalidJson           400 invalid_json
    │   ├── UnsupportedParameter  400 unsupported_parameter
    │   ├── UnsupportedSchema     400 unsupported_schema
    │   ├── ContextLengthExceeded 400 context_length_exceeded
    │   ├── BodyTooLarge          413 request_too_large
    │   ├── HeadTooLarge          431 headers_too_large
    │   ├── BodyTimeout           408 request_timeout
    │   ├── InvalidApiKey         401 invalid_api_key
    │   ├── AdminOnly             403 admin_only
    │   └── HostNotAllowed        421 host_not_allowed
    ├── ModelNotFound             404 model_not_found
    ├── RouteNotFound             404 not_found
    ├── NotSupportedByEngine      404 not_supported_by_engine
    ├── MethodNotAllowed          405 method_not_allowed
    ├── ComparisonRunning         409 comparison_running
    ├── CanaryRunning             409 canary_running
    ├── NoCanary                  404 no_canary
    ├── RequestRateExceeded       429 rate_limit_exceeded, always with Retry-After
    │   └── TokenRateExceeded     429 rate_limit_exceeded
    ├── EngineRefused             the status, type, code and param of an engine's own refusal
    ├── Unavailable               503, always with Retry-After
    │   ├── ModelLoading          503 model_loading
    │   ├── StepUnderWay          503 step_under_way
    │   ├── NoMemory              503 insufficient_memory
    │   ├── EngineDown            503 engine_unavailable
    │   ├── Overloaded            503 overloaded
    │   └── Draining              503 draining
    ├── EngineFault               502 engine_error
    ├── EngineTimeout             504 engine_timeout
    ├── DeadlineExceeded          504 deadline_exceeded
    └── InternalError             500 internal_error

Free of any web framework: ``gateway.engine`` raises the same errors.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

RETRIED = frozenset({408, 429, 503})
"""Statuses after which the same request may succeed; after 500, 502 and 504 an engine may have done
the work already, and the next try would cost it again."""


class NarrowgateError(Exception):
    """Base of all refusals; ``str(error)`` is one line."""


class StartupError(NarrowgateError):
    """The process cannot start or finish its command."""


class SettingsError(StartupError):
    """A setting, key or flag is wrong."""


class PortInUse(StartupError):
    """Another process listens on the wanted address."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"port {port} on {host} is in use: stop what listens there, or pass another --port"
        )


class LoadRefused(StartupError):
    """The model or the recipe cannot be used."""


class ChildFailed(StartupError):
    """A child process crashed or never became ready."""


class RemoteFailed(StartupError):
    """A running endpoint is not there, or refuses; ``code`` is its own word for why."""

    def __init__(self, message: str, *, code: object = None) -> None:
        super().__init__(message)
        self.code = code


class SchemeMismatch(StartupError):
    """The engine runs other schemes than the artifact's manifest records."""


class SmokeCheckFailed(StartupError):
    """A started engine finds a known text unlikely, or answers with no numbers."""


class ClientGone(NarrowgateError):
    """The client left; nobody is there to read a reply."""


class Superseded(NarrowgateError):
    """Another variant is active by now than the one that the step was to leave."""


class ApiError(NarrowgateError):
    """A failure with an HTTP face."""

    status: int = 500
    type: str = "server_error"
    code: str = "internal_error"
    default_param: ClassVar[str | None] = None
    default_retry_after_s: ClassVar[float | None] = None
    headers: Mapping[str, str] = MappingProxyType({})
    """More headers of the reply, in lower case."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = self.default_param if param is None else param
        self.retry_after_s = self.default_retry_after_s if retry_after_s is None else retry_after_s

    @property
    def should_retry(self) -> bool:
        """Return whether a client does well to send the request again."""
        return self.status in RETRIED


class InvalidRequest(ApiError):
    """A field of the request is missing or has a wrong type or value."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class InvalidJson(InvalidRequest):
    """The body is no JSON object."""

    code = "invalid_json"


class UnsupportedParameter(InvalidRequest):
    """A parameter is not known, or asks for what cannot be done."""

    code = "unsupported_parameter"


class UnsupportedSchema(InvalidRequest):
    """No answer can be held to the form that was asked for."""

    code = "unsupported_schema"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit into the model's context."""

    code = "context_length_exceeded"
    default_param = "messages"


class BodyTooLarge(InvalidRequest):
    """The request body is longer, or of more parts, than the configured limits."""

    status = 413
    code = "request_too_large"


class HeadTooLarge(InvalidRequest):
    """Request line and headers together are longer than any honest ones."""

    status = 431
    code = "headers_too_large"


class BodyTimeout(InvalidRequest):
    """The request came in too slowly."""

    status = 408
    code = "request_timeout"
    headers = MappingProxyType({"connection": "close"})


class InvalidApiKey(InvalidRequest):
    """The request has no key, or one that is not known here."""

    status = 401
    code = "invalid_api_key"
    headers = MappingProxyType({"www-authenticate": "Bearer"})


class AdminOnly(InvalidRequest):
    """The path is for administrators."""

    status = 403
    code = "admin_only"


class HostNotAllowed(InvalidRequest):
    """The header ``host`` names something else than this service."""

    status = 421
    code = "host_not_allowed"


class ModelNotFound(ApiError):
    """No model is served under that name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    default_param = "model"


class RouteNotFound(ApiError):
    """No such path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class NotSupportedByEngine(ApiError):
    """The model's engine has no such path."""

    status = 404
    type = "invalid_request_error"
    code = "not_supported_by_engine"


class MethodNotAllowed(ApiError):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class ComparisonRunning(ApiError):
    """Another comparison is running; there is one at a time."""

    status = 409
    type = "invalid_request_error"
    code = "comparison_running"


class CanaryRunning(ApiError):
    """The model has a canary; there is one at a time."""

    status = 409
    type = "invalid_request_error"
    code = "canary_running"


class NoCanary(ApiError):
    """The model has no canary."""

    status = 404
    type = "invalid_request_error"
    code = "no_canary"


class RequestRateExceeded(ApiError):
    """The key has used up its requests of this minute; the type is OpenAI's."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"
    default_retry_after_s = 1

    def __init__(self, message: str, *, retry_after_s: float, headers: Mapping[str, str]) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.headers = headers


class TokenRateExceeded(RequestRateExceeded):
    """The key has used up its tokens of this minute."""

    type = "tokens"


class EngineRefused(ApiError):
    """An engine answered with an error status of its own; it is passed on."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.status = status
        self.type = type
        self.code = code


class Unavailable(ApiError):
    """The request may succeed later."""

    status = 503
    code = "unavailable"
    default_retry_after_s = 1


class ModelLoading(Unavailable):
    """The model is being loaded."""

    code = "model_loading"
    default_retry_after_s = 5


class StepUnderWay(Unavailable):
    """The ladder is in the middle of a step, which nobody waits for."""

    code = "step_under_way"
    default_retry_after_s = 5


class NoMemory(Unavailable):
    """The memory budget has no room for the model, and nothing idle can make some."""

    code = "insufficient_memory"
    default_retry_after_s = 10


class EngineDown(Unavailable):
    """The engine is gone, restarting or refuses connections."""

    code = "engine_unavailable"
    default_retry_after_s = 2


class Overloaded(Unavailable):
    """More requests are waiting already than can be served soon."""

    code = "overloaded"


class Draining(Unavailable):
    """The process is about to stop and takes no new requests."""

    code = "draining"
    default_retry_after_s = 5


class EngineFault(ApiError):
    """An engine broke the protocol, or answered with an error status that is not the client's."""

    status = 502
    code = "engine_error"

    def __init__(self, message: str, *, engine_status: int | None = None) -> None:
        super().__init__(message)
        self.engine_status = engine_status


class EngineTimeout(ApiError):
    """An engine stayed silent for too long."""

    status = 504
    code = "engine_timeout"


class DeadlineExceeded(ApiError):
    """The time that the client or the operator gave the request is over."""

    status = 504
    code = "deadline_exceeded"


class InternalError(ApiError):
    """A defect of ours; the cause is in the log, never in the reply."""

    def __init__(self) -> None:
        super().__init__("internal error: see the server's log under this request's id")


def _codes(kind: type[ApiError]) -> frozenset[str]:
    return frozenset({kind.code}).union(*(_codes(child) for child in kind.__subclasses__()))


KNOWN_CODES = _codes(ApiError)
"""Every code of the tree: a closed set, fit for a metric's label."""
