"""transformers' own modelling and generate: bf16, or bitsandbytes' nf4 or int8."""

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.generation.streamers import BaseStreamer

from benchmarks.engines.script_pipes import answer_lines


class FirstToken(BaseStreamer):
    """Tells when tokens arrive; the first thing put is the prompt."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._has_prompt = False

    def put(self, value: Any) -> None:
        """Take the prompt, then each token."""
        if self._has_prompt:
            self._tell()
        self._has_prompt = True

    def end(self) -> None:
        """Have nothing to flush."""


def main(directory: str, precision: str) -> None:
    """Serve a checkpoint."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    configs = {
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        ),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }
    model = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.bfloat16,
        device_map="cpu",
        quantization_config=configs.get(precision),
    )
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def generate(prompts: list[list[int]], tokens: int, first: Callable[[], None]) -> int:
        ids = torch.tensor(prompts)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
            streamer=FirstToken(first) if len(prompts) == 1 else None,
        )
        return int(output.shape[1]) - ids.shape[1]

    libraries = ("transformers", "torch", *(["bitsandbytes"] if precision in configs else []))
    answer_lines(generate, {name: version(name) for name in libraries})


main(sys.argv[1], sys.argv[2])
