"""Scores of given tokens under a reference that vLLM serves, from its prompt log-probabilities.

A call with ``prompt_logprobs`` is no small one. For every token of the prompt vLLM makes the logits
of the whole vocabulary, log-probabilities of them in float32, and a comparison of their size:
``tokens x vocabulary x 12`` bytes that no memory profile has counted. It does so for as many tokens
as it reads in one step, so ``--max-num-batched-tokens`` is what bounds it, not the caller; a
reference is to be started with :data:`STEP_TOKENS`, in a process of its own. What a caller can
bound is the length of a text and the number of texts at a time: both are bounded here. Cutting a
text into several calls would help nobody, because each reads all that came before: prefix caching
is passed over for such prompts, or the positions found there would have no numbers.
"""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

from gateway.errors import ContextLengthExceeded, EngineFault, EngineRefused, InvalidRequest
from gateway.shadow.records import ScoredPosition
from gateway.shadow.vllm_rows import PromptPosition, read_rows
from gateway.upstream import EngineClient
from gateway.wire import MAX_TOP_LOGPROBS

STEP_TOKENS = 256
"""``--max-num-batched-tokens`` of a reference: 0.5 GB of logits at 150,000 words of vocabulary."""

MAX_TEXT_TOKENS = 8192
"""A longer text is not scored; its reply would be 12 MB at 20 tokens a position."""

_PATH = "/v1/completions"


class VllmScorer:
    """A :class:`gateway.shadow.records.Scorer`; one text at a time, in the order they come.

    Of the candidates only those are told that are among the reference's ``top`` likeliest, and the
    token that really stands at the position.
    """

    def __init__(
        self,
        client: EngineClient,
        *,
        top: int = MAX_TOP_LOGPROBS,
        max_tokens: int = MAX_TEXT_TOKENS,
    ) -> None:
        self._client = client
        self._top = top
        self._max_tokens = max_tokens
        self._turn = asyncio.Lock()

    async def score(
        self, token_ids: Sequence[int], start: int, candidates: Sequence[Sequence[int]]
    ) -> list[ScoredPosition]:
        """Return what the reference says of position ``start + i`` for ``candidates[i]``.

        Raises:
            InvalidRequest: a position is not within the text, or the first, which nothing precedes.
            ContextLengthExceeded: the text is longer than is scored here, or than the context.
            ApiError: the reference refused, failed or is gone.
        """
        stop = start + len(candidates)
        if start < 1 or stop > len(token_ids) or not candidates:
            raise InvalidRequest(
                f"positions {start} to {stop - 1} of a text of {len(token_ids)} tokens cannot be "
                f"scored: send some of 1 to {len(token_ids) - 1}",
                param="start",
            )
        if stop > self._max_tokens:
            raise ContextLengthExceeded(
                f"{stop} tokens are to be read, and at most {self._max_tokens} are scored at once: "
                "send a shorter text",
                param="token_ids",
            )
        async with self._turn:
            read = await read_prompt(self._client, token_ids[:stop], top=self._top, first=start)
        # Requests share this thread.
        return await asyncio.to_thread(_for_candidates, read, candidates)


async def read_prompt(
    client: EngineClient, token_ids: Sequence[int], *, top: int, first: int = 1
) -> list[PromptPosition]:
    """Return what vLLM says of a prompt's tokens from ``first`` on; nothing precedes number 0.

    ``top`` is at most the server's ``--max-logprobs``.

    Raises:
        ContextLengthExceeded: the prompt fills the server's context.
        ApiError: vLLM refused, failed, is gone, or told something else.
    """
    fields = {
        "prompt": list(token_ids),
        "prompt_logprobs": top,
        "max_tokens": 1,  # none is refused
        "temperature": 0,
        "add_special_tokens": False,
    }
    try:
        async with client.generate(_PATH, fields, f"score-{uuid4().hex[:16]}") as reply:
            raw = await reply.body()
    except EngineRefused as error:
        if error.param == "max_tokens":
            raise ContextLengthExceeded(
                f"{len(token_ids)} tokens leave no room in the reference's context for the one "
                "that it must write: send a shorter text"
            ) from None
        raise
    try:
        return await asyncio.to_thread(read_rows, raw, token_ids, first)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise EngineFault(
            f"{client.base_url} told no 'prompt_logprobs' of {len(token_ids)} tokens: a reference "
            "must be a vLLM server of this model"
        ) from None


def _for_candidates(
    read: Sequence[PromptPosition], candidates: Sequence[Sequence[int]]
) -> list[ScoredPosition]:
    return [
        ScoredPosition(
            {each: position.logprobs[each] for each in wanted if each in position.logprobs},
            position.top_token_id,
        )
        for position, wanted in zip(read, candidates, strict=True)
    ]
