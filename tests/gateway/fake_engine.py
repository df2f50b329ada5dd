"""A tiny engine that speaks the contract and fails on demand: ``python fake_engine.py --port N``.

The extra request field ``fake`` scripts one request, see :class:`Script`. ``GET /fake/state`` tells
how many requests are running, completed and cancelled, and how many tokens were decoded;
``GET /fake/times`` when those with a ``label`` were.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import orjson
import uvloop

from gateway.capture import Wish, parse_wish
from gateway.completion import CompletionRequest, parse_completion
from gateway.envelope import render
from gateway.errors import (
    ApiError,
    ContextLengthExceeded,
    Draining,
    InvalidRequest,
    RouteNotFound,
    UnsupportedParameter,
)
from gateway.protocol import ChatRequest, EngineInfo, parse_chat, parse_object
from gateway.score import ROWS_GONE, parse_score
from tests.gateway.fake_metrics import FakeMetrics
from tests.gateway.fake_routes import ROUTES, reply_to, response_events

MAX_MODEL_LEN = 4096
KL = 0.75
"""What every position of an exact score has."""


@dataclass(frozen=True)
class Script:
    """What one request does; times in seconds, ``after`` counts tokens."""

    tokens: int = 4
    pace_s: float = 0.0
    first_s: float = 0.0
    head_s: float = 0.0
    fault: Literal["", "crash", "hang", "garbage", "http_garbage", "error", "truncate"] = ""
    after: int = 0
    status: int = 0
    body: str = ""
    with_usage: bool = True
    with_done: bool = True
    write_all_at_once: bool = False
    label: str = ""
    keeps_rows: bool = True  # where whole distributions are asked for
    text: str = ""  # is answered, a token a word, instead of made-up words
    reference: dict[str, Any] = field(default_factory=dict)  # what a reference does otherwise


class RowsGone(InvalidRequest):
    """As the embedded engine says it."""

    code = ROWS_GONE


@dataclass
class Counts:
    """What happened so far."""

    running: int = 0
    completed: int = 0
    cancelled: int = 0
    decoded: int = 0
    rows_asked: int = 0
    rows_kept: int = 0


@dataclass
class Times:
    """When one request had its tokens and its end, on the machine's monotonic clock."""

    tokens: list[float] = field(default_factory=list)
    ended: float = 0.0


