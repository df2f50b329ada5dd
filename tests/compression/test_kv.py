"""Codecs of keys and values: errors, bytes, and what attention sees of them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compression.architecture import parse_architecture
from compression.errors import ArtifactError, RecipeError
from compression.facts import read_facts
from compression.kv.centre_file import CENTRES_FILE, read_centres, write_centres
from compression.kv.centres import KeyMean, average_rotation
from compression.kv.codec import KvCodec
from compression.kv.codecs import bare_codec, key_codec, value_codec
from compression.kv.hadamard import hadamard
from compression.kv.layers import LayerKv, bytes_per_token, layer_schemes
from compression.recipe import KvCache
from compression.schemes import AnyKv, KvFp8, KvInt4, KvInt8, KvUnquantized

SCHEMES: list[AnyKv] = [
    KvUnquantized(),
    KvInt8(),
    KvFp8(),
    KvInt4(group_size=32),
    KvInt4(group_size=64),
]
HEAD_DIMS = [16, 24, 64, 80, 96, 128]
TOKENS, HEADS = 12, 3


def heads(head_dim: int, *, seed: int = 0, outlier: float = 1.0) -> torch.Tensor:
    """Return normal values ``[tokens, heads, head_dim]`` with one channel that is larger."""
    x = torch.randn(TOKENS, HEADS, head_dim, generator=torch.Generator().manual_seed(seed))
    x[:, :, 3] *= outlier
    return x


def restore(codec: KvCodec, x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` as it comes back, with the rotation undone."""
    return codec.rotate(codec.decode(codec.encode(x), torch.float32))


