"""Tiny configs of architectures that the engine runs through transformers' modelling."""

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.checkpoints import make_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2}
EXPERTS: dict[str, Any] = GROUPED | {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "original_max_position_embeddings": 24,
    "short_factor": [1.0, 1.1, 1.2, 1.5, 1.5, 2.0, 2.0, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 6.0, 8.0, 9.0, 9.5],
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("GemmaConfig", GROUPED | {"head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        GROUPED
        | {
            "head_dim": 16,
            "sliding_window": 7,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma2, wide heads": ("Gemma2Config", GROUPED | {"head_dim": 32, "sliding_window": 7}),
    "gemma3": (
        "Gemma3TextConfig",
        GROUPED
        | {
            "head_dim": 16,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi": ("PhiConfig", SIZES),
    "phi3": ("Phi3Config", GROUPED),
    "phi3, longrope": (
        "Phi3Config",
        GROUPED | {"original_max_position_embeddings": 24, "rope_parameters": LONG},
    ),
    "phi3, window": ("Phi3Config", GROUPED | {"sliding_window": 7}),
    "gpt_neox": ("GPTNeoXConfig", SIZES),
    "gpt2": ("GPT2Config", SIZES),
    "gpt_bigcode": ("GPTBigCodeConfig", SIZES | {"multi_query": True}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": 320,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 7,
            "max_position_embeddings": 128,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gptj": (
        "GPTJConfig",
        {
            "vocab_size": 320,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "rotary_dim": 8,
            "n_positions": 128,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "opt": ("OPTConfig", SIZES | {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": ("BloomConfig", {"vocab_size": 320, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "mpt": (
        "MptConfig",
        {"vocab_size": 320, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    ),
    "falcon": ("FalconConfig", SIZES | {"multi_query": True}),
    "falcon, alibi": ("FalconConfig", SIZES | {"alibi": True, "multi_query": False}),
    "stablelm": ("StableLmConfig", GROUPED),
    "olmo": ("OlmoConfig", GROUPED | {"clip_qkv": 4.0}),
    "olmo2": ("Olmo2Config", GROUPED),
    "olmo3": (
        "Olmo3Config",
        GROUPED | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "granite": (
        "GraniteConfig",
        GROUPED
        | {
            "embedding_multiplier": 3.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "starcoder2": ("Starcoder2Config", GROUPED | {"sliding_window": 7}),
    "cohere": ("CohereConfig", GROUPED | {"logit_scale": 0.3}),
    "cohere2": ("Cohere2Config", GROUPED | {"sliding_window": 7}),
    "smollm3": ("SmolLM3Config", GROUPED),
    "glm4": ("Glm4Config", GROUPED | {"head_dim": 16}),
    "nemotron": ("NemotronConfig", GROUPED),
    "mixtral": ("MixtralConfig", GROUPED | {"num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", EXPERTS | {"shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS | {"head_dim": 16}),
    "olmoe": ("OlmoeConfig", EXPERTS),
    "gpt_oss": (
        "GptOssConfig",
        GROUPED | {"head_dim": 16, "num_local_experts": 4, "sliding_window": 7},
    ),
    "granitemoe": ("GraniteMoeConfig", GROUPED | {"num_local_experts": 4}),
    "hunyuan_v1_moe": ("HunYuanMoEV1Config", EXPERTS | {"head_dim": 16, "moe_topk": 2}),
    "gemma4": (
        "Gemma4TextConfig",
        EXPERTS
        | {
            "head_dim": 16,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "top_k_experts": 2,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "jetmoe": ("JetMoeConfig", GROUPED | {"kv_channels": 16, "num_local_experts": 4}),
    "diffllama": ("DiffLlamaConfig", GROUPED),
    "llama, gelu": ("LlamaConfig", GROUPED | {"hidden_act": "gelu"}),
}


def make_config(family: str) -> Any:
    """Return a tiny config of one of :data:`FAMILIES`."""
    name, values = FAMILIES[family]
    return getattr(transformers, name)(**values)


def save_model(family: str, directory: Path) -> Path:
    """Save a checkpoint with random weights that all matter to the logits."""
    model = transformers.AutoModelForCausalLM.from_config(make_config(family))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.dim() == 1:
                    parameter.copy_(0.2 * noise + (name == "weight"))
                elif isinstance(module, torch.nn.Embedding):
                    parameter.copy_(0.3 * noise)
                else:
                    parameter.copy_(1.5 * noise / 64**0.5)
    model.to(torch.bfloat16).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory
