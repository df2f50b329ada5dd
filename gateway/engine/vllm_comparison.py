"""A recipe as vLLM runs it, and on the same support as the embedded engine runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from compression.errors import ReaderError
from compression.fidelity import TokenScores
from compression.fidelity_support import Told, score_on_support, score_told
from compression.recipe import Recipe
from gateway.engine.side_by_side import Counter, Cut, Live, blocks

ESTIMATOR = "topk"
TOP = 256
"""Tokens of which vLLM tells the log-probability; all of a vocabulary would be 3 MB a position."""


class Reader(Protocol):
    """An engine elsewhere that reads texts."""

    @property
    def version(self) -> str:
        """Return the engine's version."""

    @property
    def top(self) -> int:
        """Return of how many tokens it tells the log-probability."""

    @property
    def kernels(self) -> Mapping[str, str]:
        """Return its kernels by scheme."""

    @property
    def numerics(self) -> Mapping[str, str]:
        """Return the bits of weights and inputs that it multiplies, by scheme."""

    def read(self, token_ids: Sequence[int]) -> Told:
        """Return what it says of each token but the first."""


@dataclass(slots=True)
class OnSupport:
    """The positions of each slice under both engines, on the tokens that vLLM told of."""

    by_vllm: dict[str, list[TokenScores]] = field(default_factory=dict)
    by_embedded: dict[str, list[TokenScores]] = field(default_factory=dict)


def require_plain_caches(recipes: Sequence[Recipe]) -> None:
    """Refuse a recipe whose figures on vLLM would leave out a part of it.

    Raises:
        ReaderError: it quantizes keys or values.
    """
    recipe = next((each for each in recipes if each.kv_cache.is_quantized), None)
    if recipe is not None:
        raise ReaderError(
            f"recipe {recipe.name!r} quantizes the KV cache, which the embedded engine beside vLLM "
            "would read this text without: compare it without --engine vllm, or one with the same "
            "weights"
        )


def score_on_vllm(
    reader: Reader, full: Live, recipe: Live, windows: Cut, counter: Counter
) -> OnSupport:
    """Read each window by vLLM, by the recipe and by the full model, and score both recipes.

    Raises:
        ReaderError: vLLM refused, failed or is gone.
        FidelityError: a model gives infinities or no numbers.
    """
    scores = OnSupport()
    for name, parts in windows.items():
        for window in parts:
            told = reader.read(window.token_ids)
            counter.add(len(window.token_ids), f"{recipe.name} on vLLM on {name}")
            ids = list(window.token_ids)
            expected_states = full.runner.hidden(ids)
            states = expected_states if recipe.runner is full.runner else recipe.runner.hidden(ids)
            for rows in blocks(window.rows):
                targets = window.token_ids[rows.start + 1 : rows.stop + 1]
                # What a row predicts is the token behind it; of the first nothing was told.
                part = told.part(rows)
                expected = full.logits(expected_states, rows, name)
                found = recipe.logits(states, rows, name)
                by_vllm = score_told(expected, part, targets)
                by_embedded = score_on_support(expected, found, part, targets)
                scores.by_vllm.setdefault(name, []).append(by_vllm)
                scores.by_embedded.setdefault(name, []).append(by_embedded)
    return scores
