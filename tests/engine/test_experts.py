"""Mixtures of experts: quantized, served packed, against transformers with the same weights."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist

from compression.errors import CorruptCheckpoint, UnsupportedArchitecture
from compression.events import ignore
from compression.experts import is_experts
from compression.facts import read_header
from compression.loading import Checkpoint, make_linear
from compression.manifest import Manifest
from compression.packed import Bf16Linear
from compression.prepare import build_to, read_any_facts
from compression.tensor_source import TensorSource
from gateway.engine.general.experts import PackedExperts
from gateway.engine.general.linears import PackedModule
from gateway.engine.runner import Runner, load_runner
from tests.engine.general_families import save_model
from tests.engine.test_decoder import FLOOR, kld
from tests.engine.test_general import IDS, reference, stepwise
from tests.processor import ROUNDS_SUMS

SEPARATE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "hunyuan_v1_moe")
"""Each matrix of each expert lies in the files under a name of its own."""
STACKED = ("gpt_oss", "granitemoe", "gemma4")
"""One tensor of the files holds all experts: as transposes, with biases; as they are."""
SCHEMES = {
    "int8": "weights: {scheme: int8}",
    "int4": "weights: {scheme: int4}",
    "int5": "weights: {scheme: int5, method: mse}",
    "nf4": "weights: {scheme: nf4}",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))


def build(source: Path, recipe: str, out: Path) -> Manifest:
    """Build an artifact under a recipe given as YAML."""
    path = out.parent / "mine.yaml"
    path.write_text(recipe)
    manifest = build_to(str(source), str(path), None, out, ignore).manifest
    assert manifest is not None
    return manifest


def load(directory: Path) -> Runner:
    """Load with one thread, as small models need."""
    return load_runner(directory, threads=1, max_model_len=None)


def model_of(runner: Runner) -> Any:
    """Return transformers' model with packed layers in it."""
    decoder: Any = runner.decoder
    return decoder._model


def layers(runner: Runner) -> list[Any]:
    """Return the experts of each layer."""
    return [each for each in model_of(runner).modules() if isinstance(each, PackedExperts)]


Routes = list[tuple[Tensor, Tensor]]
"""Of each layer the chosen experts of every token and their shares."""


