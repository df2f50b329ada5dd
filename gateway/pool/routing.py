"""Which replica takes a request: the one that knows its beginning, unless it has too much to do."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BYTES_PER_TOKEN = 4
"""A rough measure that only ranks replicas; text in English has about this."""

DEFAULT_ANSWER_TOKENS = 256
"""What a request without a limit is taken to generate."""

PREFIX_CHARACTERS = 1024
"""Requests that begin with the same characters share what an engine has read of them."""

AFFINITY_SLACK_TOKENS = 2048
"""The replica that knows a prefix may have so much more to do than the idlest one."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request will cost, roughly, and how it begins."""

    tokens: int = 0
    prefix: bytes = b""


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """One replica as routing sees it."""

    index: int
    outstanding_tokens: int


def demand_of(fields: Mapping[str, Any]) -> Demand:
    """Return the demand of a chat or completion request."""
    text = str(fields.get("messages") or fields.get("prompt") or "")
    limit = fields.get("max_completion_tokens") or fields.get("max_tokens")
    answer = limit if isinstance(limit, int) else DEFAULT_ANSWER_TOKENS
    choices = fields.get("n")
    num_choices = choices if isinstance(choices, int) else 1
    return Demand(
        tokens=len(text) // BYTES_PER_TOKEN + answer * num_choices,
        prefix=text[:PREFIX_CHARACTERS].encode(errors="replace"),
    )


def choose(replicas: Sequence[ReplicaLoad], demand: Demand) -> int:
    """Return the index of the replica that should take a request; there must be one.

    The preferred one follows from the prefix by rendezvous hashing (Thaler and Ravishankar 1998),
    so that a replica that comes or goes moves only the prefixes that are its own.
    """
    idlest = min(replicas, key=lambda each: (each.outstanding_tokens, each.index))
    if not demand.prefix:
        return idlest.index
    preferred = max(replicas, key=lambda each: _weight(demand.prefix, each.index))
    excess = preferred.outstanding_tokens - idlest.outstanding_tokens
    return preferred.index if excess <= AFFINITY_SLACK_TOKENS else idlest.index


def _weight(prefix: bytes, index: int) -> bytes:
    return hashlib.blake2b(prefix, digest_size=8, key=index.to_bytes(4, "big")).digest()
