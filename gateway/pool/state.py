"""The states of variants and replicas, how long they are borne with, and what is shown of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.pool.breaker import BreakerState
from gateway.prepared import Prepared
from gateway.protocol import EngineInfo
from gateway.specs import VariantSpec


class State(StrEnum):
    """Where a variant or a replica is in its life."""

    STOPPED = "stopped"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with an engine; times are in seconds."""

    stall_timeout_s: float = 60.0
    probe_every_s: float = 2.0
    first_backoff_s: float = 0.25
    last_backoff_s: float = 30.0
    max_restarts: int = 6
    window_s: float = 300.0
    stop_grace_s: float = 5.0
    drain_s: float = 30.0
    load_wait_s: float = 30.0
    retry_load_after_s: float = 30.0
    borrowed_s: float = 300.0
    """How long a variant stays that was loaded for one question, unless its model says it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's variants, from the smallest to the safest, and which of them serve its name."""

    ladder: tuple[str, ...]
    active: str
    canary: str | None
    routes: Mapping[str, str] = field(default_factory=dict)
    """By slice, the variant that answers most of its requests instead."""
    canary_share: float = 0.0
    """Of the requests for the model's plain name."""


@dataclass(frozen=True, slots=True)
class Headroom:
    """Memory for one more variant; in bytes."""

    free: int | None
    """None: there is no limit."""
    needed: Mapping[str, int]
    """By variant that is not loaded, as far as it is known: 0 of one that was never prepared."""


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    """A replica at one moment."""

    index: int
    state: State
    breaker: BreakerState
    num_running: int
    outstanding_tokens: int
    num_restarts: int
    url: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A variant at one moment, for everybody but the pool."""

    spec: VariantSpec
    state: State
    is_active: bool
    created: int
    info: EngineInfo | None
    prepared: Prepared | None
    load_s: float | None
    num_running: int
    num_bytes: int
    backend: str | None
    idle_s: float | None
    replicas: tuple[ReplicaSnapshot, ...]
