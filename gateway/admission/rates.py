"""Requests and tokens a minute of each key, and the headers that tell clients about them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.admission.rate_store import RateStore
from gateway.admission.window import Window
from gateway.api_key import ApiKey
from gateway.envelope import MAX_RETRY_AFTER_S
from gateway.errors import RequestRateExceeded, TokenRateExceeded


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens that are counted for a request before anybody knows its real number."""

    num_tokens: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


class Rates:
    """Holds keys to their limits."""

    def __init__(self, store: RateStore) -> None:
        self._store = store

    async def reserve(self, key: ApiKey, num_tokens: int) -> Reservation:
        """Count a request of about ``num_tokens`` tokens.

        Raises:
            RequestRateExceeded: the key has no request left.
            TokenRateExceeded: the key has not enough tokens left.
        """
        headers: dict[str, str] = {}
        if (limit := key.requests_per_minute) is not None:
            is_free, window = await self._take(_name(key, "requests"), limit, 1)
            headers |= _headers("requests", limit, window)
            if not is_free:
                raise RequestRateExceeded(
                    f"the key {key.name!r} has used its {limit} requests of this minute",
                    retry_after_s=_retry_after_s(window, limit, 1),
                    headers=headers,
                )
        if (limit := key.tokens_per_minute) is None:
            return Reservation(headers=headers)
        # A guess larger than the limit could never pass; what it really took is counted later.
        cost = min(num_tokens, limit)
        is_free, window = await self._take(_name(key, "tokens"), limit, cost)
        headers |= _headers("tokens", limit, window)
        if not is_free:
            raise TokenRateExceeded(
                f"the key {key.name!r} has {window.remaining(limit)} of {limit} tokens left in "
                f"this minute, and the request takes about {num_tokens}",
                retry_after_s=_retry_after_s(window, limit, cost),
                headers=headers,
            )
        return Reservation(cost, headers)

    async def settle(self, key: ApiKey, reserved: int, used: int) -> None:
        """Put the real number of tokens in the place of the reserved one."""
        if key.tokens_per_minute is not None and used != reserved:
            await self._store.correct(_name(key, "tokens"), used - reserved)

    async def _take(self, name: str, limit: int, cost: int) -> tuple[bool, Window]:
        is_free = await self._store.take(name, limit=limit, cost=cost)
        return is_free, await self._store.window(name)


def _name(key: ApiKey, kind: str) -> str:
    return f"{key.name}/{kind}"


def _headers(kind: str, limit: int, window: Window) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(window.remaining(limit)),
        f"x-ratelimit-reset-{kind}": f"{window.reset_s():.3f}s",
    }


def _retry_after_s(window: Window, limit: int, cost: int) -> float:
    return min(MAX_RETRY_AFTER_S, max(1, math.ceil(window.wait_s(limit, cost))))