class Wire:
    """One connection, on which a byte read too early is not lost."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._early = b""
        self.writer = writer

    async def read_request(self) -> tuple[str, str, dict[str, str], bytes]:
        """Return method, path, headers and body of the next request."""
        raw = self._early + await self._reader.readuntil(b"\r\n\r\n")
        self._early = b""
        head = raw.decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        num_bytes = int(headers.get("content-length", 0))
        return method, path, headers, await self._reader.readexactly(num_bytes)

    async def wait_closed_by_peer(self) -> None:
        """Wait until the client has left; its next request may already come in meanwhile."""
        self._early = await self._reader.read(1)
        if self._early:
            await asyncio.Event().wait()


class FakeEngine:
    """The engine; one instance a process."""

    def __init__(self, name: str, nll: float, score_fault: str = "") -> None:
        self.name = name
        self.nll = nll
        self.score_fault = score_fault
        self.captures: dict[str, Callable[[], dict[str, Any]]] = {}
        self.rows: set[str] = set()  # of captures that are not forgotten
        self.counts = Counts()
        self.metrics = FakeMetrics(name)
        self.times: dict[str, Times] = {}
        self.is_draining = False
        self.idle = asyncio.Event()
        self.idle.set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        wire = Wire(reader, writer)
        try:
            while not reader.at_eof():
                await self._answer(wire)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, wire: Wire) -> None:
        method, path, headers, body = await wire.read_request()
        try:
            if path == "/v1/chat/completions" and method == "POST":
                await self._answer_with(ChatAnswer, body, wire, parse_wish(headers))
            elif path == "/v1/completions" and method == "POST":
                await self._answer_with(TextAnswer, body, wire, parse_wish(headers))
            elif path == "/engine/score":
                await self._score(parse_object(body), wire.writer)
            elif path.startswith("/engine/capture/") and method == "DELETE":
                self.rows.discard(path.rpartition("/")[2])
                _write(wire.writer, 204, b"", {})
            elif path == "/metrics":
                _write(wire.writer, 200, self.metrics.render(), {"content-type": "text/plain"})
            elif path in ROUTES and method == "POST":
                self._answer_beside(path, parse_object(body), wire.writer)
            else:
                status, reply = self._describe(path)
                _write_json(wire.writer, status, reply)
        except ApiError as error:
            status, headers, raw = render(error)
            _write(wire.writer, status, raw, headers)
        await wire.writer.drain()

    def _answer_beside(
        self, path: str, fields: dict[str, Any], writer: asyncio.StreamWriter
    ) -> None:
        script = Script(**fields.pop("fake", {}))
        if script.status:
            _write(writer, script.status, script.body.encode(), {})
        elif path == "/v1/responses" and fields.get("stream"):
            events = response_events(fields)
            cut = events[: script.after] if script.fault == "truncate" else events
            writer.write(_STREAM_HEAD + b"".join(map(_chunk, cut)) + b"0\r\n\r\n")
        else:
            _write_json(writer, 200, reply_to(path, fields, MAX_MODEL_LEN))

    def _describe(self, path: str) -> tuple[int, dict[str, Any]]:
        if path == "/health":
            return (503, {"status": "draining"}) if self.is_draining else (200, {"status": "ok"})
        if path == "/engine/info":
            return 200, self._info().model_dump()
        if path.startswith("/engine/capture/"):
            columns = self.captures.pop(path.rpartition("/")[2], None)
            return (200, columns()) if columns else (404, {"error": {"message": "no capture"}})
        if path == "/fake/state":
            return 200, asdict(replace(self.counts, rows_kept=len(self.rows)))
        if path == "/fake/times":
            return 200, {label: asdict(times) for label, times in self.times.items()}
        if path == "/v1/models":
            card = {"id": self.name, "object": "model", "created": 1, "owned_by": "narrowgate"}
            return 200, {"object": "list", "data": [card | {"max_model_len": MAX_MODEL_LEN}]}
        raise RouteNotFound(f"no such path: {path}")

    def _info(self) -> EngineInfo:
        variant = self.name.partition("@")[2]
        recipe = "full" if variant in {"", "reference"} else variant
        return EngineInfo(
            served_model_name=self.name,
            architecture="FakeForCausalLM",
            max_model_len=MAX_MODEL_LEN,
            dtype="bfloat16",
            recipe=recipe,
            recipe_digest=None if recipe == "full" else "0" * 64,
            weights_bytes=1000,
            weights_bytes_before=4000,
            weight_bits=4.5,
            schemes={"int4-g32-asym": 2, "none": 1},
            numerics={"int4-g32-asym": "W4A16", "none": "W16A16"},
            kernels={"int4-g32-asym": "fake"},
            kv_bytes_per_token=120,
            max_capture=64,
            threads=1,
            pid=os.getpid(),
            version="0.fake",
        )

    async def _score(self, fields: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Find the first candidates the likeliest, as the captures do, or do as told.

        ``uneven`` finds the last one the likeliest at every third token.
        """
        request = parse_score(fields, max_model_len=MAX_MODEL_LEN, vocab_size=1 << 30)
        if self.score_fault == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.score_fault == "hang":
            await asyncio.sleep(3600)
        elif self.score_fault == "slow":
            await asyncio.sleep(2)
        elif self.score_fault == "refuse":
            raise UnsupportedParameter("this engine scores nothing", param="candidates")
        elif self.score_fault == "no_rows" and request.rows is not None:
            raise RowsGone("they are gone", param="rows")
        logprobs = [_logprobs(len(ids), self.nll) for ids in request.candidates]
        if self.score_fault == "uneven":
            for row in logprobs[2::3]:
                row.reverse()
        if self.score_fault == "nan":
            logprobs = [[float("nan")] * len(row) for row in logprobs]
        argmax = [
            ids[max(range(len(ids)), key=row.__getitem__) if row[0] == row[0] else 0]
            for ids, row in zip(request.candidates, logprobs, strict=True)
        ]
        exact = [KL] * len(logprobs) if request.rows is not None else []
        reply = {"scores": {"logprobs": logprobs, "argmax": argmax, "kl": exact}}
        _write(writer, 200, orjson.dumps(reply), {})

    async def _answer_with(
        self, kind: "type[Answer]", body: bytes, wire: Wire, wish: Wish | None = None
    ) -> None:
        if self.is_draining:
            raise Draining("the engine is stopping")
        fields = parse_object(body)
        request = kind.parse(fields)
        script = Script(**fields.get("fake", {}))
        if self.name.endswith("@reference"):
            script = replace(script, **script.reference)
        if script.status:
            _write(wire.writer, script.status, script.body.encode(), {"retry-after": "7"})
            return
        answer = kind(self.name, request, script, self.nll)
        if script.label:
            self.times[script.label] = answer.times
        if wish is not None:
            num_rows = None
            if wish.num_rows:
                self.counts.rows_asked += 1
                self.rows.add(wish.capture_id)
                is_kept = script.keeps_rows and len(answer.tokens) <= wish.num_rows
                num_rows = len(answer.tokens) if is_kept else None
            # Written when they are fetched: no engine has them before its first token.
            self.captures[wish.capture_id] = partial(answer.columns, wish.num_top, num_rows)
        self.counts.running += 1
        self.metrics.running(self.counts.running)
        self.idle.clear()
        began, reason = time.monotonic(), "abort"
        work = asyncio.ensure_future(self._generate(answer, wire.writer))
        gone = asyncio.ensure_future(wire.wait_closed_by_peer())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                self.counts.completed += 1
                reason = answer.finish_reason
                work.result()
            else:
                self.counts.cancelled += 1
        finally:
            answer.times.ended = time.monotonic()
            self.counts.running -= 1
            self.metrics.running(self.counts.running)
            seconds = answer.times.ended - began
            self.metrics.ended(reason, answer.num_prompt_tokens, seconds)
            if not self.counts.running:
                self.idle.set()
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _generate(self, answer: "Answer", writer: asyncio.StreamWriter) -> None:
        script, is_stream = answer.script, bool(answer.request.stream)
        await asyncio.sleep(script.head_s)
        if is_stream:
            writer.write(_STREAM_HEAD)
            writer.write(_chunk(answer.event("")))
        await asyncio.sleep(script.first_s)
        last = time.monotonic() - script.first_s
        for position, token in enumerate(answer.tokens):
            if script.fault and position == script.after:
                await _fail(script.fault, writer)
                return
            self.counts.decoded += 1
            now = time.monotonic()
            answer.times.tokens.append(now)
            self.metrics.token(now - last, is_first=position == 0)
            last = now
            if is_stream:
                writer.write(_chunk(answer.event(token, position)))
            if not script.write_all_at_once:
                await writer.drain()
                await asyncio.sleep(script.pace_s)
        if not is_stream:
            _write_json(writer, 200, answer.whole())
            return
        writer.write(_chunk(answer.event("", finish=answer.finish_reason)))
        if answer.includes_usage:
            writer.write(_chunk(answer.event(None)))
        done = _chunk(b"data: [DONE]\n\n") if script.with_done else b""
        writer.write(done + b"0\r\n\r\n")


