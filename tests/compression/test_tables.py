"""Output heads by GPTQ: stored as numbers, rounded to the chosen codes wherever they are loaded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompressedTensorsConfig,
    GPTNeoXConfig,
)

from compression.calibration_text import calibration_windows
from compression.errors import RecipeError
from compression.events import ignore
from compression.facts import read_facts
from compression.loading import Checkpoint
from compression.manifest import Manifest, TensorRecord
from compression.plan import make_plan
from compression.prepare import build_to
from compression.presets import PRESETS, parse_recipe
from compression.propagation import PropagatingCalibrator
from compression.recipe import Recipe
from compression.schemes import Int8
from compression.served import ServedWeights
from compression.weights.codes import Codes
from compression.weights.gptq import make_feedback
from compression.weights.quantizer import quantize
from compression.weights.statistics import EMBEDDED, InputStatistics
from compression.weights.table import round_table
from tests.checkpoints import make_tiny_checkpoint
from tests.compression.test_other_families import save

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# transformers warns of what is asked for here: another way of loading than the artifact's default.
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))


def recipe_of(**fields: object) -> Recipe:
    """Return a recipe from plain data."""
    return parse_recipe(fields, where="test", default_name="mine")


def correlated(columns: int = 96) -> Tensor:
    """Return the second moments of inputs whose columns go together."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(2000, columns, generator=generator) @ (mixed + 0.3 * torch.eye(columns))
    moment: Tensor = inputs.T @ inputs / len(inputs)
    return moment


def some_rows(dtype: torch.dtype) -> Tensor:
    """Return a table with rows of very different sizes, one of them of zeros."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.logspace(-2, 1, 400).unsqueeze(1)
    rows = torch.randn(400, 96, generator=generator) * sizes
    rows[7] = 0
    return rows.to(dtype)


def codes_of(rows: Tensor) -> Codes:
    """Return what a loader makes of a stored table."""
    return quantize(rows, Int8())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_nearest_numbers_of_the_chosen_codes_are_stored(dtype: torch.dtype) -> None:
    """Scales and numbers whose code stays are untouched, the others cross an edge and no more."""
    rows = some_rows(dtype)
    stored = round_table(rows, make_feedback(correlated()))
    plain, chosen = codes_of(rows), codes_of(stored)
    assert stored.dtype == dtype
    assert torch.equal(chosen.scales, plain.scales)
    moved = chosen.codes != plain.codes
    assert 0.05 < float(moved.float().mean()) < 0.6
    assert torch.equal(stored[~moved], rows[~moved])
    one_less = torch.where(moved, torch.nextafter(stored, rows), stored)
    assert bool((codes_of(one_less).codes != chosen.codes)[moved].all())


def test_every_code_of_a_bf16_table_can_be_stored() -> None:
    """GPTQ's codes are read back, but for each row's largest number, which keeps its own."""
    rows, feedback = some_rows(torch.bfloat16), make_feedback(correlated())
    statistics = InputStatistics(torch.ones(96), correlated(), 2000)
    free = quantize(rows, Int8(method="gptq"), statistics=statistics).codes
    read = codes_of(round_table(rows, feedback)).codes
    largest = rows.float().abs().argmax(1)
    kept = codes_of(rows).codes[torch.arange(400), largest]
    assert torch.equal(read[torch.arange(400), largest], kept)
    same = free[torch.arange(400), largest] == kept
    assert 0.2 < float(same.float().mean()) < 1
    assert torch.equal(read[same], free[same])  # where nothing was held, nothing else differs


def test_outputs_err_less_than_with_plain_rounding() -> None:
    """On the inputs that were calibrated on, the error is well below plain rounding's."""
    rows = some_rows(torch.bfloat16)
    statistics = InputStatistics(torch.ones(96), correlated(), 2000)
    stored = round_table(rows, statistics.feedback)
    error = statistics.output_error(rows, codes_of(stored).dequantize())
    plain = statistics.output_error(rows, codes_of(rows).dequantize())
    assert error < 0.5 * plain
    # Engines that read the numbers themselves are nearer still: most of them are the source's.
    assert statistics.output_error(rows, stored) < 0.6 * error


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_seen_behind_all_layers(tmp_path: Path, tied: bool) -> None:
    """Its moments are of the served final states; towards the full model's only where untied."""
    directory = make_tiny_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    windows = torch.randint(0, 300, (16, 20), generator=torch.Generator().manual_seed(1))
    full = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    served = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        table = served.get_parameter(EMBEDDING)
        exact = table.clone()
        table.copy_(codes_of(exact.bfloat16()).dequantize())
        served.lm_head.weight = torch.nn.Parameter(exact)
    states = []
    for model in (full, served):
        model.lm_head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        with torch.no_grad():
            model(windows)
    x_exact, x = (each[:14].flatten(0, 1) for each in states)
    apart = states[1][14:].flatten(0, 1)
    with PropagatingCalibrator(read_facts(directory), windows, Int8(method="gptq")) as calibrator:
        for layer in range(full.config.num_hidden_layers):
            list(calibrator.stages(layer))
        [stage] = calibrator.stages(full.config.num_hidden_layers)
    [(name, found)] = stage.items()
    moment = x.T @ x / len(x)
    if tied:
        moment.diagonal().add_(EMBEDDED * moment.diagonal().mean())
        assert found.difference is None
    else:
        expected = (x_exact - x).T @ x / len(x)
        torch.testing.assert_close(found.difference, expected, rtol=1e-3, atol=1e-5)
    assert f"{name}.weight" == (EMBEDDING if tied else HEAD)
    torch.testing.assert_close(found.second_moment, moment, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.held_out, apart.T @ apart / len(apart), rtol=1e-3, atol=1e-4)


