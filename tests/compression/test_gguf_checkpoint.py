"""A GGUF Llama becomes the Hugging Face checkpoint that it once was."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression.errors import CorruptCheckpoint, UnsupportedArchitecture
from compression.events import Progress
from compression.gguf_checkpoint import GgufLlama, convert, hugging_face_name
from tests.compression.demo_wheel import write_gguf


@pytest.fixture(scope="module")
def tiny_gguf(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny Llama as a GGUF file."""
    return write_gguf(tiny_llama_dir, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_weights_come_back_exactly(tiny_gguf: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Without reordering every tensor is bit-equal to the checkpoint that the file was made of."""
    convert(tiny_gguf, tmp_path, seed=None)
    original = load_file(tiny_llama_dir / "model.safetensors")
    converted = load_file(tmp_path / "model.safetensors")
    assert converted.keys() == original.keys()
    for name, weight in original.items():
        assert converted[name].dtype == torch.bfloat16
        assert torch.equal(converted[name], weight), name


def test_config_comes_back(tiny_gguf: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    """The written configuration loads as the original one, old spelling of RoPE included."""
    convert(tiny_gguf, tmp_path, seed=None)
    original = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert converted.config.to_diff_dict() == original.config.to_diff_dict()
    assert converted.generation_config.eos_token_id == 2
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 10000.0


def test_reordered_logits_stay(tiny_gguf: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    """With a seed the weights differ and fp32 logits agree within 1e-4."""
    convert(tiny_gguf, tmp_path, seed=5)
    tokens = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        original, converted = (
            AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            for directory in (tiny_llama_dir, tmp_path)
        )
        torch.testing.assert_close(
            converted(tokens).logits, original(tokens).logits, rtol=0, atol=1e-4
        )
    assert not torch.equal(converted.model.norm.weight, original.model.norm.weight)


def test_tokenizer_comes_back(tiny_gguf: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Text without digits and a rendered chat get the original's tokens; text comes back whole."""
    convert(tiny_gguf, tmp_path, seed=None)
    original = AutoTokenizer.from_pretrained(tiny_llama_dir)
    converted = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "capital of France?\n\tüber 漢字 😀"}]
    rendered = original.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert converted.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        rendered
    )
    assert converted(rendered).input_ids == original(rendered).input_ids
    assert converted.decode(converted(rendered).input_ids) == rendered
    assert converted.eos_token == "<|im_end|>"


def test_progress_counts_tensors(tiny_gguf: Path, tmp_path: Path) -> None:
    """One event for each tensor, with the true total."""
    events: list[Progress] = []
    convert(tiny_gguf, tmp_path, seed=1, on_progress=events.append)
    assert [event.done for event in events] == list(range(1, 21))
    assert {(event.stage, event.total, event.unit) for event in events} == {
        ("convert", 20, "tensors")
    }


def test_weights_are_as_readable_as_the_rest(tiny_gguf: Path, tmp_path: Path) -> None:
    """The weights file can be read by whoever can read the directory."""
    tmp_path.chmod(0o755)
    convert(tiny_gguf, tmp_path, seed=None)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_directory_that_cannot_be_written(tiny_gguf: Path, tmp_path: Path) -> None:
    """A failed write is an OSError, whichever library it comes from."""
    with pytest.raises(OSError, match=r"model\.safetensors"):
        convert(tiny_gguf, tmp_path / "missing", seed=None)


@pytest.mark.parametrize("length", [0, 3, 100, 20_000])
def test_truncated_file_is_refused(tiny_gguf: Path, tmp_path: Path, length: int) -> None:
    """A file cut anywhere gives one line that names it."""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:length])
    with pytest.raises(CorruptCheckpoint, match=r"^cut\.gguf .*fetch it again$"):
        GgufLlama(cut)


def test_unknown_text_split_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """A tokenizer that splits text in an unknown way is refused, not guessed."""
    other = write_gguf(tiny_llama_dir, tmp_path / "other.gguf", text_split="qwen2")
    with pytest.raises(UnsupportedArchitecture, match="'qwen2'"):
        GgufLlama(other).tokenizer()


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_inp"])
def test_unknown_tensor_is_refused(name: str) -> None:
    """A tensor that a plain Llama does not have is refused by name."""
    with pytest.raises(UnsupportedArchitecture, match=name):
        hugging_face_name(name)
