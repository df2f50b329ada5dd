"""The engine's cache: what it holds, what attention sees of it, and what the engine says of it."""

from itertools import accumulate
from pathlib import Path

import pytest
import torch

from compression.errors import ArtifactError
from compression.events import ignore
from compression.kv.centre_file import CENTRES_FILE
from compression.kv.centred import CentredCodec
from compression.kv.layers import bytes_per_token
from compression.prepare import build_to
from compression.recipe import KvCache
from compression.schemes import KvFp8, KvInt4, KvInt8, KvUnquantized
from gateway.engine.cache import Cache
from gateway.engine.kv_codecs import make_codecs, require_applied
from gateway.engine.runner import Runner, load_runner
from tests.checkpoints import make_tiny_checkpoint

IDS = [1, 17, 250, 3, 99, 4, 300, 12, 12, 45, 200, 7, 31, 8, 150, 66, 5, 271, 90, 33]
RECIPE = """
weights: {{scheme: {weights}}}
kv_cache: {{key: {{scheme: {key}}}, value: {{scheme: {value}}}, keep_first: {kept}}}
calibration: {{tokens: 512}}
"""


def load(directory: Path) -> Runner:
    """Load with one thread, as small models need."""
    return load_runner(directory, threads=1, max_model_len=None)


def build(
    source: Path, out: Path, key: str, value: str, *, weights: str = "none", kept: int = 0
) -> Path:
    """Build an artifact that differs from its source in its cache."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(RECIPE.format(weights=weights, key=key, value=value, kept=kept))
    build_to(str(source), str(recipe), None, out, ignore)
    return out


def kld(expected: torch.Tensor, result: torch.Tensor) -> float:
    """Return the mean KL divergence in nats of ``result`` from ``expected``."""
    p, q = expected.log_softmax(-1), result.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@torch.inference_mode()
def stepwise(runner: Runner, chunks: list[int]) -> tuple[list[int], torch.Tensor]:
    """Return the positions at which chunks end, and the logits there."""
    cache = runner.new_cache(len(IDS))
    rows = []
    for size in chunks:
        hidden = runner.decoder.hidden([(cache, IDS[cache.length : cache.length + size])])
        rows.append(runner.decoder.logits(hidden[-1:]))
    return [end - 1 for end in accumulate(chunks)], torch.cat(rows)


@pytest.mark.parametrize(
    ("key", "value", "low", "high", "floor"),
    [
        ("int8", "int8", 1e-5, 2e-3, 2e-3),
        ("fp8", "fp8", 1e-4, 0.02, 0.02),
        ("int8", "int4", 1e-4, 0.1, 0.05),
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_one_pass_equals_decoding(
    tmp_path: Path, family: str, key: str, value: str, low: float, high: float, floor: float
) -> None:
    """Every way to read a text sees the same quantized keys and values, the newest included."""
    source = make_tiny_checkpoint(tmp_path / "source", family=family)
    runner = load(build(source, tmp_path / "out", key, value))
    for linear in runner.decoder.linears:
        linear.dense_dtype, linear.dense_from = torch.float32, 1
    whole, full = runner.score(IDS), load(source).score(IDS)
    assert low < kld(full, whole) < high
    # Equal but for the order of sums; a text that saw its own keys unrounded would be at `low`.
    ends, steps = stepwise(runner, [2, 7, 8, 3])
    assert kld(whole[ends], steps) < 1e-6
    # One token is decoded in bf16, whose noise tips some values over to the next code.
    ends, steps = stepwise(runner, [1] * 20)
    assert kld(whole[ends], steps) < floor


def test_what_is_kept_never_changes(tmp_path: Path, tiny_llama_dir: Path) -> None:
    """Later tokens leave the bytes of earlier ones alone, whatever the steps."""
    runner = load(build(tiny_llama_dir, tmp_path / "out", "int4", "int4"))
    cache = runner.new_cache(len(IDS))
    runner.forward([(cache, IDS[:8], 0)])
    sealed = [
        part[:8].clone() for layer in cache.layers for parts in layer.storage for part in parts
    ]
    for token in IDS[8:]:
        runner.forward([(cache, [token], 1)])
    live = [part[:8] for layer in cache.layers for parts in layer.storage for part in parts]
    assert all(torch.equal(left, right) for left, right in zip(sealed, live, strict=True))
    assert all(part.shape[0] == len(IDS) for layer in cache.layers for part in layer.storage[0])


@pytest.mark.parametrize(
    ("family", "head_dim", "recipe", "key", "value"),
    [
        ("llama", 16, "w8-kv8", "int8", "int8"),
        ("mistral", 24, "w8-kv8", "int8", "int8"),
        ("qwen2", 32, "w4-k8v4", "int8", "int4-g64"),
        ("qwen3", 48, "w4-k8v4", "int8", "int4-g64"),
    ],
)
def test_presets_are_applied_and_reported(
    tmp_path: Path, family: str, head_dim: int, recipe: str, key: str, value: str
) -> None:
    """A preset's cache is what live tensors hold, and the model still works."""
    source = make_tiny_checkpoint(tmp_path / "source", family=family, head_dim=head_dim)
    build_to(str(source), recipe, None, tmp_path / "out", ignore)
    runner = load(tmp_path / "out")
    info = runner.info()
    assert info["kv_scheme"] == {
        "key": {"requested": {key: 2}, "applied": {key: 2}},
        "value": {"requested": {value: 2}, "applied": {value: 2}},
    }
    cache = runner.new_cache(len(IDS))
    runner.forward([(cache, IDS, 0)])
    held = sum(part.nbytes for layer in cache.layers for parts in layer.storage for part in parts)
    assert info["kv_bytes_per_token"] == held / len(IDS)
    assert info["kv_bytes_per_token"] < 0.6 * load(source).info()["kv_bytes_per_token"]
    assert kld(load(source).score(IDS), runner.score(IDS)) < 0.5


