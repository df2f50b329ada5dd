"""Simulated traffic: requests with slices of realistic sizes, and heavy-tailed divergences."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.shadow.slices import ALL

MEAN = 0.03
"""Nats a token, of an undamaged int4 model."""

SHARES = {
    "length": {"0-127": 0.6, "128-511": 0.25, "512-2047": 0.12, "2048+": 0.03},
    "turns": {"single": 0.7, "multi": 0.3},
    "script": {
        "latin": 0.85,
        "cjk": 0.07,
        "cyrillic": 0.04,
        "arabic": 0.02,
        "devanagari": 0.01,
        "other": 0.01,
    },
    "domain": {"prose": 0.6, "code": 0.25, "math": 0.08, "json": 0.07},
    "format": {"free": 0.8, "json": 0.08, "schema": 0.05, "tools": 0.07},
    "sampling": {"greedy": 0.25, "sampled": 0.75},
}
"""How much of the traffic each slice is."""

HARDER = {"script:cjk": 1.6, "script:arabic": 1.8, "domain:code": 0.7, "domain:math": 1.3}
"""Slices that an undamaged model serves worse or better than the rest."""

_SPANS = {"position:0-63": (0, 64), "position:64-255": (64, 256), "position:256+": (256, 4000)}
_CHUNK = 20_000


@dataclass(frozen=True, slots=True)
class Bursts:
    """How requests resemble those before them: a factor that all of them share for a while."""

    memory: float = 0.0
    """Correlation of the factor's logarithm with the one before it."""
    spread: float = 0.0
    """Standard deviation of its logarithm."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A factor on the divergence of a slice; ``all`` is the whole model."""

    factor: float = 1.0
    slice: str = ALL


def requests(seed: int, bursts: Bursts, damage: Damage = Damage()) -> Iterator[dict[str, float]]:
    """Yield the divergences of scored requests, by slice, for ever."""
    random = np.random.default_rng(seed)
    level = 0.0
    while True:
        noise = random.standard_normal(_CHUNK) * bursts.spread * np.sqrt(1 - bursts.memory**2)
        levels = np.empty(_CHUNK)
        for index, each in enumerate(noise.tolist()):
            level = bursts.memory * level + each
            levels[index] = level
        yield from _chunk(random, np.exp(levels - bursts.spread**2 / 2), damage)


def _chunk(
    random: np.random.Generator, factors: NDArray[np.float64], damage: Damage
) -> Iterator[dict[str, float]]:
    names: list[NDArray[np.str_]] = []
    usual = MEAN * factors
    for dimension, shares in SHARES.items():
        values = np.array([f"{dimension}:{value}" for value in shares])
        drawn = random.choice(len(values), size=_CHUNK, p=list(shares.values()))
        weights = np.array([HARDER.get(str(value), 1.0) for value in values])
        if damage.slice in values:
            weights = weights * np.where(values == damage.slice, damage.factor, 1.0)
        usual = usual * weights[drawn]
        names.append(values[drawn])
    if damage.slice == ALL:
        usual = usual * damage.factor
    usual = usual * random.gamma(0.5, 2.0, _CHUNK)
    lengths = np.clip(random.lognormal(np.log(120), 1.0, _CHUNK), 1, 3999).astype(int)
    parts, tokens = _by_position(random, usual, lengths, damage)
    whole = (parts * tokens).sum(axis=1) / lengths
    own = [column.tolist() for column in names]
    for index, value in enumerate(whole.tolist()):
        scores = {ALL: value}
        for column in own:
            scores[column[index]] = value
        for place, name in enumerate(_SPANS):
            if tokens[index, place]:
                scores[name] = float(parts[index, place])
        yield scores


def _by_position(
    random: np.random.Generator,
    usual: NDArray[np.float64],
    lengths: NDArray[np.int_],
    damage: Damage,
) -> tuple[NDArray[np.float64], NDArray[np.int_]]:
    parts = usual[:, None] * random.gamma(2.0, 0.5, (len(usual), len(_SPANS)))
    tokens = np.stack([np.clip(lengths, low, high) - low for low, high in _SPANS.values()], axis=1)
    for place, name in enumerate(_SPANS):
        if name == damage.slice:
            parts[:, place] *= damage.factor
    return parts, tokens
