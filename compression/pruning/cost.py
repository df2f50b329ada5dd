"""What pruning cost: the divergence of the written checkpoint from its source."""

import torch
from torch import Tensor

from compression.facts import CheckpointFacts
from compression.fidelity import score_tokens
from compression.layerwise import LayerStream

_ROWS = 256


@torch.no_grad()
def mean_kld(full: CheckpointFacts, pruned: CheckpointFacts, windows: Tensor) -> float:
    """Return the mean KL(full || pruned) in nats over the tokens [B, T] of ``windows``.

    Both checkpoints are run in float32, one layer in memory at a time.
    """
    following = windows[:, 1:].flatten().tolist()
    with LayerStream(full) as exact, LayerStream(pruned) as smaller:
        wanted, given = _final(exact, full, windows), _final(smaller, pruned, windows)
        total = 0.0
        for start in range(0, len(following), _ROWS):
            rows = slice(start, start + _ROWS)
            scores = score_tokens(
                exact.logits(wanted[rows]), smaller.logits(given[rows]), following[rows]
            )
            total += float(scores.kld.sum())
    return total / len(following)


def _final(stream: LayerStream, facts: CheckpointFacts, windows: Tensor) -> Tensor:
    """Return normalized final hidden states [n, hidden] of all positions that predict another."""
    hidden = stream.embed(windows)
    for index in range(facts.architecture.num_layers):
        hidden = torch.cat(list(stream.run(stream.layer(index), hidden)))
        stream.release(index)
    return stream.final_norm(hidden)[:, :-1].flatten(0, 1)
