"""Raw log-probabilities of a step: before temperature, top-k and top-p."""

import torch

from gateway.engine.sequence import TokenLogprob


def token_logprob(logits: torch.Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Return the log-probability of ``token_id`` under ``logits`` [vocab], and the top ones."""
    normalizer = float(logits.logsumexp(0))
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        values, ids = logits.topk(min(num_top, logits.shape[0]))
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        top = tuple((index, min(0.0, value - normalizer)) for index, value in pairs)
    return TokenLogprob(token_id, min(0.0, float(logits[token_id]) - normalizer), top)
