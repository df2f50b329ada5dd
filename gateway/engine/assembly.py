"""From an open checkpoint or artifact to a decoder: fused and reordered."""

import torch
from torch import Tensor

from compression.architecture import Architecture, parse_architecture, read_config
from compression.errors import ArtifactError
from compression.loading import (
    Checkpoint,
    Weight,
    make_linear,
    select_rows,
    stack_rows,
)
from compression.packed import Bf16Linear, Int8Linear, PackedLinear
from gateway.engine.decoder import Decoder
from gateway.engine.layer import Layer, RmsNorm
from gateway.engine.rotary import interleave


def read_architecture(checkpoint: Checkpoint) -> Architecture:
    """Return what the config of a checkpoint or artifact describes."""
    config = read_config(checkpoint.directory)
    if checkpoint.manifest is not None:
        # An artifact is quantized by definition; its source was checked when it was built.
        config.pop("quantization_config", None)
    return parse_architecture(config, where=str(checkpoint.directory))


def assemble(checkpoint: Checkpoint, architecture: Architecture, max_tokens: int) -> Decoder:
    """Load every weight and return the decoder that serves them."""
    layers = [_layer(checkpoint, architecture, index) for index in range(architecture.num_layers)]
    for index, layer in enumerate(layers):
        _require_shapes(layer, architecture, index)
    embedding = _table(checkpoint, "model.embed_tokens.weight", architecture)
    tied = architecture.tied
    head = embedding if tied else _table(checkpoint, "lm_head.weight", architecture)
    return Decoder(
        architecture=architecture,
        embedding=embedding,
        layers=layers,
        norm=_norm(checkpoint, "model.norm.weight", architecture),
        head=head,
        max_tokens=max_tokens,
    )


def _layer(checkpoint: Checkpoint, architecture: Architecture, index: int) -> Layer:
    prefix = f"model.layers.{index}"
    query_rows = interleave(architecture.num_heads, architecture.head_dim)
    key_rows = interleave(architecture.num_kv_heads, architecture.head_dim)
    attention = f"{prefix}.self_attn"
    pairs = interleave(1, architecture.head_dim)
    return Layer(
        input_norm=_norm(checkpoint, f"{prefix}.input_layernorm.weight", architecture),
        qkv=_fused(
            checkpoint,
            {
                f"{attention}.q_proj": query_rows,
                f"{attention}.k_proj": key_rows,
                f"{attention}.v_proj": None,
            },
        ),
        q_norm=_head_norm(checkpoint, f"{attention}.q_norm.weight", architecture, pairs),
        k_norm=_head_norm(checkpoint, f"{attention}.k_norm.weight", architecture, pairs),
        output=_fused(checkpoint, {f"{attention}.o_proj": None}),
        post_norm=_norm(checkpoint, f"{prefix}.post_attention_layernorm.weight", architecture),
        gate_up=_fused(
            checkpoint, {f"{prefix}.mlp.gate_proj": None, f"{prefix}.mlp.up_proj": None}
        ),
        down=_fused(checkpoint, {f"{prefix}.mlp.down_proj": None}),
    )


def _fused(checkpoint: Checkpoint, modules: dict[str, Tensor | None]) -> PackedLinear:
    """Return one layer for several modules on the same input, each with its rows reordered."""
    weights: list[Weight] = []
    biases: list[Tensor] = []
    for module, rows in modules.items():
        weight = checkpoint.weight(f"{module}.weight")
        bias = checkpoint.vector(f"{module}.bias")
        weights.append(weight if rows is None else select_rows(weight, rows))
        if bias is not None:
            biases.append(bias if rows is None else bias[rows])
    if biases and len(biases) != len(weights):
        raise ArtifactError(f"some of {', '.join(modules)} have a bias and some have none")
    bias = torch.cat(biases) if biases else None
    return make_linear(stack_rows(weights), bias, activations=checkpoint.activations)


def _require_shapes(layer: Layer, shape: Architecture, index: int) -> None:
    """Check a layer against its config: kernels read and write by address and see no shapes.

    Raises:
        ArtifactError: names the first part that does not fit.
    """
    queries, hidden = shape.num_heads * shape.head_dim, shape.hidden_size
    heads = queries + 2 * shape.num_kv_heads * shape.head_dim
    expected = {
        "self_attn.q_proj, k_proj and v_proj together": (layer.qkv, heads, hidden),
        "self_attn.o_proj": (layer.output, hidden, queries),
        "mlp.gate_proj and up_proj together": (layer.gate_up, 2 * shape.intermediate_size, hidden),
        "mlp.down_proj": (layer.down, hidden, shape.intermediate_size),
    }
    for name, (linear, rows, columns) in expected.items():
        found = (linear.rows, linear.columns)
        bias = rows if linear.bias is None else linear.bias.numel()
        if found != (rows, columns) or bias != rows:
            raise ArtifactError(
                f"model.layers.{index}.{name}: {list(found)} with a bias of {bias}, but "
                f"config.json makes it {[rows, columns]}: the checkpoint is damaged or not of this "
                "config"
            )


def _table(
    checkpoint: Checkpoint, name: str, architecture: Architecture
) -> Int8Linear | Bf16Linear:
    table = make_linear(checkpoint.embedding(name), None)
    expected = (architecture.vocab_size, architecture.hidden_size)
    if (table.rows, table.columns) != expected:
        raise ArtifactError(
            f"{name!r} is {[table.rows, table.columns]}, but config.json makes it "
            f"{list(expected)}: the checkpoint is damaged or not of this config"
        )
    if not isinstance(table, Int8Linear | Bf16Linear):
        raise ArtifactError(f"{name!r} is stored as {table.scheme}, which no embedding can be")
    return table


def _norm(checkpoint: Checkpoint, name: str, architecture: Architecture) -> RmsNorm:
    weight = checkpoint.tensor(name)
    _require_size(name, weight, architecture.hidden_size)
    return RmsNorm(weight.to(torch.bfloat16), architecture.rms_norm_eps)


def _head_norm(
    checkpoint: Checkpoint, name: str, architecture: Architecture, pairs: Tensor
) -> RmsNorm | None:
    if not architecture.qk_norm:
        return None
    weight = checkpoint.tensor(name)
    _require_size(name, weight, architecture.head_dim)
    return RmsNorm(weight.to(torch.bfloat16)[pairs], architecture.rms_norm_eps)


def _require_size(name: str, weight: Tensor, size: int) -> None:
    if weight.shape != (size,):
        raise ArtifactError(
            f"{name!r} is {list(weight.shape)}, but config.json makes it [{size}]: the checkpoint "
            "is damaged or not of this config"
        )
