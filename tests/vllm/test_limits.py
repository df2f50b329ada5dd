"""What the real vLLM can do here and what it cannot: a cache in fp8, and its own refusals."""

from pathlib import Path

import httpx
import pytest

from gateway.backends.vllm_facts import VllmFacts
from gateway.backends.vllm_weights import MAX_INT8_ERROR
from tests.vllm.served import QUESTION, model, served

pytestmark = [pytest.mark.real_model, pytest.mark.vllm]


RECIPE = """
weights: {scheme: int8, method: rtn}
activations: int8
rules: [{targets: "re:.*down_proj", weights: {scheme: int4, symmetric: true}}]
kv_cache: {key: fp8, value: fp8, keep_first: 1, keep_last: 2}
"""


def test_cache_in_fp8(tmp_path: Path, facts: VllmFacts) -> None:
    """Keys and values are kept in fp8 where the processor can, but for the layers to be kept.

    Its int4 layers are symmetric, its others int8 with inputs in 8 bits, as vLLM's own kernel has
    them. Where the processor cannot, it is refused.
    """
    recipe = tmp_path / "mixed-kv-fp8.yaml"
    recipe.write_text(RECIPE)
    settings = {"models": {"m": model(str(recipe))}}
    if facts.cpu_features & {"amx", "avx512"}:
        with served(tmp_path, settings) as gateway:
            card = gateway.card("m")
            assert card["kv_dtype"] == "fp8 in 27 layers, bfloat16 in 3"
            assert card["schemes"] == {"int8-rows": 180, "int4-g32-sym": 30}
            is_replaced = facts.int8_error is None or facts.int8_error > MAX_INT8_ERROR
            assert card["numerics"]["int8-rows"] == ("W8A16" if is_replaced else "W8A8")
            assert gateway.ask(QUESTION)
            (engine,) = (each["url"] for each in gateway.replicas())
            kept = [0, 28, 29]
            layers = httpx.get(f"{engine}/engine/info").json()["kv_layers"]
            assert [index for index, held in enumerate(layers) if held == "bfloat16"] == kept
        return
    words = "needs a processor with AVX-512 or AMX"
    with pytest.raises(AssertionError, match=words), served(tmp_path, settings):
        pass


def test_what_ends_a_start_is_told_in_vllms_own_words(tmp_path: Path) -> None:
    """vLLM refuses what it cannot do while it starts; its reason is the gateway's."""
    settings = {"models": {"m": model("full", max_model_len=999_999)}}
    with pytest.raises(AssertionError) as ended, served(tmp_path, settings):
        pass
    (line,) = (each for each in str(ended.value).splitlines() if each.startswith("narrowgate:"))
    assert "the engine of m@full ended with code 1 while it started" in line
    assert "max_model_len" in line