def attend(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return what one query per head ``[heads, d]`` puts on the tokens, ``[heads, tokens]``."""
    return torch.einsum("hd,thd->ht", query, keys).div(query.shape[-1] ** 0.5).softmax(dim=-1)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_each_value_comes_back_near(scheme: AnyKv, head_dim: int) -> None:
    """The error of a value is bounded by the steps of its own head, or group."""
    x = heads(head_dim, outlier=4.0)
    codec = key_codec(scheme, head_dim)
    stored = codec.rotate(x)
    error = (codec.decode(codec.encode(x), torch.float32) - stored).abs()
    peak = stored.abs().amax(dim=-1, keepdim=True)
    match scheme:
        case KvInt8():
            bound = peak / 127 * 0.51
        case KvFp8():
            bound = stored.abs() / 16 + peak / 448
        case KvInt4():
            groups = stored.reshape(TOKENS, HEADS, scheme.groups(head_dim), -1)
            steps = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
            # Half a step, and what rounding the minimum and the scale to bf16 moves the ends by.
            slack = groups.abs().amax(-1, keepdim=True) / 64
            bound = (0.5 * steps + slack).expand(groups.shape).flatten(-2)
        case _:
            bound = stored.abs() / 256
    assert bool((error <= bound).all())
    assert codec.label == scheme.label


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_bytes_are_as_promised(scheme: AnyKv, head_dim: int) -> None:
    """Live tensors take the bytes that the scheme declares."""
    codec = key_codec(scheme, head_dim)
    stored = codec.encode(heads(head_dim))
    promised = LayerKv(scheme, KvUnquantized()).bytes_per_token(HEADS, head_dim)
    plain = 2 * HEADS * head_dim
    assert sum(part.nbytes for part in stored) == TOKENS * (promised - plain)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_a_token_is_kept_by_itself(scheme: AnyKv) -> None:
    """A token's bytes are the same alone, in company and in bf16 company: pages can be sealed."""
    x = heads(64, outlier=20.0).to(torch.bfloat16).to(torch.float32)
    codec = key_codec(scheme, 64, torch.full((HEADS, 64), 0.5))
    together = codec.encode(x)
    one_by_one = [codec.encode(x[index : index + 1]) for index in range(TOKENS)]
    for part, pieces in zip(together, zip(*one_by_one, strict=True), strict=True):
        assert torch.equal(part.view(torch.uint8), torch.cat(pieces).view(torch.uint8))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_zeros_come_back_as_zeros_and_nan_as_nan(scheme: AnyKv) -> None:
    """No division by zero; and a broken model is not hidden by its cache."""
    codec = key_codec(scheme, 32)
    assert not restore(codec, torch.zeros(2, HEADS, 32)).any()
    broken = heads(32)
    broken[5, 1, 7] = float("nan")
    assert bool(restore(codec, broken)[5, 1].isnan().any())
    assert bool(restore(codec, broken)[4].isfinite().all())


def test_every_fp8_number_is_read_as_torch_reads_it() -> None:
    """All codes but NaN, subnormal ones and both zeros included."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    is_number = numbers.to(torch.float32).isfinite()
    codes = numbers[is_number].view(1, 1, -1)
    scale = torch.full((1, 1, 1), 0.5, dtype=torch.bfloat16)
    codec = key_codec(KvFp8(), codes.shape[-1])
    for dtype in (torch.bfloat16, torch.float32):
        found = codec.decode((codes, scale), dtype)
        assert torch.equal(found, codes.to(dtype) * 0.5)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_rotation_changes_no_product(head_dim: int) -> None:
    """It is orthogonal and its own inverse, whatever the width."""
    matrix = hadamard(head_dim)
    assert torch.allclose(matrix @ matrix, torch.eye(head_dim), atol=1e-6)
    assert torch.equal(matrix, matrix.t())
    codec = key_codec(KvInt4(), head_dim)
    query, keys = heads(head_dim, seed=1)[0], heads(head_dim)
    expected = torch.einsum("hd,thd->ht", query, keys)
    turned = torch.einsum("hd,thd->ht", codec.rotate(query), codec.rotate(keys))
    assert torch.allclose(turned, expected, atol=1e-4)


@pytest.mark.parametrize("scheme", [KvInt8(), KvInt4()], ids=lambda scheme: scheme.label)
def test_the_rotation_spreads_an_outlier(scheme: AnyKv) -> None:
    """One channel that towers over the others costs a key far less than it does unrotated."""
    x = heads(64, outlier=50.0)
    errors = [
        float((restore(codec, x) - x)[..., 4:].pow(2).mean())
        for codec in (key_codec(scheme, 64), bare_codec(scheme, 64))
    ]
    assert errors[0] < errors[1] / 4


def test_who_is_rotated() -> None:
    """Keys that become integers, and values of four bits; bf16 and fp8 stay as they are."""
    x = heads(64)
    rotated = {
        (part, scheme.label)
        for part, make in (("key", key_codec), ("value", value_codec))
        for scheme in SCHEMES
        if not torch.equal(make(scheme, 64).rotate(x), x)
    }
    int4 = {"int4-g32", "int4-g64"}
    assert rotated == {
        ("key", "int8"),
        *((part, each) for part in ("key", "value") for each in int4),
    }


@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=lambda scheme: scheme.label)
def test_centres_leave_attention_and_lower_its_error(scheme: AnyKv) -> None:
    """What is taken off every key shifts all scores alike, and what is left is smaller."""
    centre = 8 * heads(64, seed=2)[0]
    keys, query = heads(64) + centre, heads(64, seed=1)[0]
    expected = attend(query, keys)
    errors = []
    for codec in (key_codec(scheme, 64), key_codec(scheme, 64, centre)):
        seen = codec.decode(codec.encode(keys), torch.float32)
        errors.append(float((attend(codec.rotate(query), seen) - expected).abs().max()))
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.1


def test_kept_layers_stay_bf16() -> None:
    """The first and last layers are left out, and the bytes say so."""
    cache = KvCache(key=KvInt8(), value=KvInt4(), keep_first=1, keep_last=2)
    layers = layer_schemes(cache, 6)
    assert [layer.key.label for layer in layers] == ["none", *["int8"] * 3, "none", "none"]
    assert [layer.value.label for layer in layers] == ["none", *["int4-g64"] * 3, "none", "none"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 100,
        "max_position_embeddings": 2048,
    }
    architecture = parse_architecture(config, where="test")
    plain = 2 * 2 * 3 * 64
    quantized = 3 * (64 + 2) + 3 * (32 + 4)
    assert bytes_per_token(cache, architecture) == 3 * plain + 3 * quantized
    everywhere = cache.model_copy(update={"keep_first": 0, "keep_last": 0})
    assert bytes_per_token(everywhere, architecture) / (6 * plain) == pytest.approx(0.398, abs=1e-3)
    with pytest.raises(RecipeError, match=r"keep_first 1 and keep_last 2 keep all 3 layers"):
        layer_schemes(cache, 3)


def test_observing_stops(tiny_llama_dir: Path) -> None:
    """A layer is as it was once its observer has stopped."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    layer, architecture = model.model.layers[0], read_facts(tiny_llama_dir).architecture
    mean = KeyMean(layer, architecture)
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    before = mean.centre()
    mean.stop()
    with torch.no_grad():
        model(torch.tensor([[8, 9]]))
    assert torch.equal(mean.centre(), before)
    assert bool(before.any())
    assert not average_rotation(torch.zeros(2, 16), architecture).any()


def test_centres_come_back_from_their_file(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Read as written; absent is None; foreign, misshapen or damaged is one clear refusal."""
    architecture = read_facts(tiny_llama_dir).architecture
    assert read_centres(tmp_path, architecture) is None
    centres = [torch.randn(2, 16) for _ in range(2)]
    write_centres(tmp_path, centres)
    found = read_centres(tmp_path, architecture)
    assert found is not None
    assert all(torch.equal(left, right) for left, right in zip(found, centres, strict=True))
    assert not list(tmp_path.glob("*.safetensors"))
    for wrong in (centres[:1], [centre[:1] for centre in centres], [c / 0 for c in centres]):
        write_centres(tmp_path, wrong)
        with pytest.raises(ArtifactError, match=r"k_centre' of shape \[2, 16\]: build"):
            read_centres(tmp_path, architecture)
    (tmp_path / CENTRES_FILE).write_bytes(b"\x09" * 40)
    with pytest.raises(ArtifactError, match="is unreadable"):
        read_centres(tmp_path, architecture)
