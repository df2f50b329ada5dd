"""A model that follows a script, and a real HTTP server around it."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import torch

from gateway.engine.loop import EngineLoop
from gateway.engine.metrics import EngineMetrics
from gateway.engine.scheduler import Scheduler
from gateway.engine.sequence import SpanSink
from gateway.engine.server import make_server
from gateway.engine.service import DescribedRunner, EngineService, describe
from gateway.engine.tokenizer import Tokenizer, load_tokenizer
from tests.checkpoints import make_tokenizer

MODEL = "toy@int4"
PEAK = 5.0
ANSWER = "The quick brown fox über 日本 jumps over the lazy dog."
MESSAGES: Any = [{"role": "user", "content": "hello"}]


@dataclass
class FakeCache:
    """Everything the sequence has read so far."""

    max_tokens: int
    ids: list[int] = field(default_factory=list)

    def copy(self, other: "FakeCache", count: int) -> None:
        """Begin with what another sequence has read."""
        self.ids = other.ids[:count]


@dataclass
class FakeRunner:
    """Answers every prompt that ends with ``prompt_end`` with the same ids, then with ``eos``."""

    answer: list[int]
    prompt_end: list[int]
    eos: int
    vocab_size: int = 320
    max_model_len: int = 256
    delay_s: float = 0.0
    fault: Literal["raise", "nan", "nan_row", "hang"] | None = None
    faulty_ids: frozenset[int] = frozenset()  # only rows of caches that hold one of these
    batches: list[list[list[int]]] = field(default_factory=list)
    healed: threading.Event = field(default_factory=threading.Event)

    def info(self) -> dict[str, Any]:
        """Return a description in the form of the real runner's."""
        return {
            "architecture": "FakeForCausalLM",
            "dtype": "bfloat16",
            "recipe": "int4",
            "recipe_digest": "0123456789abcdef" * 4,
            "weights_bytes": 36,
            "weights_bytes_before": 100,
            "weight_bits": 4.97,
            "schemes": {"int4-g32-asym": 1},
            "kernels": {"int4-g32-asym": "fake"},
        }

    def new_cache(self, max_tokens: int) -> FakeCache:
        """Return an empty cache."""
        return FakeCache(max_tokens)

    def forward(
        self, batch: list[tuple[FakeCache, list[int], int]], *, is_reading: bool = False
    ) -> torch.Tensor:
        """Read the ids and return logits whose maximum is the next id of the script."""
        self.batches.append([ids for _, ids, _ in batch])
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.fault == "hang":
            self.healed.wait(60)
        rows = []
        for cache, ids, wanted in batch:
            cache.ids.extend(ids)
            if len(cache.ids) > cache.max_tokens:
                raise RuntimeError("the cache is full")
            length = len(cache.ids)
            rows += [self._row(cache.ids[:end]) for end in range(length - wanted + 1, length + 1)]
        if self.fault == "raise":
            raise RuntimeError("secret detail of a broken step")
        return torch.stack(rows) if rows else torch.empty(0, self.vocab_size)

    def _row(self, ids: list[int]) -> torch.Tensor:
        row = torch.linspace(0, 1, self.vocab_size)
        row[self._next(ids)] = PEAK
        if self.fault == "nan" and (not self.faulty_ids or self.faulty_ids & set(ids)):
            row[7] = float("nan")
        if self.fault == "nan_row" and ids[-1] in self.faulty_ids:  # of one position only
            row[7] = float("nan")
        return row

    def _next(self, ids: list[int]) -> int:
        size = len(self.prompt_end)
        starts = range(len(ids) - size, -1, -1)
        at = next((start for start in starts if ids[start : start + size] == self.prompt_end), 0)
        position = len(ids) - size - at
        return self.answer[position] if position < len(self.answer) else self.eos


def make_toy_tokenizer(directory: Path, *, chat_template: str | None = "") -> Tokenizer:
    """Save and load the tiny tokenizer; an empty ``chat_template`` keeps its own."""
    tokenizer = make_tokenizer()
    if chat_template != "":
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(directory)
    return load_tokenizer(directory)


def make_runner(tokenizer: Tokenizer, text: str, **settings: Any) -> FakeRunner:
    """Return a model that answers ``text``."""
    return FakeRunner(
        answer=tokenizer.encode(text),
        prompt_end=tokenizer.encode("<|im_start|>assistant\n"),
        eos=min(tokenizer.eos_ids),
        **settings,
    )


@dataclass(frozen=True)
class RunningEngine:
    """An engine that listens."""

    url: str
    service: EngineService
    runner: Any
    tokenizer: Tokenizer


@contextmanager
def running_engine(
    runner: DescribedRunner,
    tokenizer: Tokenizer,
    *,
    max_num_sequences: int = 4,
    token_budget: int = 64,
    spans: SpanSink | None = None,
    row_bytes: int = 0,
    fetches_rows: bool = False,
) -> Iterator[RunningEngine]:
    """Serve the fake model on a free port, in a thread of its own."""
    scheduler = Scheduler(max_num_sequences=max_num_sequences, token_budget=token_budget)
    metrics = EngineMetrics(scheduler, model=MODEL, spans=spans)
    service = EngineService(
        description=describe(runner, served_model_name=MODEL),
        loop=EngineLoop(runner, scheduler, metrics),
        metrics=metrics,
        tokenizer=tokenizer,
        row_bytes=row_bytes,
        fetches_rows=fetches_rows,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(service)

    async def serve() -> None:
        service.loop.start(asyncio.get_running_loop())
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield RunningEngine(url, service, runner, tokenizer)
    finally:
        if isinstance(runner, FakeRunner):
            runner.healed.set()
        server.should_exit = True
        thread.join(20)
        service.close()
        listener.close()


def wait_until(condition: Any, *, timeout_s: float = 60.0) -> None:
    """Wait for a condition to hold, or fail."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.002)


def post(engine: RunningEngine, body: bytes | dict[str, Any]) -> httpx.Response:
    """Send a raw body to the chat route, or to that for text if it has a prompt."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    is_text = isinstance(body, dict) and "prompt" in body
    route = "completions" if is_text else "chat/completions"
    return httpx.post(f"{engine.url}/v1/{route}", content=content, timeout=30)


def body(**fields: Any) -> dict[str, Any]:
    """Return a valid request with these fields."""
    return {"model": MODEL, "messages": MESSAGES, "temperature": 0, **fields}
