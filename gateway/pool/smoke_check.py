"""The smoke check of a started engine: does it still find a known text likely?

Before it gets traffic every engine reads one text (teacher forcing) and continues it by a few
tokens. Of a model's variants none may find the text much less likely than the best one did. Weights
that went wrong make it many nats a token less likely; what a recipe costs is a fraction of one. The
idea is the one-token oracle of vLLM's snapshots, widened to engines that are near and not equal.
"""

import logging
import math

from gateway.errors import ApiError, EngineFault, SmokeCheckFailed
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)

TEXT = (
    "In spring the days grow longer and the birds come back from the south. The river carries the "
    "melted snow down to the sea, and the farmers begin to work in their fields again."
)
NUM_CONTINUED = 4
"""Tokens that are generated behind it, because a text alone says nothing of the decode path."""

_REQUEST_ID = "smoke-check"
_NO_SUCH_PATH = frozenset({404, 405, 501})


class SmokeCheck:
    """Lets no engine pass that errs far more than the best one of its model did.

    ``max_increase`` is in nats a token.
    """

    def __init__(self, max_increase: float) -> None:
        self._max_increase = max_increase
        self._best: dict[str, float] = {}
        """By model, the lowest cost of the text so far, in nats a token."""

    async def run(self, model: str, client: EngineClient) -> None:
        """Try an engine of a model; one that cannot tell what the text costs passes.

        Raises:
            SmokeCheckFailed: the text costs it far more, or what is no number.
            ApiError: the engine failed at it.
        """
        cost = await cost_of_text(client)
        if cost is None:
            logger.info("%s cannot be tried on a known text", client.served_name)
            return
        best = self._best.get(model, math.inf)
        require_near(client.served_name, cost, best, max_increase=self._max_increase)
        self._best[model] = min(best, cost)
        logger.info("a known text costs %s %.3f nats a token", client.served_name, cost)


async def cost_of_text(client: EngineClient) -> float | None:
    """Return what the text costs an engine, in nats a token; None: the engine cannot tell.

    Raises:
        SmokeCheckFailed: a cost is no number.
        ApiError: the engine failed at it.
    """
    fields = {
        "prompt": TEXT,
        "max_tokens": NUM_CONTINUED,
        "temperature": 0,
        "logprobs": 1,
        "echo": True,
    }
    try:
        reply = await client.complete(fields, _REQUEST_ID)
        costs = reply["choices"][0]["logprobs"]["token_logprobs"]
        num_prompt_tokens = int(reply["usage"]["prompt_tokens"])
    except (LookupError, TypeError, ValueError):
        return None
    except ApiError as error:
        if _is_failure(error):
            raise
        return None
    if len(costs) < num_prompt_tokens or num_prompt_tokens < 2:
        return None  # an engine without echo
    known = costs[1:]  # nothing stands before the first token
    if not all(isinstance(cost, (int, float)) and math.isfinite(cost) for cost in known):
        raise SmokeCheckFailed(
            f"{client.served_name} answers with log-probabilities that are no numbers"
        )
    return -math.fsum(costs[1:num_prompt_tokens]) / (num_prompt_tokens - 1)


def require_near(name: str, cost: float, best: float, *, max_increase: float) -> None:
    """Hold an engine's cost against the lowest of its model's engines so far.

    Raises:
        SmokeCheckFailed: it is more than ``max_increase`` nats a token above it.
    """
    if cost - best > max_increase:
        raise SmokeCheckFailed(
            f"{name} finds a known text {cost - best:.2f} nats a token less likely than the "
            f"model's best engine did (limit {max_increase:g}, setting "
            "'smoke_check_max_nll_increase'): it is not served"
        )


def _is_failure(error: ApiError) -> bool:
    """Return whether an engine failed at the check, and does not merely lack what it needs."""
    if isinstance(error, EngineFault):
        return error.engine_status not in _NO_SUCH_PATH
    return error.status >= 500
