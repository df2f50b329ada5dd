"""The forward pass of the Llama family over packed weights.

Llama, Mistral, Qwen2 and Qwen3 differ here only in biases and in the norm of queries and keys.
One token is decoded in bf16, many are read in the dtype that this processor multiplies fastest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compression.architecture import Architecture
from compression.packed import Bf16Linear, Int8Linear, PackedLinear
from gateway.engine.cache import Cache, LayerCache
from gateway.engine.rotary import spread, turns


class RmsNorm:
    """Root-mean-square norm (Zhang & Sennrich 2019, arXiv 1910.07467) in two kernels.

    The layer norm of ``[x, -x]`` has mean 0 and variance ``mean(x²)``, so its first half is the
    RMS norm of x. PyTorch's layer norm is one fused kernel on the CPU, its RMS norm is six.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._size = weight.shape[0]
        self._eps = eps
        twice = torch.cat([weight, weight])
        self._weights = {dtype: twice.to(dtype) for dtype in (torch.bfloat16, torch.float32)}
        self.num_weights = weight.numel()

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the live tensors."""
        return sum(held.numel() * held.element_size() for held in self._weights.values())

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize the last dimension of ``x`` (bf16 or f32)."""
        mirrored = torch.cat([x, -x], dim=-1)
        weight = self._weights[x.dtype]
        normed = functional.layer_norm(mirrored, weight.shape, weight, None, self._eps)
        return normed[..., : self._size]


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: fused projections and norms."""

    input_norm: RmsNorm
    qkv: PackedLinear
    """Rows: query heads, key heads (both interleaved for the rotation), value heads."""
    q_norm: RmsNorm | None
    k_norm: RmsNorm | None
    output: PackedLinear
    post_norm: RmsNorm
    gate_up: PackedLinear
    down: PackedLinear


class Decoder:
    """Embedding, layers and output head of one model; holds no state of any sequence."""

    def __init__(
        self,
        architecture: Architecture,
        embedding: Int8Linear | Bf16Linear,
        layers: list[Layer],
        norm: RmsNorm,
        head: PackedLinear,
        max_tokens: int,
    ) -> None:
        self.architecture = architecture
        self.embedding = embedding
        self.layers = layers
        self.norm = norm
        self.head = head
        self._turns = turns(architecture, max_tokens)

    def hidden(self, ids: list[int], cache: Cache) -> Tensor:
        """Append ``ids`` to ``cache`` and return their final hidden states ``[m, hidden]``."""
        dtype = torch.bfloat16 if len(ids) == 1 else self.layers[0].qkv.dense_dtype
        x = self.embedding.embed(torch.tensor(ids), dtype)
        start, stop = cache.length, cache.length + len(ids)
        num_kv = self.architecture.num_kv_heads
        factors = spread(self._turns[start:stop], self.architecture.num_heads + num_kv, num_kv)
        mask = _causal_mask(start, stop, dtype) if start and len(ids) > 1 else None
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            attended = self._attend(layer, layer.input_norm(x), kept, factors, start, mask)
            x = x.add_(layer.output(attended))
            gate, up = layer.gate_up(layer.post_norm(x)).chunk(2, dim=-1)
            x = x.add_(layer.down(functional.silu(gate).mul_(up)))
        cache.length = stop
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits ``[m, vocab]`` for final hidden states ``[m, hidden]``."""
        scores: Tensor = self.head(hidden)
        return scores.to(torch.float32)

    def _attend(
        self,
        layer: Layer,
        x: Tensor,
        kept: LayerCache,
        factors: Tensor,
        start: int,
        mask: Tensor | None,
    ) -> Tensor:
        """Return the attention output ``[m, heads * head_dim]`` and keep keys and values."""
        num_heads, num_kv = self.architecture.num_heads, self.architecture.num_kv_heads
        count = x.shape[0]
        heads = layer.qkv(x).view(count, num_heads + 2 * num_kv, -1)
        if layer.q_norm is not None and layer.k_norm is not None:
            queries, keys, values = heads.split([num_heads, num_kv, num_kv], dim=1)
            heads = torch.cat([layer.q_norm(queries), layer.k_norm(keys), values], dim=1)
        pairs = torch.view_as_complex(heads.to(torch.float32).unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * factors).view(heads.shape)
        kept.append(start, turned[:, num_heads:])
        keys, values = kept.read(start + count, x.dtype)
        queries = kept.codecs.key.rotate(turned[:, :num_heads]).to(x.dtype)
        if count == 1:
            # The query heads of one group share their keys, so they can pose as its queries.
            grouped = queries.view(1, num_kv, num_heads // num_kv, -1)
            mixed = functional.scaled_dot_product_attention(grouped, keys, values)
            return kept.codecs.value.rotate(mixed).view(1, -1)
        mixed = functional.scaled_dot_product_attention(
            queries.transpose(0, 1).unsqueeze(0),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=num_heads != num_kv,
        )
        return kept.codecs.value.rotate(mixed)[0].transpose(0, 1).reshape(count, -1)


def _causal_mask(start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Return what new positions ``start…stop`` may see of ``0…stop``: 0, or -inf where not."""
    return torch.full((stop - start, stop), float("-inf"), dtype=dtype).triu_(start + 1)
