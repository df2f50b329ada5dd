"""Attention of heads of every size that the compiled kernels take, against PyTorch's operations."""

from pathlib import Path

import pytest
import torch

from compression.events import ignore
from compression.packed.linear import NEVER
from compression.prepare import build_to
from gateway.engine.runner import load_runner
from tests.checkpoints import make_tiny_checkpoint

IDS = [(index * 37) % 300 for index in range(90)]
RECIPE = """
weights: {{scheme: int8}}
kv_cache: {{key: {{scheme: {kept}}}, value: {{scheme: {kept}}}}}
calibration: {{tokens: 512}}
"""


@pytest.mark.parametrize(("kept", "bound"), [("none", 0.01), ("int8", 0.05), ("int4", 0.5)])
@pytest.mark.parametrize("size", [8, 24, 40, 48, 96, 256])
@torch.inference_mode()
def test_sizes_that_fill_no_vector(tmp_path: Path, size: int, kept: str, bound: float) -> None:
    """A prompt, whose rows share keys once decoded, then single tokens, which read them as kept."""
    source = make_tiny_checkpoint(tmp_path / "source", head_dim=size, num_hidden_layers=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(kept=kept))
    build_to(str(source), str(recipe), None, tmp_path / "out", ignore)
    runner = load_runner(tmp_path / "out", threads=1, max_model_len=None)
    found = []
    for compiled in (True, False):
        for linear in runner.decoder.linears:
            linear.dense_from, linear.dense_dtype = NEVER if compiled else 1, torch.float32
        cache, rows = runner.new_cache(len(IDS)), []
        for start, stop in ((0, 87), (87, 88), (88, 89), (89, 90)):
            rows.append(runner.decoder.hidden([(cache, IDS[start:stop])]).to(torch.float32))
        found.append(torch.cat(rows))
    error = (found[0] - found[1]).norm(dim=-1) / found[1].norm(dim=-1)
    assert float(error.max()) < bound
