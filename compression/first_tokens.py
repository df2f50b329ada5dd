"""Tokens that stand first in a text, which every calibration must have seen enough of."""

import torch
from torch import Tensor

from compression.recipe import FIRST_TOKENS


def first_tokens(windows: Tensor) -> Tensor:
    """Return up to 2048 token ids ``[n, 1]``, taken at even distances from all of ``[B, T]``.

    What stands first in a text takes a special part in every layer: it sees only itself, and many
    later tokens attend to it (Sun et al. 2024, Massive Activations, arXiv 2402.17762). Windows
    hold few first tokens, and a fit that has seen too few of them ruins every text that starts
    otherwise; so each of these is read as a text of its own.
    """
    ids = windows.flatten()
    distance = max(1, len(ids) // FIRST_TOKENS)
    return ids[torch.arange(0, len(ids), distance)[:FIRST_TOKENS]].unsqueeze(1)