class Answer(ABC):
    """The text that a request gets: words of three letters, cut by its limits."""

    kind: ClassVar[str]
    chunk_suffix: ClassVar[str] = ""

    def __init__(
        self, name: str, request: ChatRequest | CompletionRequest, script: Script, nll: float
    ) -> None:
        for unsupported in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(request, unsupported):
                raise UnsupportedParameter(f"{unsupported!r} is not supported", param=unsupported)
        if (request.n or 1) != 1:
            raise UnsupportedParameter("'n' must be 1", param="n")
        if request.model != name:
            raise InvalidRequest(f"this engine serves {name!r}", param="model")
        self.name, self.script, self.nll = name, script, nll
        self.times = Times()
        self.request: Any = request
        self.includes_usage = request.includes_usage and script.with_usage
        self.num_prompt_tokens = sum(len(text.split()) for text in self.texts())
        limit = getattr(request, "max_completion_tokens", None) or request.max_tokens
        if self.num_prompt_tokens + (limit or 1) > MAX_MODEL_LEN:
            raise ContextLengthExceeded(
                f"the maximum context length is {MAX_MODEL_LEN} tokens, "
                f"the prompt has {self.num_prompt_tokens}"
            )
        words = script.text.split() or [_word(i) for i in range(script.tokens)]
        self.finish_reason = "stop" if limit is None or limit >= len(words) else "length"
        self.tokens = [f" {word}" for word in words[:limit]]
        self._cut(request.stop)

    def _cut(self, stop: str | list[str] | None) -> None:
        stops = [stop] if isinstance(stop, str) else stop or []
        for position, token in enumerate(self.tokens):
            if any(text in token for text in stops):
                self.tokens, self.finish_reason = self.tokens[:position], "stop"
                return

    @property
    def usage(self) -> dict[str, int]:
        """Return OpenAI's three counts."""
        generated = len(self.tokens)
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.num_prompt_tokens + generated,
        }

    def columns(self, num_top: int, num_rows: int | None) -> dict[str, Any]:
        """Return what is noted of the answer: each token is the likeliest, then the next ones."""
        tops = [[place + rank for rank in range(num_top)] for place in range(len(self.tokens))]
        logprobs = _logprobs(num_top, self.nll)
        return {
            "prompt_token_ids": list(range(self.num_prompt_tokens)),
            "token_ids": [ids[0] for ids in tops],
            "logprobs": [logprobs[0]] * len(tops),
            "top_token_ids": tops,
            "top_logprobs": [logprobs] * len(tops),
            "num_rows": num_rows,
        }

    @staticmethod
    @abstractmethod
    def parse(fields: dict[str, Any]) -> Any:
        """Return the request."""

    @abstractmethod
    def texts(self) -> list[str]:
        """Return the texts of the prompt."""

    @abstractmethod
    def piece(self, text: str, position: int | None, finish: str | None) -> dict[str, Any]:
        """Return a choice of a stream, without its index."""

    @abstractmethod
    def choice(self) -> dict[str, Any]:
        """Return the choice of a plain reply."""

    def event(
        self, text: str | None, position: int | None = None, finish: str | None = None
    ) -> bytes:
        """Return one event; without a text it is the usage report."""
        fields = self._base(self.chunk_suffix)
        is_report = text is None
        piece = {"index": 0} | self.piece(text or "", position, finish) | {"finish_reason": finish}
        fields["choices"] = [] if is_report else [piece]
        if self.includes_usage:
            fields["usage"] = self.usage if is_report else None
        return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"

    def whole(self) -> dict[str, Any]:
        """Return the plain reply."""
        choice = {"index": 0} | self.choice() | {"finish_reason": self.finish_reason}
        fields = self._base("") | {"choices": [choice]}
        return fields | ({"usage": self.usage} if self.script.with_usage else {})

    def _base(self, suffix: str) -> dict[str, Any]:
        name = self.name
        fingerprint = "narrowgate-full" if name.endswith("@full") else "narrowgate-" + "0" * 12
        return {
            "id": "chatcmpl-fake",
            "object": self.kind + suffix,
            "created": 1,
            "model": name,
            "system_fingerprint": fingerprint,
        }


