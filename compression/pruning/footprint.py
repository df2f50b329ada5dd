"""How much memory pruning takes at most, told from the headers alone."""

from compression.facts import ITEMSIZE, CheckpointFacts
from compression.recipe import FIRST_TOKENS, Calibration, Prune

_MOMENTS = 6
"""Square float32 matrices of the widest cut input that a refit holds at once."""
_HIDDEN_COPIES = 3
"""float32 copies of all hidden states."""
_BATCH_TOKENS = 4096
_LOGIT_ROWS = 256


def prune_bytes(facts: CheckpointFacts, prune: Prune, calibration: Calibration) -> int:
    """Return a bound for the memory of pruning above an interpreter with torch, in bytes.

    The checkpoint's files count in full, because some scores hold the whole model.
    """
    architecture = facts.architecture
    hidden, neurons = architecture.hidden_size, architecture.intermediate_size
    per_layer = sum(rows * columns for _, (rows, columns) in architecture.linears(0))
    widest = neurons if prune.neurons else architecture.num_heads * architecture.head_dim
    tokens = calibration.tokens + FIRST_TOKENS
    needed = (
        facts.num_bytes
        + 2 * 4 * per_layer
        + _MOMENTS * 4 * widest * widest
        + _HIDDEN_COPIES * 4 * tokens * hidden
        + 4 * _BATCH_TOKENS * (6 * hidden + 3 * neurons)
        + 4 * 4 * _LOGIT_ROWS * architecture.vocab_size
    )
    if prune.score == "leave-one-out":
        needed += sum(4 * each.num_bytes // ITEMSIZE[each.dtype] for each in facts.tensors.values())
    return needed
