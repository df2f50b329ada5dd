"""What an artifact's weights predict for fixed texts: kept at the build, asked of engines later.

An engine that serves the weights rounds on the way, and so comes near to what is kept and not to
it. How far off a sound engine is hardly depends on the processor; damage adds to it. So the
distance itself is kept too, as a sound engine had it at the build.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from compression.errors import ArtifactError

FILE_NAME = "fixed_texts.json"
ALL = "all"
NUM_TOP = 4
"""Tokens of each position whose log-probabilities are kept; all others are one bin."""

FACTOR, TEXT_FACTOR = 1.08, 1.2
"""How many times as far off as at the build an engine may be: on all texts together, and on one."""
LEAST = 1e-4
"""What may be added at least, in nats: distances that are near 0 have no factor."""

_LEAST_REST = 1e-5
"""A bin that is told by what it leaves of 1 is known no better than this."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FixedText(_Record):
    """Token ids, and for each from number ``first`` on what was likely to stand there."""

    name: str
    token_ids: tuple[int, ...]
    first: int
    top_ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    """Natural, of ``top_ids``, by the weights alone in float32."""


class FixedTexts(_Record):
    """The content of the file; a slice longer than a window is several texts of one name."""

    texts: tuple[FixedText, ...]


class Reading(_Record):
    """How far a sound engine was from what is kept."""

    version: str
    """Of the engine's program and of the libraries that compute for it."""
    numerics: str
    """What it reads texts with, in its own words; of engines with others this says nothing."""
    distances: dict[str, float]
    """By text, and of all together: means over tokens of :func:`distance`, nats."""
    processors: tuple[str, ...] = ()
    """Instruction sets of machines where an engine is known to have these numerics."""


class FixedTextsRecord(_Record):
    """What the manifest says of the texts."""

    file: str = FILE_NAME
    tokens: int
    """That are predicted."""
    reading: Reading | None = None
    """None: no engine has read them since the build."""


def distance(kept: Sequence[float], told: Sequence[float]) -> float:
    """Return the square root of twice the KL divergence, nats, over some tokens and one bin more.

    Where distributions are near, that is how much log-probabilities differ: the root mean square
    over what is likely. Both are natural log-probabilities of the same tokens. Of what is no number
    it is infinite.
    """
    if any(map(math.isnan, told)):
        return math.inf
    known = sum(math.exp(a) * (a - b) for a, b in zip(kept, told, strict=True))
    rest = max(_LEAST_REST, 1 - sum(map(math.exp, kept)))
    rest_told = max(_LEAST_REST, 1 - sum(map(math.exp, told)))
    return math.sqrt(2 * max(0.0, known + rest * math.log(rest / rest_told)))


def mean_distances(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean of each text's distances, and that of all tokens together."""
    together = [each for distances in found.values() for each in distances]
    return {
        name: math.fsum(distances) / len(distances)
        for name, distances in {ALL: together, **found}.items()
    }


def limits_of(reading: Reading) -> dict[str, float]:
    """Return how far off an engine may be, in nats a token, ``all`` first."""
    factors = {name: TEXT_FACTOR for name in reading.distances} | {ALL: FACTOR}
    return {
        name: max(factors[name] * usual, usual + LEAST)
        for name, usual in sorted(reading.distances.items(), key=lambda item: item[0] != ALL)
    }


def write_fixed_texts(texts: FixedTexts, directory: Path) -> Path:
    """Write the texts into an artifact's directory and return the file.

    Raises:
        OSError: the file cannot be written.
    """
    path, temporary = directory / FILE_NAME, directory / f".{FILE_NAME}"
    temporary.write_text(texts.model_dump_json(), encoding="utf-8")
    return temporary.replace(path)  # at once: an engine may be hashing what is there


def read_fixed_texts(directory: Path) -> FixedTexts:
    """Return the texts that lie in an artifact's directory.

    Raises:
        ArtifactError: the file is missing, unreadable, or its parts do not belong together.
    """
    path = directory / FILE_NAME
    try:
        texts = FixedTexts.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        reason = "no texts" if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise _unusable(path, reason) from None
    if not texts.texts:
        raise _unusable(path, "no texts")
    for text in texts.texts:
        count = len(text.token_ids) - text.first
        widths = zip(text.top_ids, text.logprobs, strict=False)
        if (
            not 0 < text.first < len(text.token_ids)
            or not len(text.top_ids) == len(text.logprobs) == count
            or not all(0 < len(ids) == len(logprobs) for ids, logprobs in widths)
            or not all(-math.inf < each <= 0 for row in text.logprobs for each in row)
        ):
            raise _unusable(path, f"text {text.name!r} does not fit its tokens")
    return texts


def _unusable(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"{str(path)!r} is unreadable ({reason}): build the artifact again")
