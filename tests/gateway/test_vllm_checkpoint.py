"""Which artifacts of mixtures of experts vLLM is given, by what was seen of vLLM 0.32."""

from typing import Any

import pytest

from gateway.backends.vllm_checkpoint import require_servable_by
from gateway.errors import LoadRefused
from tests.gateway.test_vllm_plan import OLD_CPU, facts, gpu

INT8: dict[str, Any] = {"weights": {"num_bits": 8, "symmetric": True, "strategy": "channel"}}
STEM = "model.layers.0.mlp.experts"


def int4(*, symmetric: bool, group_size: int) -> dict[str, Any]:
    """Return a group of 4 bits."""
    return {"weights": {"num_bits": 4, "symmetric": symmetric, "group_size": group_size}}


def config(*groups: dict[str, Any], ignore: tuple[str, ...] = (), leaf: str = "w1") -> Any:
    """Return a config.json whose layer has an expert's matrix in each group."""
    found = {
        f"group_{index}": {"targets": [f"{STEM}.{index}.{leaf}", "model.layers.0.q_proj"], **group}
        for index, group in enumerate(groups)
    }
    entry = {"config_groups": found, "ignore": ["lm_head", *ignore]}
    return {"architectures": ["LlamaForCausalLM"], "quantization_config": entry}


def test_what_vllm_serves() -> None:
    """int8, and int4 in symmetric groups of 64, run on a processor with AMX; a GPU takes more."""
    require_servable_by(facts(cpu_features=frozenset({"amx"})), config(INT8), "m")
    wide = config(int4(symmetric=True, group_size=64))
    require_servable_by(facts(cpu_features=frozenset({"amx"})), wide, "m")
    require_servable_by(gpu(), config(int4(symmetric=False, group_size=32)), "m")
    require_servable_by(gpu(), config(INT8), "m")
    dense = {"config_groups": {"group_0": {"targets": ["model.layers.0.q_proj"], **INT8}}}
    require_servable_by(facts(**OLD_CPU), {"quantization_config": dense}, "m")


@pytest.mark.parametrize(
    ("given", "features", "expected"),
    [
        (config(INT8), (), "need AMX, and this one has none"),
        (config(int4(symmetric=True, group_size=64)), (), "need AMX"),
        (config(int4(symmetric=True, group_size=32)), ("amx",), "symmetric groups of more than 32"),
        (config(int4(symmetric=False, group_size=64)), ("amx",), "symmetric groups of more than"),
        (config(INT8, int4(symmetric=True, group_size=64)), ("amx",), "different schemes"),
        (config(INT8, ignore=(f"{STEM}.3.w1",)), ("amx",), "some experts of a layer are kept"),
        (config(INT8, leaf="gate_up_proj"), ("amx",), "each is stored alone"),
    ],
)
def test_what_vllm_does_not_serve(given: Any, features: tuple[str, ...], expected: str) -> None:
    """It is refused before a start, with what can be done instead."""
    with pytest.raises(LoadRefused, match=f"quantized experts.*{expected}.*engine 'embedded'"):
        require_servable_by(facts(cpu_features=frozenset(features)), given, "m")


def test_layers_kept_whole_are_served() -> None:
    """One scheme a layer is enough: another layer's experts may be as they are."""
    kept = config(INT8, ignore=("model.layers.1.mlp.experts.0.w1",))
    require_servable_by(facts(cpu_features=frozenset({"amx"})), kept, "m")
