"""A variant on trial: it takes a share of the requests for its model's plain name."""

import hashlib
import secrets

from gateway.pool.state import State
from gateway.pool.variant import Variant

_SCALE = 2.0**64


class Draw:
    """Gives each request a place between 0 and 1; the same one always gets the same."""

    def __init__(self) -> None:
        # Ids are the clients' word; with a key of our own nobody can choose.
        self._key = secrets.token_bytes(16)

    def place(self, request_id: str) -> float:
        """Return the place of a request."""
        digest = hashlib.blake2b(request_id.encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest) / _SCALE


class Share:
    """Says which requests a variant on trial takes; the same one always goes the same way."""

    def __init__(self, variant: Variant, share: float) -> None:
        self.variant = variant
        self.share = share
        self._draw = Draw()

    def takes(self, request_id: str) -> bool:
        """Return whether a request is its own; none is while it cannot serve."""
        return self.variant.state is State.READY and self._draw.place(request_id) < self.share
