"""A peer: transformers' eager bf16 decoding, one token a line on request.

Reads a line with a token count from standard input, generates that many tokens greedily and
answers with the median milliseconds a token.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(directory: Path, prompt: str) -> None:
    """Serve measurements of the checkpoint in ``directory`` until standard input ends."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    chat = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"ms": decode(model, ids["input_ids"], int(line))}), flush=True)


@torch.inference_mode()
def decode(model: torch.nn.Module, ids: torch.Tensor, count: int) -> list[float]:
    """Return the milliseconds of each of ``count`` greedy steps after the prompt."""
    output = model(ids, use_cache=True)
    steps = []
    for _ in range(count):
        start = time.perf_counter()
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        steps.append((time.perf_counter() - start) * 1e3)
    return [*steps, statistics.median(steps)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
