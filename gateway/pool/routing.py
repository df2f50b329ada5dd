"""Which replica takes a request: the one that knows its beginning, unless it has too much to do."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.demand import Demand

DEFAULT_ANSWER_TOKENS = 256
"""What a request without a limit is taken to generate."""

AFFINITY_SLACK_TOKENS = 2048
"""The replica that knows a prefix may have so much more to do than the idlest one, at most."""


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """One replica as routing sees it."""

    index: int
    outstanding_tokens: int


def work_of(demand: Demand) -> int:
    """Return the tokens that a replica has outstanding for a request."""
    return demand.prompt_tokens + (demand.answer_tokens or DEFAULT_ANSWER_TOKENS)


def choose(replicas: Sequence[ReplicaLoad], demand: Demand) -> int:
    """Return the index of the replica that should take a request; there must be one.

    The preferred one follows from the prefix by rendezvous hashing (Thaler and Ravishankar 1998),
    so that a replica that comes or goes moves only the prefixes that are its own. It may have
    more to do than the idlest one by the prompt's tokens: its beginning spares no more.
    """
    idlest = min(replicas, key=lambda each: (each.outstanding_tokens, each.index))
    if not demand.prefix:
        return idlest.index
    preferred = max(replicas, key=lambda each: _weight(demand.prefix, each.index))
    excess = preferred.outstanding_tokens - idlest.outstanding_tokens
    slack = min(AFFINITY_SLACK_TOKENS, demand.prompt_tokens)
    return preferred.index if excess <= slack else idlest.index


def _weight(prefix: bytes, index: int) -> bytes:
    return hashlib.blake2b(prefix, digest_size=8, key=index.to_bytes(4, "big")).digest()