def transformers_logits(directory: Path) -> tuple[Tensor, Routes]:
    """Return transformers' float32 logits ``[40, vocab]`` of ``IDS``, and the experts it chose."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    routes: Routes = []
    for module in model.modules():
        if is_experts(module):
            module.register_forward_pre_hook(lambda _, given: routes.append(given[1:]))
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([IDS]), use_cache=False).logits[0]
    return logits, routes


def require_equal(runner: Runner, expected: Tensor, routes: Routes) -> None:
    """Check logits under the given choice of experts, and that most tokens choose so themselves.

    A router between two equal experts is decided by bf16's noise, and what follows is another text.
    """
    own: list[Tensor] = []
    hooks = []
    for each, (index, share) in zip(layers(runner), routes, strict=True):

        def impose(_: Any, given: Any, index: Tensor = index, share: Tensor = share) -> Any:
            own.append((given[1].sort().values == index.sort().values).all(dim=-1))
            return given[0], index, share

        hooks.append(each.register_forward_pre_hook(impose))
    result = runner.score(IDS)
    for hook in hooks:
        hook.remove()
    p, q = expected.log_softmax(-1), result.log_softmax(-1)
    divergences = (p.exp() * (p - q)).sum(-1)
    assert float(divergences.mean()) < (3 if ROUNDS_SUMS else 1) * FLOOR
    assert float(divergences.max()) < 10 * FLOOR
    assert float(torch.cat(own).float().mean()) > 0.85


def standing_for(source: Path, artifact: Path, place: Path) -> Path:
    """Save the source with what the artifact's codes stand for, in float32 and its own layout."""
    weights = load_file(source / "model.safetensors")
    with Checkpoint(artifact) as checkpoint:

        def dense(name: str) -> Tensor:
            weight = checkpoint.weight(name)
            return weight.float() if isinstance(weight, Tensor) else weight.dequantize()

        held = {each.name for each in checkpoint.manifest.tensors}  # type: ignore[union-attr]
        for name, weight in weights.items():
            if name in held:
                weights[name] = dense(name).reshape(weight.shape)
                held.remove(name)
                continue
            # what gpt-oss calls by transformers' names, granite by others
            leaf = {"input_linear": "gate_up_proj", "output_linear": "down_proj"}
            stem = name.removesuffix(".weight")
            for old, new in leaf.items():
                stem = stem.replace(f".{old}", f".experts.{new}")
            parent, _, last = stem.rpartition(".")
            parts = [f"{parent}.{expert}.{last}.weight" for expert in range(len(weight))]
            stack = torch.stack([dense(part) for part in parts])
            weights[name] = stack.mT.contiguous() if stack.shape != weight.shape else stack
            if "gpt_oss" in (source / "config.json").read_text():
                weights[name] = stack.mT.contiguous()
            held -= set(parts)
        assert not held
    place.mkdir()
    for path in source.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        *((family, scheme) for family in (*SEPARATE, *STACKED) for scheme in ("int8", "int4")),
        *((family, scheme) for family in ("qwen3_moe", "gpt_oss") for scheme in ("int5", "nf4")),
    ],
)
def test_served_as_the_codes_stand_for(tmp_path: Path, family: str, scheme: str) -> None:
    """The logits are transformers' own with the dequantized weights; every matrix has codes."""
    source = save_model(family, tmp_path / "source")
    manifest = build(source, SCHEMES[scheme], tmp_path / "out")
    matrices = [each for each in manifest.tensors if re.search(r"experts\.\d+\.", each.name)]
    per_expert = 3 if family in SEPARATE else 2
    assert len(matrices) == 2 * 4 * per_expert
    assert {each.applied.partition("-")[0] for each in matrices} == {scheme}
    runner = load(tmp_path / "out")
    first, second = layers(runner)
    assert len(first.down) == len(second.down) == 4
    assert all(len(parts) == 1 for parts in first.first)
    assert "none" not in {each.packed.scheme for each in first.down}
    expected, routes = transformers_logits(standing_for(source, tmp_path / "out", tmp_path / "x"))
    require_equal(runner, expected, routes)
    assert kld(runner.score(IDS), stepwise(runner)) < FLOOR
    assert kld(reference(source), expected) > FLOOR / 10


def test_rules_reach_single_experts(tmp_path: Path) -> None:
    """Parts of an expert may have different schemes; a kept one runs beside packed ones."""
    source = save_model("qwen2_moe", tmp_path / "source")
    recipe = (
        "weights: {scheme: int8}\n"
        "rules:\n"
        "- {targets: ['re:.*experts.*up_proj'], weights: {scheme: int4}}\n"
        "keep: ['re:.*layers[.]1.*experts[.]2[.].*']\n"
    )
    manifest = build(source, recipe, tmp_path / "out")
    applied = {each.name: each.applied for each in manifest.tensors}
    stem = "model.layers.1.mlp.experts"
    assert applied[f"{stem}.0.gate_proj.weight"] == "int8-rows"
    assert applied[f"{stem}.0.up_proj.weight"] == "int4-g32-asym"
    assert applied[f"{stem}.2.up_proj.weight"] == "none"
    runner = load(tmp_path / "out")
    _, second = layers(runner)
    schemes = [[part.packed.scheme for part in parts] for parts in second.first]
    assert schemes == [["int8-rows", "int4-g32-asym"]] * 2 + [["none"]] + [
        ["int8-rows", "int4-g32-asym"]
    ]
    assert isinstance(second.down[2].packed, Bf16Linear)
    require_equal(
        runner, *transformers_logits(standing_for(source, tmp_path / "out", tmp_path / "x"))
    )


def test_kept_stack_is_served(tmp_path: Path) -> None:
    """Experts that the recipe keeps are the source's numbers, turned where they were not rows."""
    source = save_model("gpt_oss", tmp_path / "source")
    build(source, "weights: {scheme: int8}\nkeep: ['re:.*experts.*']\n", tmp_path / "out")
    stack = load_file(source / "model.safetensors")["model.layers.0.mlp.experts.gate_up_proj"]
    with Checkpoint(tmp_path / "out") as checkpoint:
        kept = checkpoint.tensor("model.layers.0.mlp.experts.3.gate_up_proj.weight")
    assert torch.equal(kept, stack[3].t())
    runner = load(tmp_path / "out")
    assert layers(runner)[0].down[0].packed.scheme == "none"
    require_equal(
        runner, *transformers_logits(standing_for(source, tmp_path / "out", tmp_path / "x"))
    )


