"""Tests of the cache's memory: what fits, what a sequence really takes, what is copied."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from compression.architecture import Architecture
from compression.recipe import KvCache
from compression.schemes import KvInt4, KvInt8
from gateway.engine.cache import Cache
from gateway.engine.kv_codecs import make_codecs
from gateway.engine.kv_memory import fit, free_bytes, page_sizes
from gateway.engine.pages import PAGE_TOKENS, PageSizes
from gateway.engine.runner import Runner, load_runner
from gateway.errors import StartupError

IDS = [1, 17, 250, 3, 99, 4, 300, 12, 12, 45, 200, 7, 31, 8, 150, 66, 5, 271, 90, 33]


@pytest.fixture(scope="module")
def runner(tiny_llama_dir: Path) -> Runner:
    """Return a tiny model with a bf16 cache."""
    return load_runner(tiny_llama_dir, threads=1, max_model_len=None)


def quantized(runner: Runner) -> Runner:
    """Return the same model with a cache in int8 and int4."""
    codecs = make_codecs(
        KvCache(key=KvInt8(), value=KvInt4(group_size=32)), runner.decoder.architecture, None
    )
    return Runner(runner.decoder, codecs, runner.manifest, runner.max_model_len)


def test_pages_are_counted_from_the_live_cache(runner: Runner) -> None:
    """A page is 16 tokens of every layer; a sequence pays for memory pages it does not fill."""
    token_bytes = runner.info()["kv_bytes_per_token"]
    sizes = page_sizes(runner, 1000 * PAGE_TOKENS * token_bytes + 5)
    assert sizes.total == 1000
    assert sizes.per_sequence * PAGE_TOKENS * token_bytes >= 2 * 4096


def test_the_context_is_cut_to_what_the_cache_holds(runner: Runner) -> None:
    """Unless it was asked for: then the error says how much memory is needed."""
    small = PageSizes(total=4, per_sequence=1)
    assert fit(runner, small, asked=None).max_model_len == 3 * PAGE_TOKENS
    assert fit(runner, PageSizes(1 << 20), asked=None) is runner
    needed = PAGE_TOKENS * runner.info()["kv_bytes_per_token"]
    with pytest.raises(StartupError, match="--kv-cache-memory-bytes") as caught:
        fit(runner, small, asked=runner.max_model_len)
    assert str(small.needed(runner.max_model_len) * needed) in str(caught.value)
    with pytest.raises(StartupError, match="16 are"):
        fit(runner, PageSizes(total=1, per_sequence=1), asked=None)


def test_the_default_is_bounded() -> None:
    """Never more than half of what is free, nor than 4 GiB."""
    assert 0 < free_bytes() <= min(4 * 1024**3, psutil.virtual_memory().total // 2)


@pytest.mark.parametrize("make", [lambda runner: runner, quantized], ids=["bf16", "coded"])
def test_a_copied_beginning_is_the_same_to_the_last_bit(runner: Runner, make: object) -> None:
    """What follows shared tokens is what follows tokens that were read."""
    model: Runner = make(runner)  # type: ignore[operator]
    read, copied = model.new_cache(32), model.new_cache(48)
    model.forward([(read, IDS[:12], 0)])
    copied.copy(read, 12)
    assert copied.length == 12
    expected = model.forward([(read, IDS[12:], 1)])
    result = model.forward([(copied, IDS[12:], 1)])
    assert torch.equal(expected, result)


def test_memory_is_taken_as_tokens_come(runner: Runner) -> None:
    """Room for a million tokens costs nothing until they come."""
    process = psutil.Process()
    before = process.memory_info().rss
    cache = runner.new_cache(1_000_000)
    runner.forward([(cache, IDS, 0)])
    assert 1_000_000 * cache.bytes_per_token > 200e6
    assert process.memory_info().rss - before < 50e6


def test_a_cache_takes_no_more_than_its_tokens_and_its_rounding(runner: Runner) -> None:
    """What the budget counts of a sequence is what the system gives it."""
    process = psutil.Process()
    architecture = runner.decoder.architecture
    assert isinstance(architecture, Architecture)
    shape = replace(architecture, num_kv_heads=8, head_dim=64, num_layers=40)
    cache = Cache(shape, make_codecs(KvCache(), shape, None), 4096)
    encoded = [each.encode(torch.randn(300, 16, 64)) for each in cache.codecs]
    before = process.memory_info().rss
    for layer, kept in zip(cache.layers, encoded, strict=True):
        layer.write(0, kept)
    taken = process.memory_info().rss - before
    tokens = 300 * cache.bytes_per_token
    assert 0.9 * tokens < taken < tokens + cache.rounding_bytes + 1e6
