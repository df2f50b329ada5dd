"""Artifacts of every scheme, method and known family: what other readers and ours get from them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, CompressedTensorsConfig

from compression.events import ignore
from compression.loading import Checkpoint
from compression.manifest import Manifest
from compression.prepare import build_to
from gateway.engine.runner import load_runner
from tests.checkpoints import CONFIGS, make_tiny_checkpoint

IDS = list(range(3, 40))
SCHEMES: dict[str, dict[str, Any]] = {
    "int8-rtn": {"scheme": "int8", "method": "rtn"},
    "int8-mse": {"scheme": "int8", "method": "mse"},
    "int8-imatrix": {"scheme": "int8", "method": "imatrix"},
    "int8-gptq": {"scheme": "int8", "method": "gptq"},
    "int8-best": {"scheme": "int8", "method": "best"},
    "int4-mse": {"scheme": "int4", "method": "mse"},
    "int4-sym-rtn": {"scheme": "int4", "method": "rtn", "symmetric": True},
    "int4-g64-imatrix": {"scheme": "int4", "method": "imatrix", "group_size": 64},
    "int4-gptq": {"scheme": "int4", "method": "gptq"},
    "int4-best": {"scheme": "int4", "method": "best"},
    "int5-mse": {"scheme": "int5", "method": "mse"},
    "int5-sym-rtn": {"scheme": "int5", "method": "rtn", "symmetric": True},
    "int5-g64-imatrix": {"scheme": "int5", "method": "imatrix", "group_size": 64},
    "int5-gptq": {"scheme": "int5", "method": "gptq"},
    "int5-best": {"scheme": "int5", "method": "best"},
    "nf4": {"scheme": "nf4"},
}
LIMITS = {"int8": 0.02, "int5": 0.12, "int4": 0.25, "nf4": 0.25}
"""What rounding may move a weight by, of its norm."""
MIXED = {
    "weights": {"scheme": "int4"},
    "rules": [
        {"targets": [r"re:.*\.0\.self_attn\.[qkv]_proj"], "weights": {"scheme": "int8"}},
        {
            "targets": ["model.layers.1.mlp.down_proj"],
            "weights": {"scheme": "int4", "group_size": 64, "symmetric": True},
        },
        {
            "targets": ["model.layers.0.mlp.down_proj"],
            "weights": {"scheme": "int5", "symmetric": True},
        },
    ],
    "keep": [r"re:.*\.1\.mlp\.(gate|up)_proj"],
}
"""Five treatments in two layers."""

# transformers warns of what is asked for here: another way of loading than the artifact's default.
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return one checkpoint of each family."""
    root = tmp_path_factory.mktemp("sources")
    return {family: make_tiny_checkpoint(root / family, family=family) for family in CONFIGS}


def build(source: Path, out: Path, fields: dict[str, Any]) -> Manifest:
    """Build with a recipe as a user would write it; the text is short, to be quick."""
    recipe = out.with_suffix(".yaml")
    calibration = {"calibration": {"tokens": 512}}
    recipe.write_text(json.dumps({"name": "mine", **calibration, **fields}))  # JSON is YAML
    built = build_to(str(source), str(recipe), None, out, ignore)
    assert built.manifest is not None
    return built.manifest


