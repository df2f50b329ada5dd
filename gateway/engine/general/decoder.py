"""A transformers model with the lean decoder's interface."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compression.packed import PackedLinear
from gateway.engine.cache import Cache
from gateway.engine.general.head import head_of
from gateway.engine.general.linears import PackedModule
from gateway.engine.general.rotations import forget
from gateway.engine.general.view import view


@dataclass(frozen=True, slots=True)
class GeneralShape:
    """What is known of a model that transformers runs."""

    name: str
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    context: int | None
    """Positions that the checkpoint allows; None where it sets no end."""


class GeneralDecoder:
    """Embedding, layers and output head of one model; holds no state of any sequence."""

    def __init__(
        self, architecture: GeneralShape, model: nn.Module, decoder: nn.Module, max_tokens: int
    ) -> None:
        self.architecture = architecture
        self.max_tokens = max_tokens
        self._model = model
        self._decoder = decoder
        self._head: Any = head_of(model, decoder)

    @property
    def linears(self) -> list[PackedLinear]:
        """Return every distinct linear layer."""
        return [each.packed for each in self._model.modules() if isinstance(each, PackedModule)]

    @property
    def other_weights(self) -> tuple[int, int]:
        """Return the bytes and the number of all weights outside :attr:`linears`.

        A table that the head shares is counted there.
        """
        counted = {part.data_ptr() for each in self.linears for part in each.parameters()}
        others = {part.data_ptr(): part for part in self._model.parameters()}
        rest = [part for address, part in others.items() if address not in counted]
        return sum(part.nbytes for part in rest), sum(part.numel() for part in rest)

    def hidden(self, batch: Sequence[tuple[Cache, list[int]]]) -> Tensor:
        """Append token ids to caches and return the final hidden states ``[m, hidden]`` of all.

        Sequences run one after the other.
        """
        rows = []
        for cache, ids in batch:
            forget(self._model)
            output = self._decoder(
                input_ids=torch.tensor([ids]), past_key_values=view(cache), use_cache=True
            )
            cache.length += len(ids)
            rows.append(output.last_hidden_state[0])
        return torch.cat(rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits ``[m, vocab]`` for final hidden states ``[m, hidden]``."""
        wide = hidden.to(torch.float32).unsqueeze(0)
        logits: Tensor = self._head(inputs_embeds=wide, use_cache=False).logits
        return logits[0].to(torch.float32)
