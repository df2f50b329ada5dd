"""Whether a model says the same token by token as when it reads a text in one pass.

A comparison reads whole texts, with the kernels for many rows. A chat is decoded with those for
one row, in bf16 and from the cache. What that alone changes is measured here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compression.evaluation import Window
from compression.fidelity import TokenScores, pool, require_finite, score_tokens
from gateway.engine.decode_speed import Decoder

DECODED_TOKENS = 48
"""Of the first window of each slice, the last ones."""


def decoded_rows(window: Window) -> range:
    """Return the positions that are decoded: the last ones that have a follower, or none."""
    stop = len(window.token_ids) - 1
    return range(max(window.first, stop - DECODED_TOKENS), stop)


def score_decode_path(
    decoder: Decoder, one_pass: Tensor, window: Window, *, recipe: str, slice_name: str
) -> TokenScores:
    """Decode :func:`decoded_rows` step by step and compare with logits read in one pass.

    Args:
        decoder: the model that made ``one_pass``.
        one_pass: its logits of the decoded rows, ``[rows, vocab]``.
        window: the text; its tokens before the decoded ones are read at once.
        recipe: named where decoding gives no number.
        slice_name: likewise.

    Raises:
        FidelityError: decoding gives infinities or no numbers.
    """
    ids, rows = list(window.token_ids), decoded_rows(window)
    cache = decoder.new_cache(rows.stop)
    decoder.forward([(cache, ids[: rows.start], 0)])
    stepwise = torch.cat(
        [decoder.forward([(cache, [token], 1)]) for token in ids[rows.start : rows.stop]]
    )
    require_finite(stepwise, recipe=recipe, slice_name=slice_name)
    return score_tokens(one_pass, stepwise, ids[rows.start + 1 : rows.stop + 1])


def summarize_decode_path(parts: Sequence[TokenScores]) -> dict[str, Any] | None:
    """Return mean and maximum of the divergence, or None where no text was long enough."""
    if not parts:
        return None
    kld = pool(parts).kld
    return {"mean": float(kld.mean()), "max": float(kld.max()), "tokens": kld.numel()}
