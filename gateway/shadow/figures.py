"""Means of scored requests since the start that no verdict needs: noise floor, gap of top-k."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Floor:
    """The full model against itself, since the start; divergences are in nats a token.

    Over the likeliest tokens and a rest, however variants are scored.
    """

    num_requests: int = 0
    mean: float = 0.0
    largest: float = 0.0

    def with_one(self, mean: float) -> "Floor":
        """Return it with one more request of this mean."""
        count = self.num_requests + 1
        return Floor(count, self.mean + (mean - self.mean) / count, max(self.largest, mean))


@dataclass(frozen=True, slots=True)
class Gap:
    """What the bound over the likeliest tokens leaves out, by the requests with an exact score.

    Means of these requests' means since the start, in nats a token.
    """

    num_requests: int = 0
    exact: float = 0.0
    topk: float = 0.0

    def with_one(self, exact: float, topk: float) -> "Gap":
        """Return it with one more request of these means."""
        count = self.num_requests + 1
        return Gap(
            count,
            self.exact + (exact - self.exact) / count,
            self.topk + (topk - self.topk) / count,
        )