def test_only_experts_with_tokens_run(tmp_path: Path) -> None:
    """One token takes as many experts as the config says, and no other is looked at."""
    source = save_model("qwen3_moe", tmp_path / "source")
    build(source, SCHEMES["int8"], tmp_path / "out")
    runner = load(tmp_path / "out")
    ran: list[int] = []
    for each in layers(runner):
        for number, layer in enumerate(each.down):
            layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    runner.forward([(runner.new_cache(1), [5], 1)])
    assert len(ran) == 2 * 2


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_no_stack_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """While an artifact is loaded no parameter holds all experts, and no converter runs."""
    source = save_model("olmoe", tmp_path / "source")
    build(source, SCHEMES[scheme], tmp_path / "out")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("experts were stacked")

    monkeypatch.setattr(MergeModulelist, "convert", refuse)
    runner = load(tmp_path / "out")
    assert all(each.dim() < 3 for each in model_of(runner).parameters())
    assert runner.info()["weights_bytes"] < 0.6 * runner.info()["weights_bytes_before"]


def test_router_is_never_quantized(tmp_path: Path) -> None:
    """What chooses experts or weighs the shared one stays; the manifest and the config say so."""
    source = save_model("qwen2_moe", tmp_path / "source")
    manifest = build(source, SCHEMES["int8"], tmp_path / "out")
    records = {each.name: each for each in manifest.tensors}
    gate = "model.layers.0.mlp.shared_expert_gate"
    assert records[f"{gate}.weight"].applied == "none"
    assert records[f"{gate}.weight"].reason == "chooses experts"
    router = records["model.layers.0.mlp.gate.weight"]
    assert (router.applied, router.reason) == ("none", "chooses experts")
    assert records["model.layers.0.mlp.shared_expert.up_proj.weight"].applied == "int8-rows"
    entry = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert gate in entry["ignore"]
    [group] = entry["config_groups"].values()
    quantized = {each.name for each in manifest.tensors if each.applied == "int8-rows"}
    assert {f"{target}.weight" for target in group["targets"]} == quantized
    assert "model.layers.1.mlp.experts.3.down_proj" in group["targets"]


