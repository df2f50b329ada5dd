"""What one engine process offers: a model under a name, and whether it still takes requests."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Protocol
from uuid import uuid4

import torch

from gateway.capture import MAX_TOP, Wish
from gateway.completion import CompletionRequest
from gateway.engine.captures import Captures
from gateway.engine.chat_frames import ChatFrames
from gateway.engine.completion_frames import CompletionFrames
from gateway.engine.generation import Choices
from gateway.engine.grammar import GrammarCompiler
from gateway.engine.loop import EngineLoop, ModelRunner
from gateway.engine.metrics import EngineMetrics
from gateway.engine.output import Output
from gateway.engine.parameters import ModelLimits, Request, sampling_params
from gateway.engine.preparation import Preparation, Prepared
from gateway.engine.row_feed import RowFeed
from gateway.engine.sampler import Sampler
from gateway.engine.scoring import Scoring
from gateway.engine.sequence import Sequence
from gateway.engine.tokenization import detokenized, tokenized
from gateway.engine.tokenizer import Tokenizer
from gateway.errors import Draining, InvalidRequest, ModelNotFound
from gateway.parameters import refuse_unknown
from gateway.program import program
from gateway.protocol import ChatRequest, EngineInfo
from gateway.score import parse_score
from gateway.tokens import DetokenizeRequest, TokenizeRequest, parse_detokenize, parse_tokenize

STALLED_AFTER_S = 60.0
"""The longest step of a slow machine is shorter by far."""


class DescribedRunner(ModelRunner, Protocol):
    """A model that can say what it is."""

    def info(self) -> dict[str, Any]:
        """Return the keys of ``EngineInfo`` that are about the weights."""


def describe(runner: DescribedRunner, *, served_model_name: str) -> dict[str, Any]:
    """Return what this process says of itself: the keys of ``EngineInfo``, and the runner's own."""
    return {
        **runner.info(),
        "served_model_name": served_model_name,
        "max_model_len": runner.max_model_len,
        "vocab_size": runner.vocab_size,
        "max_capture": min(MAX_TOP, runner.vocab_size),
        "threads": torch.get_num_threads(),
        "pid": os.getpid(),
        "version": version("narrowgate"),
        "program": program(),
    }


