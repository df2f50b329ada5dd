"""How a reference is asked: an engine of ours as it likes it, any other one as vLLM."""

from typing import Protocol

from gateway.protocol import EngineInfo
from gateway.shadow.embedded_scorer import EmbeddedScorer
from gateway.shadow.records import Scorer
from gateway.shadow.vllm_scorer import VllmScorer
from gateway.upstream import EngineClient
from gateway.wire import MAX_TOP_LOGPROBS

_TOP = 64
"""Likeliest tokens that a vLLM of ours is asked for, so that few candidates are missed."""


class MakeScorer(Protocol):
    """Chooses how a reference is asked."""

    def __call__(self, client: EngineClient, info: EngineInfo, backend: str) -> Scorer:
        """Return what scores texts with an engine.

        Raises:
            ApiError: the engine cannot score.
        """


def make_scorer(client: EngineClient, info: EngineInfo, backend: str) -> Scorer:
    """Return what scores texts with an engine of ours, or else as vLLM does it."""
    if info.max_capture is not None:
        return EmbeddedScorer(client)
    # Of one that others run nothing is known but vLLM's own limit.
    return VllmScorer(client, top=_TOP if backend == "vllm" else MAX_TOP_LOGPROBS)
