"""How fast loaded models decode, measured side by side."""

import statistics
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

CONTEXT_TOKENS = 128
STEPS = 64
_STEPS_A_TURN = 16


class Decoder(Protocol):
    """What is needed of a loaded model to let it decode."""

    @property
    def max_model_len(self) -> int:
        """Tokens that fit, prompt and output together."""
        ...

    def new_cache(self, max_tokens: int, /) -> Any:
        """Return room for one sequence."""
        ...

    def forward(self, batch: list[tuple[Any, list[int], int]], /) -> torch.Tensor:
        """Append tokens to each cache and return as many last logits of each as are wanted."""
        ...


def decode_shape(decoder: Decoder) -> tuple[int, int]:
    """Return the context and the steps to time: less than usual where a model holds less."""
    steps = min(STEPS, decoder.max_model_len - 1)
    return min(CONTEXT_TOKENS, decoder.max_model_len - steps), steps


def decode_ms(decoders: Sequence[Decoder], token_ids: Sequence[int], context: int) -> list[float]:
    """Return each model's median milliseconds a token, one sequence, after ``context`` tokens.

    The models take turns of a few steps, so that all of them meet the same load on the machine.
    """
    caches = [decoder.new_cache(len(token_ids)) for decoder in decoders]
    for decoder, cache in zip(decoders, caches, strict=True):
        decoder.forward([(cache, list(token_ids[:context]), 0)])
    laps: list[list[float]] = [[] for _ in decoders]
    for start in range(context, len(token_ids), _STEPS_A_TURN):
        turn = token_ids[start : start + _STEPS_A_TURN]
        for decoder, cache, times in zip(decoders, caches, laps, strict=True):
            for token in turn:
                began = time.perf_counter()
                decoder.forward([(cache, [token], 1)])
                times.append(1000 * (time.perf_counter() - began))
    return [statistics.median(times) for times in laps]
