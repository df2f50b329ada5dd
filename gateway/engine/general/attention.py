"""The attention that transformers' models call here."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NAME = "narrowgate"
"""Under which transformers' registries know it."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Return ``[1, m, heads, head_dim]`` for queries ``[1, heads, m, head_dim]``.

    Keys and values are ``[1, kv_heads, n, head_dim]``. The mask is transformers' own, so it knows
    of windows and chunks: True where a query sees a key. Without one, queries see what came before.

    Args:
        module: the attention layer; not read.
        query, key, value: as above.
        attention_mask: ``[1, 1, m, n]`` or None.
        scaling: of the scores; by default the head's size to the power -1/2.
        softcap: scores are squeezed into ±softcap (Gemma 2).
        s_aux: a sink's score per head, which takes probability and gives no value (GPT-OSS).
        unused: what other implementations read, such as the window that the mask has already.
    """
    count, length = query.shape[2], key.shape[2]
    mask = attention_mask
    if mask is None and count > 1:
        seen = torch.ones(count, length, dtype=torch.bool, device=query.device)
        mask = seen.tril(length - count)
    elif mask is not None:
        mask = mask[..., :length]
    if softcap is None and s_aux is None:
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return mixed.transpose(1, 2), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(mask.logical_not(), float("-inf"))
    if s_aux is not None:
        sinks = s_aux.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., :length]
    mixed = weights @ value.repeat_interleave(groups, dim=1)
    return mixed.transpose(1, 2), None
