"""The forward pass of the Llama family over packed weights.

Llama, Mistral, Qwen2 and Qwen3 differ here only in biases, in the norm of queries and keys and in
which layers see a sliding window.
One token is decoded in bf16, many are read in the dtype that this processor multiplies fastest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compression.architecture import Architecture
from compression.packed import Bf16Linear, Int8Linear, PackedLinear
from gateway.engine.cache import Cache
from gateway.engine.rotary import Rotation, spread


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
        self.max_tokens = max_tokens
        self._rotation = Rotation(architecture, max_tokens)

    @property
    def linears(self) -> list[PackedLinear]:
        """Return every distinct linear layer, embedding and head included."""
        inner = [
            linear
            for layer in self.layers
            for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)
        ]
        tables: list[PackedLinear] = [self.embedding]
        if self.head is not self.embedding:
            tables.append(self.head)
        return inner + tables

    @property
    def other_weights(self) -> tuple[int, int]:
        """Return the bytes and the number of all weights outside :attr:`linears`."""
        norms = [self.norm]
        for layer in self.layers:
            norms += [layer.input_norm, layer.post_norm]
            norms += [norm for norm in (layer.q_norm, layer.k_norm) if norm is not None]
        return sum(norm.weight_bytes for norm in norms), sum(norm.num_weights for norm in norms)

    def hidden(self, batch: Sequence[tuple[Cache, list[int]]]) -> Tensor:
        """Append token ids to caches and return the final hidden states ``[m, hidden]`` of all.

        Rows are in the order of the batch. All rows share the linear layers; attention is each
        sequence's own.
        """
        spans = _spans(batch)
        count = spans[-1].rows.stop
        few = count < self.layers[0].qkv.dense_from
        dtype = torch.bfloat16 if few else self.layers[0].qkv.dense_dtype
        x = self.embedding.embed(torch.tensor([id_ for _, ids in batch for id_ in ids]), dtype)
        num_kv = self.architecture.num_kv_heads
        turns = torch.cat([self._rotation.factors(span.start, span.stop) for span in spans])
        factors = spread(turns, self.architecture.num_heads + num_kv, num_kv)
        windows = self.architecture.windows
        views = {each: [_view(span, each, dtype) for span in spans] for each in {*windows}}
        for index, layer in enumerate(self.layers):
            heads = self._heads(layer, layer.input_norm(x), factors)
            attended = self._attend(index, heads, spans, views[windows[index]], dtype)
            x = x.add_(layer.output(attended))
            gate, up = layer.gate_up(layer.post_norm(x)).chunk(2, dim=-1)
            x = x.add_(layer.down(functional.silu(gate).mul_(up)))
        for span in spans:
            span.cache.length = span.stop
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits ``[m, vocab]`` for final hidden states ``[m, hidden]``."""
        scores: Tensor = self.head(hidden)
        return scores.to(torch.float32)

    def _heads(self, layer: Layer, x: Tensor, factors: Tensor) -> Tensor:
        """Return queries, keys and values ``[m, heads + 2 * kv_heads, head_dim]``, turned, f32."""
        num_heads, num_kv = self.architecture.num_heads, self.architecture.num_kv_heads
        heads = layer.qkv(x).view(x.shape[0], num_heads + 2 * num_kv, -1)
        if layer.q_norm is not None and layer.k_norm is not None:
            queries, keys, values = heads.split([num_heads, num_kv, num_kv], dim=1)
            heads = torch.cat([layer.q_norm(queries), layer.k_norm(keys), values], dim=1)
        pairs = torch.view_as_complex(heads.to(torch.float32).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * factors).view(heads.shape)

    def _attend(
        self,
        index: int,
        heads: Tensor,
        spans: list["_Span"],
        views: list["_View"],
        dtype: torch.dtype,
    ) -> Tensor:
        """Keep keys and values and return the attention output ``[m, heads * head_dim]``."""
        num_heads = self.architecture.num_heads
        codecs = spans[0].cache.layers[index].codecs
        encoded = codecs.encode(heads[:, num_heads:])
        queries = codecs.key.rotate(heads[:, :num_heads]).to(dtype)
        mixed = []
        for span, view in zip(spans, views, strict=True):
            kept = span.cache.layers[index]
            kept.write(span.start, tuple(part[span.rows] for part in encoded))
            keys, values = kept.read(span.stop, dtype, first=view.first)
            mixed.append(_attention(queries[span.rows], keys, values, view.mask))
        together = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
        return codecs.value.rotate(together).flatten(1)


@dataclass(frozen=True, slots=True)
class _Span:
    """One sequence's part of a batch."""

    cache: Cache
    start: int
    """Its first position in the sequence."""
    stop: int
    rows: slice
    """Its rows of the batch."""


def _spans(batch: Sequence[tuple[Cache, list[int]]]) -> list[_Span]:
    spans: list[_Span] = []
    row = 0
    for cache, ids in batch:
        rows = slice(row, row + len(ids))
        spans.append(_Span(cache, cache.length, cache.length + len(ids), rows))
        row = rows.stop
    return spans


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``[m, heads, head_dim]`` for queries of that shape.

    ``keys`` and ``values`` are ``[1, kv_heads, n, head_dim]``. Without a mask a single query sees
    all positions and several see those up to their own.
    """
    count, num_heads, head_dim = queries.shape
    num_kv = keys.shape[1]
    if count == 1:
        # The query heads of one group share their keys, so they can pose as its queries.
        grouped = queries.view(1, num_kv, num_heads // num_kv, head_dim)
        mixed = functional.scaled_dot_product_attention(grouped, keys, values)
        return mixed.view(1, num_heads, head_dim)
    mixed = functional.scaled_dot_product_attention(
        queries.transpose(0, 1).unsqueeze(0),
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=num_heads != num_kv,
    )
    return mixed[0].transpose(0, 1)


@dataclass(frozen=True, slots=True)
class _View:
    """What the new positions of one sequence may see."""

    first: int
    """The earliest position that any of them sees."""
    mask: Tensor | None
    """``[new, stop - first]`` of 0, or -inf where not; None where plain."""


def _view(span: _Span, window: int | None, dtype: torch.dtype) -> _View:
    """Return what a span sees: all up to each position itself, or of those the last ``window``."""
    first = 0 if window is None else max(0, span.start - window + 1)
    count = span.stop - span.start
    if count == 1 or (span.start == 0 and (window is None or count <= window)):
        return _View(first, None)
    hidden = torch.full((count, span.stop - first), float("-inf"), dtype=dtype)
    mask = hidden.triu(span.start - first + 1)
    if window is not None:
        mask += hidden.tril(span.start - first - window)
    return _View(first, mask)
