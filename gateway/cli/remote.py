"""A running OpenAI endpoint, as the command line asks it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
import orjson

from gateway.errors import ApiError, RemoteFailed

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 600.0
MODEL_NOT_FOUND = "model_not_found"

_HERE = frozenset({"127.0.0.1", "localhost", "::1"})


class Piece(NamedTuple):
    """A part of an answer; what a model thinks before it answers is marked."""

    text: str
    is_reasoning: bool = False


@dataclass(slots=True)
class Answer:
    """One streamed answer on its way; times are in seconds."""

    response: httpx.Response
    variant: str | None
    started: float
    first_s: float | None = None
    last_s: float | None = None
    num_events: int = 0
    usage: Mapping[str, Any] = field(default_factory=dict)

    def pieces(self) -> Iterator[Piece]:
        """Return the parts as they come.

        Raises:
            RemoteFailed: the stream broke off, or the endpoint reported an error in it.
        """
        for event in self._events():
            if isinstance(event.get("error"), dict):
                raise RemoteFailed(f"the answer broke off: {event['error'].get('message')}")
            self.usage = event.get("usage") or self.usage
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
                for piece in (Piece(thought, True), Piece(delta.get("content") or "")):
                    if piece.text:
                        self._count()
                        yield piece

    @property
    def num_tokens(self) -> int:
        """Return the tokens of the answer: as the endpoint counted them, else its events."""
        return int(self.usage.get("completion_tokens") or self.num_events)

    @property
    def tokens_per_s(self) -> float | None:
        """Return the speed after the first token; None for an answer without a second one."""
        if self.first_s is None or self.last_s is None or self.last_s <= self.first_s:
            return None
        return (self.num_tokens - 1) / (self.last_s - self.first_s)

    def _count(self) -> None:
        self.last_s = time.perf_counter() - self.started
        self.first_s = self.last_s if self.first_s is None else self.first_s
        self.num_events += 1

    def _events(self) -> Iterator[dict[str, Any]]:
        # What the gateway streams with takes a while to import, and most commands stream nothing.
        from gateway.streaming import FrameSplitter

        splitter = FrameSplitter()
        try:
            for chunk in self.response.iter_bytes():
                for frame in splitter.feed(chunk):
                    if frame.startswith(b"data:") and frame[5:].strip() != b"[DONE]":
                        yield _object(frame[5:])
        except (httpx.TransportError, ApiError) as error:
            raise RemoteFailed(f"the answer broke off: {error}") from None


class Endpoint:
    """An OpenAI API at an address; use it as a context manager."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise RemoteFailed(f"--url is {url!r}: it must start with http:// or https://")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise RemoteFailed("the API key has characters that no header can carry: check it")
        headers = {} if not api_key else {"authorization": f"Bearer {api_key}"}
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            # A proxy of the environment leads to other machines, not to this one.
            self._client = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=timeout,
                trust_env=httpx.URL(self.url).host not in _HERE,
            )
        except httpx.InvalidURL as error:
            raise RemoteFailed(f"--url is {url!r}: {error}") from None

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def models(self) -> list[dict[str, Any]]:
        """Return the entries of ``/v1/models``.

        Raises:
            RemoteFailed: nobody answers, or not with a list of models.
        """
        with self._send("GET", "/v1/models") as response:
            found = _object(response.read()).get("data")
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise RemoteFailed(f"{self.url}/v1/models has no list of models: check --url")
        return found

    @contextmanager
    def chat(
        self, model: str, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]
    ) -> Iterator[Answer]:
        """Ask for an answer; leaving the block early stops it.

        Raises:
            RemoteFailed: nobody answers, or the request was refused.
        """
        body = {"model": model, "messages": list(messages), "stream": True, **options}
        body["stream_options"] = {"include_usage": True}
        started = time.perf_counter()
        with self._send("POST", "/v1/chat/completions", orjson.dumps(body)) as response:
            yield Answer(response, response.headers.get("x-narrowgate-variant"), started)

    @contextmanager
    def _send(
        self, method: str, path: str, content: bytes | None = None
    ) -> Iterator[httpx.Response]:
        headers = {"content-type": "application/json"} if content else {}
        try:
            with self._client.stream(method, path, content=content, headers=headers) as response:
                if not response.is_success:
                    response.read()
                    raise self._refusal(response)
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise RemoteFailed(
                f"nobody answers at {self.url}: start one with `narrowgate serve --model smollm2`, "
                "or pass its address with --url"
            ) from None
        except httpx.TransportError as error:
            raise RemoteFailed(f"{self.url}: {error or type(error).__name__}") from None

    def _refusal(self, response: httpx.Response) -> RemoteFailed:
        try:
            found = orjson.loads(response.content)
            error = found.get("error", found) if isinstance(found, dict) else {}
        except orjson.JSONDecodeError:
            error = {}
        fields = error if isinstance(error, dict) else {"message": error}
        words = fields.get("message") or f"{self.url} answered with status {response.status_code}"
        if response.status_code == 401:
            words = f"{words} (pass a key with --api-key or in NARROWGATE_API_KEY)"
        return RemoteFailed(" ".join(str(words).split()), code=fields.get("code"))


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise RemoteFailed("what answers there is no OpenAI API: check --url")
    return found
