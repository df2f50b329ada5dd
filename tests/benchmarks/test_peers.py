"""What peers are given: the same weights and the same calibration text."""

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoTokenizer

from benchmarks.peers import exchange
from benchmarks.peers.calibration import write_calibration
from benchmarks.peers.gguf_file import join_rotary_halves, write_gguf
from benchmarks.peers.gptq_layout import dequantize
from benchmarks.peers.importance import write_importance
from benchmarks.peers.llamacpp import hand_over
from compression.calibration_text import WINDOW_TOKENS, calibration_windows
from compression.gguf_checkpoint import GgufLlama, split_rotary_halves
from compression.recipe import Calibration
from tests.checkpoints import SPECIAL_TOKENS


@pytest.fixture(scope="module")
def gguf_file(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "full.gguf"
    write_gguf(tiny_llama_dir, path)
    return path


def test_a_gguf_file_holds_the_checkpoint_exactly(tiny_llama_dir: Path, gguf_file: Path) -> None:
    source = load_file(tiny_llama_dir / "model.safetensors")
    back = dict(GgufLlama(gguf_file).tensors())
    assert set(back) == set(source)
    for name, weight in back.items():
        assert torch.equal(weight, source[name].to(torch.float32)), name


def test_rotary_pairs_lie_side_by_side_in_a_gguf_file() -> None:
    # One head of six rows: the pairs are 0 and 3, 1 and 4, 2 and 5.
    weight = torch.arange(12.0).reshape(6, 2)
    assert torch.equal(join_rotary_halves(weight, num_heads=1), weight[[0, 3, 1, 4, 2, 5]])
    two = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    joined = join_rotary_halves(two, num_heads=2)
    assert torch.equal(split_rotary_halves(joined, num_heads=2), two)


def test_a_gguf_file_holds_the_vocabulary_in_its_order(
    tiny_llama_dir: Path, gguf_file: Path
) -> None:
    reader = GGUFReader(gguf_file)

    def field(name: str) -> list[object]:
        contents: list[object] = reader.get_field(f"tokenizer.ggml.{name}").contents()
        return contents

    source = AutoTokenizer.from_pretrained(tiny_llama_dir)
    assert field("tokens") == source.convert_ids_to_tokens(list(range(320)))
    model = json.loads((tiny_llama_dir / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert field("merges") == [" ".join(pair) for pair in model["merges"]]
    control = [
        token for token, kind in zip(field("tokens"), field("token_type"), strict=True) if kind == 3
    ]
    assert set(control) == set(SPECIAL_TOKENS)


def test_the_sizes_of_a_gguf_file_are_those_of_its_tensors(
    tiny_llama_dir: Path, gguf_file: Path, tmp_path: Path
) -> None:
    hand_over(gguf_file, tmp_path / "f32", "F32", "llama.cpp 1")
    full = dict(exchange.linears(tiny_llama_dir))
    sizes = exchange.read_sizes(tmp_path / "f32")
    assert sizes.linear_bytes == 4 * sum(weight.numel() for weight in full.values())
    assert sizes.embedding_bytes == 4 * 320 * 64
    assert sizes.settings == "imatrix; linears: 14 F32"
    back = dict(exchange.read_weights(tmp_path / "f32"))
    assert set(back) == {*full, exchange.EMBEDDING}
    for name, weight in full.items():
        assert torch.equal(back[name], weight.to(torch.float32)), name


def test_peers_read_the_windows_that_our_quantizers_read(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    write_calibration(tiny_llama_dir, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    ours = calibration_windows(Calibration(), tokenizer, WINDOW_TOKENS)
    assert exchange.read_calibration(tmp_path) == ours.tolist()


def test_importance_is_the_mean_square_of_each_input(tiny_llama_dir: Path, tmp_path: Path) -> None:
    windows = [list(range(3, 40)), list(range(100, 140))]
    write_importance(tiny_llama_dir, windows, tmp_path / "importance.gguf")
    tensors = GGUFReader(tmp_path / "importance.gguf").tensors
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in tensors}
    assert len(found) == 14
    # What the first layer reads is the normalized embedding: nothing else is before it.
    state = load_file(tiny_llama_dir / "model.safetensors")
    ids = torch.tensor([each for window in windows for each in window])
    states = state[exchange.EMBEDDING][ids].to(torch.float32)
    states = states * torch.rsqrt(states.square().mean(dim=-1, keepdim=True) + 1e-6)
    inputs = states * state["model.layers.0.input_layernorm.weight"].to(torch.float32)
    for name in ("q", "k", "v"):
        torch.testing.assert_close(
            found[f"blk.0.attn_{name}.weight"], inputs.square().mean(dim=0), rtol=1e-4, atol=1e-6
        )
    assert found["blk.1.ffn_down.weight"].shape == (128,)


def test_gptq_words_hold_eight_codes_from_the_lowest_bits_up() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (32, 16), generator=generator)
    zeros = torch.randint(16, (2, 16), generator=generator)
    scales = torch.rand(2, 16, generator=generator).to(torch.float16)
    index = torch.randint(2, (32,), generator=generator)
    words = [
        sum(int(codes[8 * row + k, j]) << 4 * k for k in range(8))
        for row in range(4)
        for j in range(16)
    ]
    qweight = signed(words).view(4, 16)
    words = [
        sum(int(zeros[group, 8 * j + k]) << 4 * k for k in range(8))
        for group in range(2)
        for j in range(2)
    ]
    qzeros = signed(words).view(2, 2)
    expected = torch.empty(16, 32)
    for i in range(32):
        for j in range(16):
            group = int(index[i])
            expected[j, i] = (codes[i, j] - zeros[group, j]) * scales[group, j].float()
    assert torch.equal(dequantize(qweight, qzeros, scales, index), expected)


def signed(words: list[int]) -> torch.Tensor:
    """Return unsigned 32-bit words as int32."""
    return torch.tensor(words).to(torch.uint32).view(torch.int32)
