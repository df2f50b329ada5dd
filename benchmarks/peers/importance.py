"""The importance matrix of llama.cpp: the mean square of every input of every linear layer.

Source: ``tools/imatrix`` of llama.cpp, which sums x² over the tokens of a text. Here transformers
reads the text, in f32: the same windows as all other methods, without a second tokenizer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def write_importance(checkpoint: Path, windows: list[list[int]], path: Path) -> None:
    """Write one f32 vector for each linear layer in the decoder, under its GGUF name."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    sums = observe(model, windows)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    count = sum(len(window) for window in windows)
    writer = gguf.GGUFWriter(path, "importance")
    for name, total in sums.items():
        mean = (total / count).to(torch.float32)
        writer.add_tensor(f"{names.get_name(name)}.weight", mean.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.inference_mode()
def observe(model: Any, windows: list[list[int]]) -> dict[str, Tensor]:
    """Return the sum of squares of each input [in], float64, by the path of the linear layer."""
    sums: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(_adder(sums, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    ]
    for window in windows:
        model.model(torch.tensor([window]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return sums


def _adder(sums: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        squares = inputs[0].flatten(0, -2).double().square().sum(dim=0)
        sums[name] = sums[name] + squares if name in sums else squares

    return add