class ChatAnswer(Answer):
    """An answer to a chat."""

    kind = "chat.completion"
    chunk_suffix = ".chunk"
    parse = staticmethod(parse_chat)

    def texts(self) -> list[str]:
        """Return the texts of all messages."""
        return [str(message.content or "") for message in self.request.messages]

    def piece(self, text: str, position: int | None, finish: str | None) -> dict[str, Any]:
        """Return a delta: the role first, then text, at the end nothing."""
        delta = {"content": text}
        if position is None:
            delta = {} if finish else {"role": "assistant", "content": ""}
        logprobs = None if position is None else self._logprobs(position, position + 1)
        return {"delta": delta, "logprobs": logprobs}

    def choice(self) -> dict[str, Any]:
        """Return the message."""
        message = {"role": "assistant", "content": "".join(self.tokens)}
        return {"message": message, "logprobs": self._logprobs(0, len(self.tokens))}

    def _logprobs(self, start: int, stop: int) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        num_top = self.request.top_logprobs or 0
        return {"content": [_logprob(token, num_top) for token in self.tokens[start:stop]]}


class TextAnswer(Answer):
    """An answer to a prompt."""

    kind = "text_completion"
    parse = staticmethod(parse_completion)

    def texts(self) -> list[str]:
        """Return the prompt."""
        return [str(prompt) for prompt in self.request.prompts]

    def piece(self, text: str, position: int | None, finish: str | None) -> dict[str, Any]:
        """Return a piece of the text."""
        return {"text": text, "logprobs": None}

    def choice(self) -> dict[str, Any]:
        """Return the text, and what each of its tokens costs: the engine's ``nll``."""
        prompt = self.request.prompts[0]
        ids = prompt if isinstance(prompt, list) else list(range(self.num_prompt_tokens))
        costs: list[float | None] = [-self.nll] * len(self.tokens)
        if self.request.echo:
            costs = [None, *[-self.nll] * (len(ids) - 1), *costs]
        choice: dict[str, Any] = {"text": "".join(self.tokens), "logprobs": None}
        if self.request.logprobs is not None:
            top = dict(zip("abcdefgh", _logprobs(self.request.logprobs, self.nll), strict=False))
            choice["logprobs"] = {"token_logprobs": costs, "top_logprobs": [top] * len(costs)}
        if self.request.return_token_ids:
            choice |= {"prompt_token_ids": ids, "token_ids": list(range(len(self.tokens)))}
        return choice


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _word(number: int) -> str:
    return "".join(chr(97 + (number // 26**power) % 26) for power in (2, 1, 0))


def _logprobs(count: int, nll: float) -> list[float]:
    return [-nll - rank for rank in range(count)]


def _logprob(token: str, num_top: int) -> dict[str, Any]:
    entry = {"token": token, "logprob": -0.5, "bytes": list(token.encode())}
    return entry | {"top_logprobs": [entry | {"logprob": -0.5 - i} for i in range(num_top)]}


async def _fail(fault: str, writer: asyncio.StreamWriter) -> None:
    match fault:
        case "crash":
            print("fake engine: told to crash", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            await asyncio.sleep(3600)
        case "garbage":
            writer.write(_chunk(b"this is no event\n\n"))
        case "http_garbage":
            writer.write(b"zz no chunk size\r\n")
        case "error":
            error = {"message": "boom", "type": "server_error", "param": None, "code": "boom"}
            writer.write(_chunk(b"data: " + json.dumps({"error": error}).encode() + b"\n\n"))
            writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        case "truncate":
            writer.write(b"0\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _write_json(writer: asyncio.StreamWriter, status: int, fields: dict[str, Any]) -> None:
    _write(writer, status, json.dumps(fields).encode(), {})


def _write(writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str]) -> None:
    every = {"content-type": "application/json"} | headers | {"content-length": str(len(body))}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in every.items())]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


async def main() -> None:
    """Serve until SIGTERM, then finish what is running."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--nll", type=float, default=0.5)
    parser.add_argument("--score-fault", default="")
    options = parser.parse_args()
    engine = FakeEngine(options.served_model_name, options.nll, options.score_fault)
    await asyncio.sleep(options.load_s)
    server = await asyncio.start_server(engine.connect, "127.0.0.1", options.port)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    print(f"fake engine {os.getpid()} listens", file=sys.stderr, flush=True)
    await stopping.wait()
    engine.is_draining = True
    await engine.idle.wait()
    server.close()
    os._exit(0)


if __name__ == "__main__":
    uvloop.run(main())
