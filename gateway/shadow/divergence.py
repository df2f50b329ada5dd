"""How far a reply's distributions are from the reference's: pure mathematics, no clock, no I/O.

The KL divergence of the full model from the compressed one, KL(full || compressed), is exact where
the reference was given whole distributions and told it. Else it is taken over the tokens that both
sides told and one bin for all others. Merging tokens can only lower a divergence, so that is a
lower bound of the one over the whole vocabulary.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.shadow.records import Position, ScoredPosition
from gateway.shadow_settings import Estimator

LEAST_LOGPROB = -100.0
"""In place of log 0, so that one impossible token does not make a mean infinite."""

_ROUNDING = 1e-3


class NotANumber(ValueError):
    """A side told log-probabilities that are no numbers, or more than 1 in all."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """One reply, position by position; in nats."""

    kl: tuple[float, ...]
    """KL(full || compressed)."""
    agrees: tuple[bool, ...]
    """Whether both find the same token the likeliest."""
    nll: tuple[float, ...]
    """What the token that was served costs the compressed model: -log q."""
    nll_delta: tuple[float, ...]
    """By how much the token that was served is less likely to the full model: log q - log p."""

    bound: tuple[float, ...] = ()
    """Where ``kl`` is exact: the same over the candidates and the rest."""

    @property
    def estimator(self) -> Estimator:
        """Return how ``kl`` was found."""
        return "exact" if self.bound else "topk"

    @property
    def mean_bound(self) -> float:
        """Return the mean over the candidates and the rest, however ``kl`` was found."""
        return math.fsum(self.bound) / len(self.bound) if self.bound else self.mean_kl

    @property
    def mean_kl(self) -> float:
        """Return the mean over all positions."""
        return math.fsum(self.kl) / len(self.kl)

    @property
    def first_divergence(self) -> int | None:
        """Return the first position where the likeliest tokens differ; None if nowhere."""
        return next((place for place, agrees in enumerate(self.agrees) if not agrees), None)


def joined(parts: Sequence[Divergence]) -> Divergence:
    """Return one reply from its parts, in order."""
    return Divergence(
        kl=tuple(each for part in parts for each in part.kl),
        agrees=tuple(each for part in parts for each in part.agrees),
        nll=tuple(each for part in parts for each in part.nll),
        nll_delta=tuple(each for part in parts for each in part.nll_delta),
        bound=tuple(each for part in parts for each in part.bound),
    )


def compare(served: Sequence[Position], scored: Sequence[ScoredPosition]) -> Divergence:
    """Return the divergence of a reply.

    Raises:
        NotANumber: a log-probability is none.
        ValueError: the two sides have different lengths.
    """
    pairs = list(zip(served, scored, strict=True))
    chosen = [(position, said.logprobs.get(position.token_id)) for position, said in pairs]
    bound = tuple(coarse_kl(said.logprobs, candidates(position)) for position, said in pairs)
    exact = tuple(said.kl for said in scored if said.kl is not None)
    is_exact = len(exact) == len(bound)
    return Divergence(
        kl=exact if is_exact else bound,
        bound=bound if is_exact else (),
        agrees=tuple(top_token(position) == said.top_token_id for position, said in pairs),
        nll=tuple(-_floored(position.logprob) for position, _ in pairs),
        nll_delta=tuple(
            0.0 if logprob is None else _floored(position.logprob) - _floored(logprob)
            for position, logprob in chosen
        ),
    )


def candidates(position: Position) -> dict[int, float]:
    """Return the tokens that are compared at a position, as the compressed model sees them."""
    return {**position.top, position.token_id: position.logprob}


def top_token(position: Position) -> int:
    """Return the token that the compressed model finds the likeliest."""
    return next(iter(position.top), position.token_id)


def coarse_kl(full: Mapping[int, float], compressed: Mapping[int, float]) -> float:
    """Return KL(full || compressed) over the tokens that both tell, and one bin for the rest.

    Raises:
        NotANumber: a log-probability is none.
    """
    told = compressed.keys() & full.keys()
    p = [_floored(full[token_id]) for token_id in told]
    q = [_floored(compressed[token_id]) for token_id in told]
    probabilities = list(map(math.exp, p))
    terms = [each * (a - b) for each, a, b in zip(probabilities, p, q, strict=True)]
    rest_p, rest_q = _rest(probabilities), _rest(map(math.exp, q))
    if rest_p > 0:
        terms.append(rest_p * (math.log(rest_p) - _log(rest_q)))
    # Rounding can leave a hair below zero where both sides are the same.
    return max(0.0, math.fsum(terms))


def _floored(logprob: float) -> float:
    if LEAST_LOGPROB <= logprob <= 0:
        return logprob
    if math.isnan(logprob) or logprob > _ROUNDING:
        raise NotANumber(f"a log-probability is {logprob}")
    return 0.0 if logprob > 0 else LEAST_LOGPROB


def _rest(probabilities: Iterable[float]) -> float:
    """Return the probability of everything else."""
    rest = 1.0 - math.fsum(probabilities)
    if rest < -_ROUNDING:
        raise NotANumber(f"probabilities add up to {1 - rest:.4f}")
    return max(0.0, rest)


def _log(probability: float) -> float:
    return max(LEAST_LOGPROB, math.log(probability)) if probability > 0 else LEAST_LOGPROB


def noise_floor(
    token_ids: Sequence[int], first: Sequence[ScoredPosition], second: Sequence[ScoredPosition]
) -> Divergence:
    """Return how far two readings of one text by the same model are from each other.

    Raises:
        NotANumber: a log-probability is none.
        ValueError: the sides have different lengths.
    """
    rows = list(zip(token_ids, first, second, strict=True))
    return Divergence(
        kl=tuple(coarse_kl(one.logprobs, other.logprobs) for _, one, other in rows),
        agrees=tuple(one.top_token_id == other.top_token_id for _, one, other in rows),
        nll=tuple(-_floored(other.logprobs.get(token_id, 0.0)) for token_id, _, other in rows),
        nll_delta=tuple(
            _floored(other.logprobs.get(token_id, 0.0)) - _floored(one.logprobs.get(token_id, 0.0))
            for token_id, one, other in rows
        ),
    )
