"""Fidelity measured layer by layer against the same thing computed with whole models."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compression.errors import FidelityError
from compression.evaluation import Window
from compression.events import ignore
from compression.facts import read_facts
from compression.fidelity import score_tokens, summarize
from compression.layerwise import CheckpointWeights
from compression.measurement import measure
from compression.prepare import build_to
from compression.recipe import Recipe
from compression.served import ServedWeights
from tests.checkpoints import make_tiny_checkpoint


def windows() -> dict[str, list[Window]]:
    """Return two slices with windows of unequal length."""
    generator = torch.Generator().manual_seed(2)
    ids = [
        torch.randint(0, 300, (length,), generator=generator).tolist() for length in (40, 23, 30)
    ]
    parts = [Window(tuple(each), first=1) for each in ids]
    return {"one": parts[:2], "two": parts[2:]}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_layer_by_layer_is_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """The divergence of an artifact is that between the models transformers loads."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))
    directory = make_tiny_checkpoint(tmp_path / "model", family=family)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("weights: {scheme: int4, method: rtn}\n")
    built = build_to(str(directory), str(recipe), None, tmp_path / "artifact", ignore)
    if built.manifest is None:
        pytest.fail("an artifact has a manifest")
    facts = read_facts(directory)
    slices = windows()
    weights = ServedWeights(built.directory, built.manifest.recipe)
    scores = measure(facts, facts, weights, slices, ignore)

    full = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    served = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with weights, torch.no_grad():
        for name, parameter in served.named_parameters():
            parameter.copy_(weights.tensor(name))
    for name, parts in slices.items():
        expected = []
        for part in parts:
            ids = torch.tensor([part.token_ids])
            with torch.no_grad():
                wanted, given = full(ids).logits[0, part.rows], served(ids).logits[0, part.rows]
            expected.append(score_tokens(wanted, given, part.targets).kld)
        torch.testing.assert_close(scores[name].kld, torch.cat(expected), rtol=1e-3, atol=1e-5)
        assert float(scores[name].kld.mean()) > 1e-3


def test_a_model_does_not_differ_from_itself(tmp_path: Path) -> None:
    """The same weights give exactly nothing."""
    facts = read_facts(make_tiny_checkpoint(tmp_path / "model"))
    scores = measure(facts, facts, CheckpointWeights(facts), windows(), ignore)
    assert summarize(scores["one"]).kld_max == 0
    assert summarize(scores["one"]).top1 == 1


def test_logits_that_are_no_numbers(tmp_path: Path) -> None:
    """A model that overflows is refused by name, whatever its figures would have been."""
    facts = read_facts(make_tiny_checkpoint(tmp_path / "model"))

    class Broken(CheckpointWeights):
        def tensor(self, name: str) -> torch.Tensor:
            found = super().tensor(name)
            return found * float("nan") if name == "model.norm.weight" else found

    with pytest.raises(FidelityError, match="'mine' gives non-finite logits on slice 'one'"):
        measure(facts, facts, Broken(facts), windows(), ignore, recipe="mine")


def test_embeddings_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An int8 table is measured as it is served, though it is stored as it was."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))
    directory = make_tiny_checkpoint(tmp_path / "model")
    facts = read_facts(directory)
    found = []
    for embeddings in ("none", "int8"):
        recipe = Recipe.model_validate(
            {
                "name": "mine",
                "weights": {"scheme": "none"},
                "embeddings": {"scheme": embeddings},
            }
        )
        path = tmp_path / f"tables-{embeddings}.yaml"
        path.write_text(f"weights: {{scheme: none}}\nembeddings: {{scheme: {embeddings}}}\n")
        built = build_to(str(directory), str(path), None, tmp_path / embeddings, ignore)
        scores = measure(facts, facts, ServedWeights(built.directory, recipe), windows(), ignore)
        found.append(float(scores["one"].kld.mean()))
    assert found[0] == 0
    assert 0 < found[1] < 0.05
