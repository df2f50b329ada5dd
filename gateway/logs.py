"""The form of log lines: text or JSON, with the request they belong to and without its words."""

import json
import logging
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from rich.console import Console

from gateway.metrics.manifest import PATHS
from gateway.record import RECORD, REQUEST_ID, RequestRecord
from gateway.settings import LogFormat, LogLevel

logger = logging.getLogger("gateway.access")

PRIVATE = "private"
"""Key in ``extra`` of what may quote a prompt or an answer: left out unless prompts are logged."""
FIELDS = "fields"
"""Key in ``extra`` of a mapping whose keys become keys of a JSON line."""

PROBES = frozenset({"/health", "/ready", "/version", *PATHS})
"""Paths that probes ask every few seconds."""
_LOOKED_AT = ("/admin/", "/dashboard")
"""Beginnings of the paths that the page asks every few seconds."""

_LOOKS = frozenset({"GET", "HEAD"})
_REFUSED = 400

_OURS = ("gateway", "compression")
# Libraries tell in detail what they send; only their own troubles are worth a line.
_CHATTY = ("uvicorn", "httpx", "opentelemetry", "urllib3", "asyncio")
_LEVELS: Mapping[LogLevel, int] = MappingProxyType(
    {
        "debug": logging.DEBUG,
        "info": logging.INFO,
        "warning": logging.WARNING,
        "error": logging.ERROR,
    }
)


class RequestContext(logging.Filter):
    """Notes on every line the request in which it was written."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes; every line passes."""
        request, request_id = RECORD.get(), REQUEST_ID.get()
        record.request_id = None if request_id == "-" else request_id
        record.model = request.model if request else None
        record.variant = request.variant if request else None
        return True


class _Form(logging.Formatter):
    """What both forms share: the words of requests stay out."""

    def __init__(self, *, shows_prompts: bool = False) -> None:
        super().__init__()
        self._shows_prompts = shows_prompts

    def message(self, record: logging.LogRecord) -> str:
        """Return the message, with what is private where prompts are logged."""
        private = getattr(record, PRIVATE, None)
        if private is None or not self._shows_prompts:
            return record.getMessage()
        return f"{record.getMessage()}: {private}"

    def cause(self, record: logging.LogRecord) -> str | None:
        """Return the traceback; an exception's own words may quote what a client sent."""
        if not record.exc_info or record.exc_info[1] is None:
            return None
        error = record.exc_info[1]
        is_ours = record.name.partition(".")[0] in _OURS
        if self._shows_prompts or (is_ours and getattr(record, "request_id", None) is None):
            return "".join(traceback.format_exception(error)).rstrip()
        return _without_words(error)


class TextForm(_Form):
    """One readable line: time, level, logger, request, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below it."""
        request_id = getattr(record, "request_id", None)
        where = f" [{request_id}]" if request_id else ""
        head = f"{self.formatTime(record)} {record.levelname} {record.name}{where}"
        line = f"{head}: {self.message(record)}"
        cause = self.cause(record)
        return line if cause is None else f"{line}\n{cause}"


class JsonForm(_Form):
    """One JSON object a line; the time is in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.message(record),
            "request_id": getattr(record, "request_id", None),
            "model": getattr(record, "model", None),
            "variant": getattr(record, "variant", None),
            "exception": self.cause(record),
            **getattr(record, FIELDS, {}),
        }
        known = {key: value for key, value in found.items() if value is not None}
        # ASCII escapes write whatever a line quotes, lone surrogates too.
        return json.dumps(known, default=str)


class ConsoleHandler(logging.Handler):
    """Log lines that do not tear the progress bars of a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line above the bars."""
        self._console.print(self.format(record), markup=False, emoji=False, soft_wrap=True)


def log_to(
    handler: logging.Handler,
    *,
    form: LogFormat = "text",
    level: LogLevel = "info",
    shows_prompts: bool = False,
) -> None:
    """Write the lines of this process to ``handler`` in this form, from ``level`` on."""
    kind = JsonForm if form == "json" else TextForm
    handler.setFormatter(kind(shows_prompts=shows_prompts))
    handler.addFilter(RequestContext())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(_LEVELS[level])
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def is_routine(record: RequestRecord) -> bool:
    """Return whether a request is a probe's, or a look of somebody who watches."""
    is_look = record.method in _LOOKS and record.path.startswith(_LOOKED_AT)
    return is_look or record.path in PROBES


def log_access(record: RequestRecord) -> None:
    """Write the one line of a request that has ended; routine only at level debug."""
    is_quiet = is_routine(record) and (record.status or 0) < _REFUSED
    level = logging.DEBUG if is_quiet or record.path in PROBES else logging.INFO
    if logger.isEnabledFor(level):
        # Keys that are on every line of a request anyway come from its record, too.
        logger.log(level, "%s", _summary(record), extra={FIELDS: record.known()})


def _summary(record: RequestRecord) -> str:
    words = [record.method, record.path, str(record.status or "-")]
    if record.outcome is not None:
        words.append(record.outcome)
    if record.error is not None:
        words.append(record.error)
    if record.variant is not None:
        words.append(f"{record.model}@{record.variant}")
    if record.output_tokens is not None:
        words.append(f"tokens={record.input_tokens or 0}+{record.output_tokens}")
    if record.first_token_s is not None:
        words.append(f"first={record.first_token_s:.3f}s")
    return " ".join([*words, f"{record.duration_s or 0:.3f}s"])


def _without_words(error: BaseException) -> str:
    """Return a traceback with the types of exceptions, but not their messages."""
    lines: list[str] = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        lines += [_without_words(cause), "which led to:"]
    lines += [line.rstrip() for line in traceback.format_tb(error.__traceback__)]
    return "\n".join([*lines, f"{type(error).__module__}.{type(error).__qualname__}"])