def dequantized(source: Path, artifact: Path, manifest: Manifest) -> torch.Tensor:
    """Return transformers' logits of the source under the weights that our loader reads."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tensors = dict(model.named_parameters())
    with Checkpoint(artifact) as checkpoint, torch.no_grad():
        for record in manifest.tensors:
            if record.relative_error is None or "proj" not in record.name:
                continue
            weight = checkpoint.weight(record.name)
            assert not isinstance(weight, torch.Tensor)
            assert weight.label == record.applied == record.requested
            exact, served = tensors[record.name].clone(), weight.dequantize()
            error = float((served - exact).norm() / exact.norm())
            assert error == pytest.approx(record.relative_error, rel=1e-3)
            tensors[record.name].copy_(served)
    return logits(model)


def logits(model: Any) -> torch.Tensor:
    """Return the float32 logits of a fixed text."""
    with torch.no_grad():
        result: torch.Tensor = model(torch.tensor([IDS])).logits[0].float()
    return result


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the relative distance of two blocks of logits."""
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("family", list(CONFIGS))
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_matrix(sources: dict[str, Path], tmp_path: Path, scheme: str, family: str) -> None:
    """Every scheme by every method on every family: built, read back, and served as read."""
    weights = SCHEMES[scheme]
    manifest = build(sources[family], tmp_path / "out", {"weights": weights})
    linears = [record for record in manifest.tensors if record.name.endswith("proj.weight")]
    methods = {record.method for record in linears}
    if "method" not in weights:
        assert methods == {None}
    elif weights["method"] == "best":
        assert methods <= {"mse", "imatrix", "gptq"}
    else:
        assert methods == {weights["method"]}
    is_calibrated = weights.get("method") in {"imatrix", "gptq", "best"}
    assert all((record.output_error is not None) == is_calibrated for record in linears)
    limit = LIMITS[weights["scheme"]]
    assert all(0 < (record.relative_error or 0) < limit for record in linears)
    expected = dequantized(sources[family], tmp_path / "out", manifest)
    runner = load_runner(tmp_path / "out", threads=1, max_model_len=None)
    assert distance(runner.score(IDS), expected) < 0.03


@pytest.mark.parametrize(
    "scheme", ["int8-rtn", "int5-mse", "int5-sym-rtn", "int4-mse", "int4-sym-rtn"]
)
@pytest.mark.parametrize("shards", ["5GB", "50KB"])
def test_plain_transformers_loads_one_scheme(tmp_path: Path, scheme: str, shards: str) -> None:
    """transformers with compressed-tensors gives the logits of the weights that we read."""
    source = make_tiny_checkpoint(tmp_path / "source", max_shard_size=shards)
    manifest = build(source, tmp_path / "out", {"weights": SCHEMES[scheme]})
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        dtype=torch.float32,
        quantization_config=CompressedTensorsConfig(dequantize=True),
    )
    assert distance(logits(loaded), dequantized(source, tmp_path / "out", manifest)) < 0.02


@pytest.mark.parametrize("shards", ["5GB", "50KB"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mixed_schemes(tmp_path: Path, shards: str, symmetric: bool) -> None:
    """Formats of int4 and int5, int8 and kept layers in one artifact, for both loaders.

    transformers 5.23 reads several schemes only without ``dequantize``, and symmetric int4 only
    that way.
    """
    source = make_tiny_checkpoint(tmp_path / "source", max_shard_size=shards)
    recipe = MIXED | {"weights": {"scheme": "int4", "symmetric": symmetric}}
    manifest = build(source, tmp_path / "out", recipe)
    applied = {record.applied for record in manifest.tensors if "proj" in record.name}
    kind = "sym" if symmetric else "asym"
    assert applied == {"int8-rows", f"int4-g32-{kind}", "int4-g64-sym", "int5-g32-sym", "none"}
    expected = dequantized(source, tmp_path / "out", manifest)
    runner = load_runner(tmp_path / "out", threads=1, max_model_len=None)
    assert distance(runner.score(IDS), expected) < 0.03
    if symmetric:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert distance(logits(loaded), expected) < 0.05  # the inputs of int8 layers are rounded


def test_plain_transformers_loads_nf4(tmp_path: Path) -> None:
    """The artifact is what transformers' own bitsandbytes quantization makes, bit for bit."""
    source = make_tiny_checkpoint(tmp_path / "source")
    kept = "model.layers.1.mlp.down_proj"
    build(source, tmp_path / "out", {"weights": {"scheme": "nf4"}, "keep": [kept]})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    asked = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", kept],
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, quantization_config=asked
    )
    assert type(loaded.get_submodule("model.layers.0.mlp.up_proj")).__name__ == "Linear4bit"
    assert type(loaded.get_submodule(kept)) is torch.nn.Linear
    ours = dict(loaded.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert torch.equal(ours[name], parameter), name
    assert torch.equal(logits(loaded), logits(theirs))