def test_kept_layers_are_bf16(tmp_path: Path, tiny_llama_dir: Path) -> None:
    """A kept layer holds bf16 tensors and the other codes."""
    info = load(build(tiny_llama_dir, tmp_path / "out", "fp8", "int4", kept=1)).info()
    assert info["kv_scheme"]["key"]["applied"] == {"none": 1, "fp8": 1}
    assert info["kv_scheme"]["value"]["applied"] == {"none": 1, "int4-g64": 1}
    assert info["kv_bytes_per_token"] == 2 * 2 * 2 * 16 + 2 * (16 + 2) + 2 * (8 + 4)


def test_a_plain_checkpoint_keeps_bf16(tiny_llama_dir: Path) -> None:
    """Without a recipe the cache is bf16 and says so."""
    info = load(tiny_llama_dir).info()
    assert info["kv_scheme"]["key"] == {"requested": {"none": 2}, "applied": {"none": 2}}
    assert info["kv_bytes_per_token"] == 2 * 2 * 2 * 2 * 16


def test_int4_keys_are_centred_by_the_build(tmp_path: Path, tiny_llama_dir: Path) -> None:
    """The artifact brings the centres, the manifest their hash, and they matter."""
    out = build(tiny_llama_dir, tmp_path / "out", "int4", "int8")
    runner = load(out)
    assert runner.manifest is not None
    assert CENTRES_FILE in runner.manifest.files
    full, centred = load(tiny_llama_dir).score(IDS), runner.score(IDS)
    codecs = make_codecs(runner.manifest.recipe.kv_cache, runner.decoder.architecture, None)
    bare = Runner(runner.decoder, codecs, runner.manifest, runner.max_model_len).score(IDS)
    assert not torch.equal(bare, centred)
    assert kld(full, centred) < 0.3


def test_centres_stand_where_the_engines_channels_do(tiny_llama_dir: Path) -> None:
    """The engine keeps the two halves of a head interleaved, the artifact does not."""
    architecture = load(tiny_llama_dir).decoder.architecture
    centre = torch.arange(32.0).reshape(2, 16)
    codecs = make_codecs(KvCache(key=KvInt8()), architecture, [centre, centre])
    key = codecs[1].key
    assert isinstance(key, CentredCodec)
    assert key.centre[0, :4].tolist() == [0, 8, 1, 9]
    assert key.centre[1, -2:].tolist() == [23, 31]


def test_another_cache_than_the_recipe_asks_for_is_refused(tiny_llama_dir: Path) -> None:
    """A live cache of other schemes, or of other bytes, ends the start."""
    architecture = load(tiny_llama_dir).decoder.architecture
    asked = KvCache(key=KvInt8(), value=KvInt8())
    plain = Cache(architecture, make_codecs(KvCache(), architecture, None), 1)
    with pytest.raises(ArtifactError, match=r"keys of the cache in \{'int8': 2\}.*\{'none': 2\}"):
        require_applied(plain, asked, architecture)
    half = KvCache(key=KvInt8(), value=KvUnquantized())
    with pytest.raises(ArtifactError, match="values of the cache"):
        require_applied(
            Cache(architecture, make_codecs(half, architecture, None), 1), asked, architecture
        )
    for right in (asked, KvCache(), KvCache(key=KvFp8(), value=KvInt4(group_size=32))):
        cache = Cache(architecture, make_codecs(right, architecture, None), 1)
        require_applied(cache, right, architecture)
        assert cache.bytes_per_token == bytes_per_token(right, architecture)
