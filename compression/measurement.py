"""How far the artifact is from its source, measured with one layer of each in memory.

Weights alone are compared: both models are run in float32 by transformers' own layers. What the
serving kernels add is in ``narrowgate compare``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.evaluation import Window
from compression.events import OnProgress, Progress
from compression.facts import CheckpointFacts
from compression.fidelity import TokenScores, pool, require_finite, score_tokens
from compression.layerwise import LayerStream, Weights
from compression.recipe import FULL

_LOGIT_BYTES = 64 << 20
"""Of the logits of each model that are held at once."""


@torch.no_grad()
def measure(
    full: CheckpointFacts,
    served: CheckpointFacts,
    weights: Weights | None,
    slices: Mapping[str, Sequence[Window]],
    on_progress: OnProgress,
    *,
    recipe: str = "compressed",
    on_logits: Callable[[Tensor], None] | None = None,
) -> dict[str, TokenScores]:
    """Return the scores of every slice.

    Args:
        full: the source.
        served: what the artifact was made from: ``full``, or what pruning left of it.
        weights: the artifact's; None for those of ``served`` itself.
        slices: windows of token ids.
        on_progress: is told of layers.
        recipe: what errors call the artifact.
        on_logits: is given the artifact's logits ``[n, vocabulary]``, the windows in turn.

    Raises:
        FidelityError: one of the models gives logits that are infinite or no numbers.
    """
    windows = [window for parts in slices.values() for window in parts]
    ids = [torch.tensor([window.token_ids]) for window in windows]
    total = full.architecture.num_layers + served.architecture.num_layers
    with LayerStream(full) as exact, LayerStream(served, weights) as compressed:
        states = [
            _final(stream, facts.architecture.num_layers, ids, on_progress, first, total)
            for stream, facts, first in (
                (exact, full, 0),
                (compressed, served, full.architecture.num_layers),
            )
        ]
        names = [name for name, parts in slices.items() for _ in parts]
        scores = [
            _score(
                _Logits(exact, wanted[window.rows], FULL, name),
                _Logits(compressed, given[window.rows], recipe, name, on_logits),
                window.targets,
            )
            for name, window, wanted, given in zip(names, windows, *states, strict=True)
        ]
    remaining = iter(scores)
    return {name: pool([next(remaining) for _ in parts]) for name, parts in slices.items()}


def _final(
    stream: LayerStream,
    layers: int,
    ids: Sequence[Tensor],
    on_progress: OnProgress,
    first: int,
    total: int,
) -> list[Tensor]:
    """Return normalized final hidden states ``[T, hidden]`` of each window."""
    hidden = [stream.embed(window) for window in ids]
    for index in range(layers):
        on_progress(Progress("measure", first + index, total, "layers"))
        layer = stream.layer(index)
        hidden = [torch.cat(list(stream.run(layer, window))) for window in hidden]
        stream.release(index)
    return [stream.final_norm(window)[0] for window in hidden]


@dataclass(frozen=True, slots=True)
class _Logits:
    """The logits of one model over one window, made a few rows at a time."""

    stream: LayerStream
    hidden: Tensor
    """Normalized final hidden states ``[T, hidden]``."""
    recipe: str
    slice_name: str
    on_logits: Callable[[Tensor], None] | None = None

    def rows(self, rows: slice) -> Tensor:
        """Return some rows ``[n, vocabulary]``; they must be finite."""
        logits = self.stream.logits(self.hidden[rows])
        require_finite(logits, recipe=self.recipe, slice_name=self.slice_name)
        if self.on_logits is not None:
            self.on_logits(logits)
        return logits


def _score(wanted: _Logits, given: _Logits, targets: Sequence[int]) -> TokenScores:
    step = max(1, _LOGIT_BYTES // (4 * wanted.stream.vocab_size))
    return pool(
        [
            score_tokens(wanted.rows(rows), given.rows(rows), targets[rows])
            for rows in (slice(at, at + step) for at in range(0, len(targets), step))
        ]
    )
