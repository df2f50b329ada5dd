"""What one engine process offers: a model under a name, and whether it still takes requests."""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

import torch

from gateway.engine.chat import prompt_ids
from gateway.engine.frames import ReplyFrames
from gateway.engine.generation import Generation
from gateway.engine.loop import EngineLoop, ModelRunner
from gateway.engine.output import Output
from gateway.engine.parameters import sampling_params
from gateway.engine.sequence import Sequence
from gateway.engine.tokenizer import Tokenizer
from gateway.errors import Draining, ModelNotFound
from gateway.protocol import ChatRequest, EngineInfo

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
        "threads": torch.get_num_threads(),
        "pid": os.getpid(),
    }


@dataclass(slots=True)
class EngineService:
    """Turns chat requests into generations; owned by the event loop's thread."""

    description: dict[str, Any]
    loop: EngineLoop
    tokenizer: Tokenizer
    is_draining: bool = False
    num_preparing: int = 0  # requests between acceptance and the loop
    info: EngineInfo = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    # One thread: a huge prompt delays other prompts, but never the tokens of running requests.
    _reader: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="prompt-reader")
    )

    def __post_init__(self) -> None:
        self.info = EngineInfo.model_validate(self.description)

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

    async def generate(self, request: ChatRequest, *, request_id: str) -> Generation:
        """Read the prompt and queue the request; the id is for the log.

        Raises:
            ApiError: the request cannot be honoured; see ``chat`` and ``parameters``.
        """
        room = self.info.max_model_len
        sampling_params(request, room=room)  # refused before the prompt is read
        ids = await asyncio.get_running_loop().run_in_executor(
            self._reader,
            lambda: prompt_ids(request.messages, self.tokenizer, max_model_len=room),
        )
        params = sampling_params(request, room=room - len(ids))
        output = Output(
            params, vocabulary=self.tokenizer.vocabulary, eos_ids=self.tokenizer.eos_ids
        )
        return self.loop.submit(Sequence(ids, params), output, request_id=request_id)

    def frames(self, request: ChatRequest) -> ReplyFrames:
        """Return the renderer of the replies to ``request``."""
        digest = self.info.recipe_digest
        head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": self.info.served_model_name,
            "system_fingerprint": f"narrowgate-{digest[:12] if digest else 'full'}",
        }
        return ReplyFrames(
            head,
            vocabulary=self.tokenizer.vocabulary,
            includes_usage=request.includes_usage,
            has_logprobs=bool(request.logprobs),
        )

    def close(self) -> None:
        """End the threads; running requests get nothing more."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        self.loop.stop()