@pytest.mark.parametrize("family", ["mixtral", "granitemoe", "gpt_oss"])
def test_every_matrix_is_read_as_it_is(tmp_path: Path, family: str) -> None:
    """The facts' matrices are those that transformers computes with, part by part."""
    source = save_model(family, tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    facts = read_any_facts(source)
    experts = model.model.layers[1].get_submodule(
        "mlp.experts" if family != "granitemoe" else "block_sparse_moe.experts"
    )
    stack = experts.gate_up_proj.mT if family == "gpt_oss" else experts.gate_up_proj
    names = {
        "mixtral": ["block_sparse_moe.experts.2.w1", "block_sparse_moe.experts.2.w3"],
        "granitemoe": ["block_sparse_moe.experts.2.gate_up_proj"],
        "gpt_oss": ["mlp.experts.2.gate_up_proj"],
    }
    with TensorSource(facts) as tensors:
        read = [tensors.read(f"model.layers.1.{name}.weight") for name in names[family]]
    assert torch.equal(torch.cat(read), stack[2])


def test_norm_after_each_expert_and_none_chosen() -> None:
    """Without a gate, with a norm after each expert; a number beyond the last stands for none."""
    generator = torch.Generator().manual_seed(0)
    first = [torch.randn(32, 64, generator=generator).bfloat16() for _ in range(2)]
    down = [torch.randn(64, 32, generator=generator).bfloat16() for _ in range(2)]
    family = SimpleNamespace(
        has_gate=False,
        act_fn=torch.relu,
        has_post_expert_norm=True,
        post_expert_norm=lambda x: x / x.norm(dim=-1, keepdim=True),
    )
    experts = PackedExperts(
        family,
        [[PackedModule(make_linear(weight, None))] for weight in first],
        [PackedModule(make_linear(weight, None)) for weight in down],
    )
    x = torch.randn(3, 64, generator=generator)
    index, share = torch.tensor([[0, 2], [1, 0], [2, 2]]), torch.rand(3, 2, generator=generator)
    expected = torch.zeros(3, 64)
    for token, choice in ((0, 0), (1, 0), (1, 1)):
        expert = int(index[token, choice])
        made = down[expert].float() @ torch.relu(first[expert].float() @ x[token])
        expected[token] += share[token, choice] * made / made.norm()
    assert torch.allclose(experts(x, index, share), expected, atol=0.02)


def test_unknown_conversions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that transformers would put beside each other are not read as rows."""
    source = save_model("mixtral", tmp_path / "source")

    def beside(model: Any) -> list[Any]:
        found: list[Any] = get_model_conversion_mapping(model)
        for converter in found:
            for each in getattr(converter, "operations", ()):
                if isinstance(each, Concatenate):
                    each.dim = 2
        return found

    monkeypatch.setattr("compression.experts.get_model_conversion_mapping", beside)
    with pytest.raises(UnsupportedArchitecture, match=r"in a way that is not known here.*full"):
        build(source, SCHEMES["int8"], tmp_path / "out")


def _without_one(weights: dict[str, Tensor], name: str) -> None:
    del weights[name]


def _shorter(weights: dict[str, Tensor], name: str) -> None:
    weights[name] = weights[name][..., :-1].contiguous()


def _broken(weights: dict[str, Tensor], name: str) -> None:
    weights[name][-1].view(-1)[3] = float("nan")


_ONE, _ALL = "model.layers.1.mlp.experts.2.up_proj.weight", "model.layers.1.mlp.experts.down_proj"
DAMAGES: dict[str, tuple[str, str, Callable[[dict[str, Tensor], str], None], str]] = {
    "missing": ("qwen3_moe", _ONE, _without_one, r"lacks the weight of expert 2 that belongs"),
    "misshapen": ("qwen3_moe", _ONE, _shorter, r"experts\.2\.up_proj.*has shape \[64, 63\].*asks"),
    "nan": ("qwen3_moe", _ONE, _broken, r"experts\.2\.up_proj.weight. holds NaN"),
    "missing stack": ("gpt_oss", _ALL, _without_one, r"lacks the weights of .*experts.down_proj"),
    "misshapen stack": ("gpt_oss", _ALL, _shorter, r"experts\.down_proj.*has shape \[4, 128, 63\]"),
    "nan in a stack": ("gpt_oss", _ALL, _broken, r"experts\.3\.down_proj.weight. holds NaN"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_experts_are_refused(tmp_path: Path, damage: str) -> None:
    """The error names the expert, and nothing is left of the build."""
    family, name, change, expected = DAMAGES[damage]
    source = save_model(family, tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    change(weights, name)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptCheckpoint, match=expected) as caught:
        build(source, SCHEMES["int4"], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {each.name for each in tmp_path.iterdir()} == {"source", "mine.yaml", "home"} - (
        set() if (tmp_path / "home").exists() else {"home"}
    )


def test_more_experts_than_the_config_says(tmp_path: Path) -> None:
    """Experts that nothing would choose are told, not left out."""
    source = save_model("mixtral", tmp_path / "source")
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_local_experts": 3}))
    with pytest.raises(CorruptCheckpoint, match=r"has 8 matrices of .*, config.json asks for 6"):
        build(source, SCHEMES["int8"], tmp_path / "out")


def test_experts_with_code_of_their_own_are_refused(tmp_path: Path) -> None:
    """Stacked experts without transformers' interface stay whole, and that is said."""
    source = save_model("qwen3_moe", tmp_path / "source")
    config = {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "num_hidden_layers": 1,
        "num_local_experts": 2,
    }
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedArchitecture, match=r"'Llama4ForCausalLM'.* code of their own"):
        build(source, SCHEMES["int8"], tmp_path / "out")


def test_stacks_are_cut_into_one_matrix_an_expert(tmp_path: Path) -> None:
    """The artifact's files hold the names that DESIGN.md gives, with groups along the inputs."""
    source = save_model("gpt_oss", tmp_path / "source")
    build(source, SCHEMES["int4"], tmp_path / "out")
    header = read_header(tmp_path / "out" / "model.safetensors")
    stem = "model.layers.0.mlp.experts.3.gate_up_proj.weight"
    assert header[f"{stem}_packed"].shape == (256, 64 * 4 // 32)
    assert header[f"{stem}_scale"].shape == (256, 64 // 32)
    assert "model.layers.0.mlp.experts.gate_up_proj" not in header
