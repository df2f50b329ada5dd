"""What the real vLLM can do here and what it cannot: a cache in fp8, and its own refusals."""

from pathlib import Path

import pytest

from gateway.backends.vllm_facts import VllmFacts
from tests.vllm.served import QUESTION, model, served

pytestmark = [pytest.mark.real_model, pytest.mark.vllm]


def test_cache_in_fp8(tmp_path: Path, facts: VllmFacts) -> None:
    """Keys and values are kept in fp8 where the processor can, and refused where it cannot."""
    recipe = tmp_path / "w8-kv-fp8.yaml"
    recipe.write_text("weights: {scheme: int8}\nkv_cache: fp8\n")
    settings = {"models": {"m": model(str(recipe))}}
    if facts.cpu_features & {"amx", "avx512"}:
        with served(tmp_path, settings) as gateway:
            assert gateway.card("m")["kv_dtype"] == "fp8"
            assert "Paris" in gateway.ask(QUESTION)
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
