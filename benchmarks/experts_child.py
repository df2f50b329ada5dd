"""Steps of :mod:`benchmarks.experts` that take a process of their own."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from benchmarks.experts import CONFIG
from gateway.engine.decode_speed import decode_ms, decode_shape
from gateway.engine.runner import Runner, load_runner

_SHARD = "120MB"
_SPREAD = 0.02


def make(directory: Path) -> None:
    """Save the checkpoint in shards."""
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**CONFIG), dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(_SPREAD * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(directory, max_shard_size=_SHARD)


def load(directory: Path) -> Runner:
    """Load a checkpoint or an artifact as the engine does."""
    return load_runner(directory, threads=None, max_model_len=None)


def decode(spoken: Path, directories: list[Path]) -> None:
    """Write the bytes and the speed of each, decoding in turn."""
    runners = [load(directory) for directory in directories]
    context, steps = decode_shape(runners[0])
    ids = [(7 * i * i + 3 * i + 1) % CONFIG["vocab_size"] for i in range(context + steps)]
    figures = [
        {"weights_bytes": runner.info()["weights_bytes"], "ms_per_token": milliseconds}
        for runner, milliseconds in zip(runners, decode_ms(runners, ids, context), strict=True)
    ]
    spoken.write_text(json.dumps(figures), encoding="utf-8")


def main() -> None:
    """Do one step."""
    step, place, *others = sys.argv[1:]
    if step == "make":
        make(Path(place))
    elif step == "load":
        load(Path(place))
    else:
        decode(Path(place), [Path(each) for each in others])


if __name__ == "__main__":
    main()
