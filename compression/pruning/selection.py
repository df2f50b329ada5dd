"""From scores to what stays: the rules that keep a smaller checkpoint an ordinary one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.pruning.shape import Shape


@dataclass(frozen=True, slots=True)
class KeptHeads:
    """The heads of one layer that stay, in ascending order."""

    kv_heads: tuple[int, ...]
    query_heads: tuple[int, ...]


def keep_heads(scores: Tensor, group_scores: Tensor, shape: Shape) -> KeptHeads:
    """Return the best heads: whole groups first, then the same count in each group that stays.

    ``scores`` [heads] and ``group_scores`` [key-value heads] say what a removal would cost. With
    the same count in every group, query head h still reads key-value head h // count.
    """
    kv_heads = _largest(group_scores, shape.kv_heads)
    group = scores.shape[0] // group_scores.shape[0]
    query_heads = [
        kv_head * group + head
        for kv_head in kv_heads
        for head in _largest(scores[kv_head * group :][:group], shape.heads_per_group)
    ]
    return KeptHeads(tuple(kv_heads), tuple(query_heads))


def keep_neurons(scores: Tensor, count: int) -> Tensor:
    """Return the int64 indices of the ``count`` neurons of highest score, ascending."""
    return torch.tensor(_largest(scores, count))


def channels(heads: tuple[int, ...], head_dim: int) -> Tensor:
    """Return the int64 channel indices of whole heads."""
    starts = torch.tensor(heads).unsqueeze(1) * head_dim
    return (starts + torch.arange(head_dim)).flatten()


def _largest(scores: Tensor, count: int) -> list[int]:
    # A stable order, so that equal scores give the same answer everywhere.
    order = scores.argsort(descending=True, stable=True)
    return sorted(order[:count].tolist())
