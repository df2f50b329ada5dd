"""The form in which a monitor's knowledge survives a restart."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.shadow.verdict import State

VERSION: Literal[1] = 1

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Moment = Annotated[float, Field(allow_inf_nan=False)]


_WEIGHTS = "#"
_DIGITS = 16


def identified(name: str, weights: str | None) -> str:
    """Return a name of a reference with the digest of its weights, as far as they are known."""
    return name if weights is None else f"{name}{_WEIGHTS}{weights[:_DIGITS]}"


def is_same(one: str, other: str) -> bool:
    """Return whether two digests agree, of which one may not know the reference's weights yet.

    A digest ends in the reference, as :func:`identified` names it.
    """
    shorter, longer = sorted((one, other), key=len)
    return one == other or longer.startswith(f"{shorter}{_WEIGHTS}")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SequenceState(_Record):
    """Of a confidence sequence."""

    n: Count
    total: Amount
    scatter: Amount
    guess: Annotated[float, Field(gt=0, lt=1)]


class DetectorState(_Record):
    """Of a detector."""

    values: Annotated[tuple[Amount, ...], Field(min_length=6, max_length=6)]


class TrialState(_Record):
    """Of a slice that is tried against its tolerance."""

    tolerance: Positive
    clip: Positive
    state: Literal[State.LEARNING, State.OK, State.DRIFT]
    attempt: Count
    sequence: SequenceState
    recovery: SequenceState
    detector: DetectorState


class TrackState(_Record):
    """Of one slice; ``worst`` is the divergence in nats at which its baseline is cut."""

    since: Moment | None
    last_scored: Moment | None
    confirmed: Moment | None
    is_learned: bool
    worst: Positive
    baseline: SequenceState
    trial: TrialState | None


class MonitorState(_Record):
    """Of all slices of one variant."""

    version: Literal[1]
    digest: str
    slices: dict[str, TrackState]
