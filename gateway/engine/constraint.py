"""Holds one answer to its grammar: the mask of the next token is made while the model computes."""

from concurrent.futures import Executor, Future

import numpy as np
import torch
from llguidance import LLMatcher


class Constraint:
    """The state of one sequence in its grammar.

    Masks are made on ``executor``, which must run one task at a time; :meth:`apply` waits for the
    last one. A grammar that outgrows its limits on the way allows no token any more.
    """

    def __init__(self, matcher: LLMatcher, executor: Executor) -> None:
        self._matcher = matcher
        self._executor = executor
        self._banned: Future[torch.Tensor | None] = executor.submit(self._next_mask, None)

    def apply(self, row: torch.Tensor) -> None:
        """Set the logits ``row`` [vocab] of all tokens to -inf that the grammar forbids."""
        banned = self._banned.result()
        if banned is None:
            row.fill_(float("-inf"))
            return
        known = banned.shape[0]
        row[:known].masked_fill_(banned[: row.shape[0]], float("-inf"))
        row[known:] = float("-inf")

    def push(self, token_id: int) -> None:
        """Go on behind the token that was chosen."""
        self._banned = self._executor.submit(self._next_mask, token_id)

    def _next_mask(self, token_id: int | None) -> torch.Tensor | None:
        """Return which ids are forbidden next, or None if nothing can follow."""
        matcher = self._matcher
        if token_id is not None and not matcher.consume_token(token_id):
            return None
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            return None
        return torch.from_numpy(np.unpackbits(~bits, bitorder="little").view(np.bool_))