def built(source: Path, recipe: str, out: Path) -> Manifest:
    """Return the manifest of a build."""
    manifest = build_to(str(source), recipe, None, out, ignore).manifest
    assert manifest is not None
    return manifest


def record(manifest: Manifest, name: str) -> TensorRecord:
    """Return the record of one tensor."""
    return next(each for each in manifest.tensors if each.name == name)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_one_artifact_means_the_same_to_all_readers(
    tmp_path: Path, family: str, tied: bool
) -> None:
    """Loader, fidelity check and transformers get one set of codes; the manifest tells of it."""
    source = make_tiny_checkpoint(tmp_path / "source", family=family, tie_word_embeddings=tied)
    manifest = built(source, "int8", tmp_path / "out")
    name = EMBEDDING if tied else HEAD
    head = record(manifest, name)
    assert (head.method, head.requested, head.applied) == ("gptq", "int8-rows", "int8-rows")
    assert head.reason == "stored as numbers that round to the codes at load"
    with Checkpoint(source) as full, Checkpoint(tmp_path / "out") as ours:
        exact, stored, codes = full.tensor(name), ours.tensor(name), ours.embedding(name)
    assert isinstance(codes, Codes)
    assert stored.dtype == exact.dtype
    assert torch.equal(codes.codes, codes_of(stored).codes)
    assert not torch.equal(codes.codes, codes_of(exact).codes)
    error = float((codes.dequantize() - exact.float()).norm() / exact.float().norm())
    assert error == pytest.approx(head.relative_error, rel=1e-3)
    with ServedWeights(tmp_path / "out", manifest.recipe) as served:
        rows = torch.arange(5, 60)
        assert torch.equal(served.rows(name, rows), codes.dequantize()[rows])
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    assert torch.equal(theirs.get_output_embeddings().weight, stored)
    if not tied:
        embedding = record(manifest, EMBEDDING)
        assert (embedding.method, embedding.output_error) == ("rtn", None)
        assert embedding.reason.startswith("rounded plainly: no logits are made of it")
        assert torch.equal(theirs.get_input_embeddings().weight, full_tensor(source))


def full_tensor(source: Path) -> Tensor:
    """Return the embedding of a checkpoint."""
    with Checkpoint(source) as full:
        return full.tensor(EMBEDDING)


def test_logits_err_less_than_by_plain_rounding(tmp_path: Path) -> None:
    """On the calibration text, behind the artifact's own layers."""
    source = make_tiny_checkpoint(tmp_path / "source")
    manifest = built(source, "int8", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(source)
    windows = calibration_windows(manifest.recipe.calibration, tokenizer, 512)
    states: list[Tensor] = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    with torch.no_grad():
        model(windows)
    x = states[0].flatten(0, 1).float()
    with Checkpoint(source) as full, Checkpoint(tmp_path / "out") as ours:
        exact, codes = full.tensor(EMBEDDING), ours.embedding(EMBEDDING)
    assert isinstance(codes, Codes)
    errors = [
        float((x @ (table.dequantize() - exact.float()).T).square().sum())
        for table in (codes, codes_of(exact))
    ]
    assert errors[0] < 0.9 * errors[1]


def test_where_nothing_is_calibrated_the_table_is_rounded_plainly(tmp_path: Path) -> None:
    """The plan says why before a weight is read."""
    source = make_tiny_checkpoint(tmp_path / "source")
    facts = replace(read_facts(source), directory=tmp_path / "none")
    plan = make_plan(facts, PRESETS["int8"])
    table = next(each for each in plan.tensors if each.fact.name == EMBEDDING)
    assert table.scheme == Int8()
    assert table.reason == (
        "rounded plainly: without tokenizer.json no text can be read; "
        "stored as is, quantized at load"
    )


def test_layers_need_not_be_calibrated_for_it(tmp_path: Path) -> None:
    """A head alone by GPTQ reads the text too, and layers keep their own method."""
    source = make_tiny_checkpoint(tmp_path / "source")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "weights: nf4\nembeddings: {scheme: int8, method: gptq}\ncalibration: {tokens: 512}\n"
    )
    manifest = built(source, str(recipe), tmp_path / "out")
    assert manifest.calibration_digest is not None
    assert record(manifest, EMBEDDING).method == "gptq"
    assert record(manifest, "model.layers.0.mlp.up_proj.weight").applied == "nf4-b64"


@pytest.mark.parametrize("method", ["imatrix", "best"])
def test_methods_of_layers_are_refused(tiny_llama_dir: Path, method: str) -> None:
    """A table takes those that were measured on tables."""
    recipe = recipe_of(weights="int8", embeddings={"scheme": "int8", "method": method})
    with pytest.raises(RecipeError, match=f"the method '{method}', which is for linear layers"):
        make_plan(read_facts(tiny_llama_dir), recipe)


def test_a_family_known_by_its_outline_has_no_head_to_calibrate(tmp_path: Path) -> None:
    """Asked for by name, GPTQ of the head is refused."""
    config = GPTNeoXConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("weights: int8\nembeddings: {scheme: int8, method: gptq}\n")
    with pytest.raises(RecipeError, match="the method 'gptq' needs a known family"):
        built(save(config, tmp_path / "source"), str(recipe), tmp_path / "out")
