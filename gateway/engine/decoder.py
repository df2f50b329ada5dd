"""The forward pass of the Llama family over packed weights.

Llama, Mistral, Qwen2 and Qwen3 differ here only in biases, in the norm of queries and keys and in
which layers see a sliding window. A step is one compiled program where there are kernels for all of
it; else it is PyTorch's operations: few rows in bf16, many in the dtype multiplied fastest here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compression.architecture import Architecture
from compression.packed import Bf16Linear, Int8Linear, PackedLinear
from gateway.engine.cache import Cache, LayerCodecs
from gateway.engine.compiled.step import CompiledStep, compile_step
from gateway.engine.compiled.tables import Span as CompiledSpan
from gateway.engine.layer import Layer, RmsNorm
from gateway.engine.rotary import Rotation, spread

_ROWS_A_SEQUENCE = 16
"""With fewer on average, attention as one program is worth more than faster products of many
rows: as PyTorch's operations it takes some milliseconds for each sequence."""


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
        self._compiled: CompiledStep | None = None
        self._compiled_for: tuple[LayerCodecs, ...] | None = None

    @property
    def linears(self) -> list[PackedLinear]:
        """Return every distinct linear layer, embedding and head included."""
        inner = [linear for layer in self.layers for linear in layer.linears]
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
        for span in spans:
            room = min(self.max_tokens, span.cache.max_tokens)
            if span.stop > room:
                raise ValueError(f"{span.stop} tokens do not fit into a cache of {room}")
        few, one_program = self._ways(spans[-1].rows.stop, len(spans))
        ids = torch.tensor([id_ for _, ids in batch for id_ in ids])
        step = self._step(batch[0][0].codecs) if one_program else None
        if step is None:
            x = self._run(spans, ids, torch.bfloat16 if few else self.layers[0].qkv.dense_dtype)
        else:
            x = self._run_compiled(step, spans, ids)
        for span in spans:
            span.cache.length = span.stop
        return x

    def _ways(self, rows: int, sequences: int) -> tuple[bool, bool]:
        """Return whether rows are few for the layers' products, and whether one program is best."""
        linears = self.layers[0].linears
        few = rows < min(linear.dense_from for linear in linears)
        # Where many rows are read in float32 that is for its precision, not for its speed.
        for_speed = linears[0].dense_dtype is not torch.float32
        return few, few or (for_speed and rows < _ROWS_A_SEQUENCE * sequences)

    def _step(self, codecs: tuple[LayerCodecs, ...]) -> CompiledStep | None:
        """Return the program for caches of such codecs, written when the first of them comes."""
        if self._compiled_for is not codecs:
            self._compiled = compile_step(self.architecture, self.layers, self.norm, codecs)
            self._compiled_for = codecs
        return self._compiled

    def _run_compiled(self, step: CompiledStep, spans: list["_Span"], ids: Tensor) -> Tensor:
        turns = [self._rotation.factors(span.start, span.stop) for span in spans]
        compiled = [
            CompiledSpan(span.cache.addresses, span.start, span.stop - span.start, each.data_ptr())
            for span, each in zip(spans, turns, strict=True)
        ]
        return step.run(self.embedding.embed(ids, torch.float32), compiled)

    def _run(self, spans: list["_Span"], ids: Tensor, dtype: torch.dtype) -> Tensor:
        x = self.embedding.embed(ids, dtype)
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