@dataclass(slots=True)
class EngineService:
    """Turns requests into answers to come; owned by the event loop's thread.

    ``description`` is that of :func:`describe`; its key ``kv_tokens``, if there, bounds what
    several answers of one request may need together.
    """

    description: dict[str, Any]
    loop: EngineLoop
    metrics: EngineMetrics
    tokenizer: Tokenizer
    is_draining: bool = False
    num_preparing: int = 0  # requests between acceptance and the loop
    info: EngineInfo = field(init=False)
    limits: ModelLimits = field(init=False)
    row_bytes: int = 0
    """What whole distributions that are kept for a score may hold."""
    fetches_rows: bool = False
    """Whether it fetches those that other engines keep."""
    captures: Captures = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    _preparation: Preparation = field(init=False)
    _compiler: GrammarCompiler = field(init=False)
    # One thread: a huge prompt delays other prompts, but never the tokens of running requests.
    _reader: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="prompt-reader")
    )

    def __post_init__(self) -> None:
        described = self.description
        self.info = EngineInfo.model_validate(described)
        self.limits = ModelLimits(
            described["max_model_len"], described["vocab_size"], described.get("kv_tokens")
        )
        self.captures = Captures(row_bytes=self.row_bytes, vocab_size=self.limits.vocab_size)
        self._compiler = GrammarCompiler(self.tokenizer, self.limits.vocab_size)
        self._preparation = Preparation(self.tokenizer, self.limits, self._compiler)

    @property
    def status(self) -> str:
        """Return ``ok``, or why this engine should get no requests."""
        if self.is_draining:
            return "draining"
        return "stalled" if self.loop.is_stalled(STALLED_AFTER_S) else "ok"

    @property
    def is_idle(self) -> bool:
        """Return whether no request is being prepared or answered."""
        return self.num_preparing == 0 and self.loop.num_unfinished == 0

    def model_card(self) -> dict[str, Any]:
        """Return this model's entry of ``GET /v1/models``."""
        return {
            "id": self.info.served_model_name,
            "object": "model",
            "created": self.created,
            "owned_by": "narrowgate",
            "max_model_len": self.info.max_model_len,
        }

    def check_open(self, model: str | None = None) -> None:
        """Refuse a request that is for another model or comes too late.

        Raises:
            Draining: the process is about to stop.
            ModelNotFound: another model is served here.
        """
        if self.is_draining:
            raise Draining("this engine is shutting down and takes no new requests")
        served = self.info.served_model_name
        if model is not None and model != served:
            raise ModelNotFound(f"The model {model[:100]!r} does not exist: this is {served!r}")

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Count a request as being prepared, as long as the block runs.

        Raises:
            Draining: the process is about to stop.
        """
        self.check_open()
        self.num_preparing += 1
        try:
            yield
        finally:
            self.num_preparing -= 1

    async def chat(
        self, request: ChatRequest, *, request_id: str, wish: Wish | None = None
    ) -> tuple[Choices, ChatFrames]:
        """Queue a chat request; return its answers to come and their renderer.

        Raises:
            ApiError: the request cannot be honoured; see ``preparation``.
        """
        prepared = await self._prepare(request, lambda: self._preparation.chat(request))
        tools = prepared.tools
        frames = ChatFrames(
            self._head("chatcmpl"),
            vocabulary=self.tokenizer.vocabulary,
            includes_usage=request.includes_usage,
            has_logprobs=bool(request.logprobs),
            returns_token_ids=bool(request.return_token_ids),
            reads_calls=tools is not None,
            ends_with_stop=tools is not None and tools.is_named,
        )
        return self._submit(prepared, request_id, wish), frames

    async def complete(
        self, request: CompletionRequest, *, request_id: str, wish: Wish | None = None
    ) -> tuple[Choices, CompletionFrames]:
        """Queue a completion request; return its answers to come and their renderer.

        Raises:
            ApiError: the request cannot be honoured; see ``preparation``.
        """
        prepared = await self._prepare(request, lambda: self._preparation.completion(request))
        frames = CompletionFrames(
            self._head("cmpl"),
            vocabulary=self.tokenizer.vocabulary,
            includes_usage=request.includes_usage,
            num_top=request.logprobs,
            prompts=prepared.prompts,
            echoes=bool(request.echo),
            returns_token_ids=bool(request.return_token_ids),
        )
        return self._submit(prepared, request_id, wish), frames

    def score(self, fields: dict[str, Any], *, request_id: str) -> tuple[Scoring, dict[str, Any]]:
        """Queue a text to be scored; return its scores to come and what stands beside them.

        Raises:
            ApiError: the request cannot be honoured, or too many texts wait already.
        """
        limits = self.limits
        request = parse_score(
            fields, max_model_len=limits.max_model_len, vocab_size=limits.vocab_size
        )
        self.check_open(request.model)
        feed = None
        if request.rows is not None:
            if not self.fetches_rows:
                raise InvalidRequest(
                    "'rows' is not taken here: only an engine that was started with --fetch-rows "
                    "fetches them; leave it out",
                    param="rows",
                )
            feed = RowFeed(request.rows, len(request.candidates), limits.vocab_size)
        scoring = Scoring(request, feed)
        self.loop.score(scoring, request_id=request_id)
        head = self._head("score") | {"recipe_digest": self.info.recipe_digest}
        return scoring, head | {"object": "scores", "start": request.start}

    async def tokenize(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a request for token ids.

        Raises:
            ApiError: the request cannot be honoured; see ``tokenization``.
        """
        request = parse_tokenize(fields)
        return await self._read(request, lambda: tokenized(request, self.tokenizer, self.limits))

    async def detokenize(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a request for the text of token ids.

        Raises:
            ApiError: the request cannot be honoured; see ``tokenization``.
        """
        request = parse_detokenize(fields)
        return await self._read(request, lambda: detokenized(request, self.tokenizer, self.limits))

    def close(self) -> None:
        """End the threads; running requests get nothing more."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        self.loop.stop()
        self._compiler.close()
        if self.metrics.spans is not None:
            self.metrics.spans.close()

    async def _prepare(self, request: Request, read: Callable[[], Prepared]) -> Prepared:
        sampling_params(request, limits=self.limits)  # refused before anything long is done
        return await asyncio.get_running_loop().run_in_executor(self._reader, read)

    async def _read(
        self, request: TokenizeRequest | DetokenizeRequest, read: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        self.check_open(request.model)
        refuse_unknown(request)
        return await asyncio.get_running_loop().run_in_executor(self._reader, read)

    def _submit(self, prepared: Prepared, request_id: str, wish: Wish | None) -> Choices:
        eos_ids, matcher = self.tokenizer.eos_ids, prepared.matcher
        generations = []
        choices = prepared.choices()
        for prompt, params in choices:
            constraint = None if matcher is None else self._compiler.constrain(matcher)
            sampler = Sampler(params, prompt_ids=prompt.ids, eos_ids=eos_ids, constraint=constraint)
            output = Output(params, vocabulary=self.tokenizer.vocabulary, eos_ids=eos_ids)
            sequence = Sequence(prompt.ids, params)
            recording = None
            if wish is not None and len(choices) == 1:
                wish = replace(wish, num_top=min(wish.num_top, self.limits.vocab_size))
                recording = self.captures.open(wish, prompt.ids, max_tokens=params.max_tokens)
            generations.append(
                self.loop.submit(
                    sequence, output, sampler=sampler, request_id=request_id, recording=recording
                )
            )
        return Choices(generations, num_per_prompt=prepared.num_per_prompt)

    def _head(self, prefix: str) -> dict[str, Any]:
        digest = self.info.recipe_digest
        return {
            "id": f"{prefix}-{uuid4().hex}",
            "created": int(time.time()),
            "model": self.info.served_model_name,
            "system_fingerprint": f"narrowgate-{digest[:12] if digest else 'full'}",
        }
