"""What a request adds to or takes from the logits before a token is chosen.

Presence and frequency penalties count the answer's tokens, the repetition penalty the prompt's
too, as OpenAI, vLLM and transformers define them.
"""

from collections.abc import Sequence as Items

import torch

from gateway.engine.sequence import SamplingParams

BANNED = float("-inf")


class SeenTokens:
    """The distinct tokens of one text with their counts, as tensors that grow in place."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self._ids = torch.empty(64, dtype=torch.int64)
        self._counts = torch.zeros(64)

    def add(self, token_id: int) -> None:
        """Count one more occurrence."""
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._ids):
            self._ids = torch.cat([self._ids, torch.empty_like(self._ids)])
            self._counts = torch.cat([self._counts, torch.zeros_like(self._counts)])
        self._ids[slot] = token_id
        self._counts[slot] += 1

    @property
    def ids(self) -> torch.Tensor:
        """Return the distinct ids ``[num]``."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> torch.Tensor:
        """Return how often each occurred ``[num]``, float32."""
        return self._counts[: len(self._slots)]


class Penalties:
    """Penalties, biases and bans of one request."""

    def __init__(
        self, params: SamplingParams, *, prompt_ids: Items[int], eos_ids: frozenset[int]
    ) -> None:
        self._params = params
        self._end_ids = torch.tensor(sorted(eos_ids | params.stop_token_ids), dtype=torch.int64)
        self._bias_ids = torch.tensor([pair[0] for pair in params.logit_bias], dtype=torch.int64)
        self._bias = torch.tensor([pair[1] for pair in params.logit_bias])
        self._answer = SeenTokens()
        self._text = SeenTokens()
        self._num_output = 0
        self._counts = bool(params.presence_penalty or params.frequency_penalty)
        self._repeats = params.repetition_penalty != 1
        if self._repeats:
            for token_id in set(prompt_ids):
                self._text.add(token_id)

    @staticmethod
    def are_wanted(params: SamplingParams) -> bool:
        """Return whether a request asks for any of them."""
        return bool(
            params.presence_penalty
            or params.frequency_penalty
            or params.repetition_penalty != 1
            or params.logit_bias
            or params.min_tokens
        )

    def apply(self, row: torch.Tensor) -> None:
        """Change the logits ``row`` [vocab] of the next token in place."""
        params = self._params
        if self._repeats:
            ids, factor = self._text.ids, params.repetition_penalty
            values = row[ids]
            row[ids] = torch.where(values < 0, values * factor, values / factor)
        if self._counts:
            seen = self._answer
            penalty = params.frequency_penalty * seen.counts + params.presence_penalty
            row[seen.ids] -= penalty
        if params.logit_bias:
            row[self._bias_ids] += self._bias
        if self._num_output < params.min_tokens:
            row[self._end_ids] = BANNED

    def push(self, token_id: int) -> None:
        """Count the token that was chosen."""
        self._num_output += 1
        if self._counts:
            self._answer.add(token_id)
        if self._repeats:
            self._text.add(token_id)
