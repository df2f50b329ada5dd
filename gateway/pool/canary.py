"""The trial of a started engine: does it still find recorded tokens likely?

The first engine of a model writes a few tokens greedily; they are recorded with what they cost it.
Every engine that starts later, of the same variant or another, reads the same tokens (teacher
forcing) before it gets traffic. Weights that went wrong make them many nats less likely; what a
recipe costs is a fraction of one. The idea is the one-token oracle of vLLM's snapshots, widened to
engines that are near and not equal.
"""

import logging
import math
from dataclasses import dataclass

from gateway.errors import ApiError, CanaryFailed, EngineFault
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)

PROMPT = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is"
NUM_TOKENS = 16
_REQUEST_ID = "canary"
_NO_SUCH_PATH = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class Canary:
    """Recorded tokens: the prompt's, then the answer's, and the answer's mean cost in nats."""

    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    nll: float


async def record(client: EngineClient) -> Canary | None:
    """Return the tokens that an engine writes greedily; None: it does not tell.

    Raises:
        CanaryFailed: what it tells is no number.
        ApiError: it cannot answer at all.
    """
    fields = {
        "prompt": PROMPT,
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "logprobs": 1,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    try:
        choice = (await client.complete(fields, _REQUEST_ID))["choices"][0]
        prompt, answer = choice["prompt_token_ids"], choice["token_ids"]
        costs = choice["logprobs"]["token_logprobs"]
    except (LookupError, TypeError):
        return None
    except ApiError as error:
        if _is_failure(error):
            raise
        return None
    if not prompt or not answer:
        return None
    return Canary((*prompt, *answer), len(prompt), _mean_cost(client, costs))


async def check(client: EngineClient, canary: Canary, *, max_increase: float) -> float | None:
    """Return how many nats a token more the recorded tokens cost an engine; None: it cannot tell.

    Raises:
        CanaryFailed: more than ``max_increase``, or no number.
    """
    fields = {
        "prompt": list(canary.token_ids),
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "echo": True,
    }
    try:
        choice = (await client.complete(fields, _REQUEST_ID))["choices"][0]
        costs = choice["logprobs"]["token_logprobs"]
        answer = costs[canary.num_prompt_tokens : len(canary.token_ids)]
    except (LookupError, TypeError):
        return None
    except ApiError as error:
        if _is_failure(error):
            raise
        return None
    if len(answer) < len(canary.token_ids) - canary.num_prompt_tokens:
        return None
    increase = _mean_cost(client, answer) - canary.nll
    if increase > max_increase:
        raise CanaryFailed(
            f"{client.served_name} finds recorded tokens {increase:.2f} nats a token less likely "
            f"(limit {max_increase:g}, setting 'canary_max_nll_increase'): it is not served"
        )
    return increase


def _is_failure(error: ApiError) -> bool:
    """Return whether an engine failed at the trial, and does not merely lack what it needs."""
    if isinstance(error, EngineFault):
        return error.engine_status not in _NO_SUCH_PATH
    return error.status >= 500


def _mean_cost(client: EngineClient, logprobs: list[float | None]) -> float:
    known = [value for value in logprobs if value is not None and math.isfinite(value)]
    if not known or len(known) < len(logprobs):
        raise CanaryFailed(
            f"{client.served_name} answers with log-probabilities that are no numbers"
        )
    return -sum(known) / len(known)
