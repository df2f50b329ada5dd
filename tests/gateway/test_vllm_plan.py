"""What vLLM is asked for, by recipe and device; what it cannot do is refused with a remedy."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from compression.errors import ArtifactError
from compression.presets import PRESETS
from compression.recipe import KvCache, Recipe
from compression.schemes import (
    AnyKv,
    AnyWeight,
    Int4,
    Int8,
    KvFp8,
    KvInt4,
    KvInt8,
    Nf4,
)
from gateway.backends import vllm_facts
from gateway.backends.vllm import ARTIFACT_VARIABLE, VllmStart, command, environment, kv_cache_bytes
from gateway.backends.vllm_cache import CUDA_KV
from gateway.backends.vllm_checkpoint import require_servable_by
from gateway.backends.vllm_facts import VllmFacts
from gateway.backends.vllm_plan import VllmPlan, plan
from gateway.backends.vllm_weights import WEIGHTS, require_fp8_weights
from gateway.cli.engine import told_by_vllm
from gateway.errors import LoadRefused
from gateway.model_settings import VariantSettings

KV_DTYPES = ("auto", "fp8", "int8_per_token_head", "int4_per_token_head", "fp8_per_token_head")


def facts(**changes: Any) -> VllmFacts:
    """Return what a vLLM on a modern processor says, with changes."""
    said = {
        "version": "0.32.0",
        "has_command": False,
        "device": "cpu",
        "capability": None,
        "options": {
            "--kv-cache-dtype": KV_DTYPES,
            "--kv-cache-dtype-skip-layers": None,
            "--kv-cache-memory-bytes": None,
            "--max-model-len": None,
            "--worker-extension-cls": None,
            "--middleware": None,
            "--enforce-eager": None,
            "--no-enforce-eager": None,
            "--seed": None,
            "--otlp-traces-endpoint": None,
            "--dtype": ("auto", "float32"),
            "--model": None,
        },
        "flags": frozenset({"--enforce-eager"}),
        "num_devices": 0,
        "has_tracing": False,
        "architectures": frozenset({"LlamaForCausalLM"}),
        "has_bitsandbytes_plugin": False,
        "cpu_features": frozenset({"avx512", "vnni"}),
        "head_sizes": frozenset({64, 128}),
        "int8_error": 0.002,
        "fp8_weights": None,
        "has_int4_kernel": True,
    }
    return VllmFacts.model_validate(said | changes)


def gpu(**changes: Any) -> VllmFacts:
    """Return what a vLLM on an H100 says, with changes."""
    there = {"device": "cuda", "capability": (9, 0), "cpu_features": frozenset(), "head_sizes": ()}
    return facts(**there | changes)


OLD_CPU: dict[str, Any] = {
    "cpu_features": frozenset(),
    "int8_error": 0.13,
    "has_int4_kernel": False,
}


def test_tables_are_complete() -> None:
    """Every scheme of weights, and of keys and values, has its line."""
    assert set(WEIGHTS) == set(get_args(AnyWeight))
    assert set(CUDA_KV) == set(get_args(AnyKv))


@pytest.mark.parametrize("name", ["int4", "int4-gptq", "w8a8"])
def test_plain_artifacts_need_nothing(name: str) -> None:
    """On a processor that has the kernels an artifact is served as it is."""
    made = plan(PRESETS[name], facts())
    assert (dict(made.options), dict(made.environment)) == ({}, {})
    assert any("embeddings" in note for note in made.notes)


@pytest.mark.parametrize("name", ["int8", "int8-fast"])
def test_inputs_are_rounded_only_where_the_recipe_asks(name: str) -> None:
    """vLLM's int8 kernel rounds them in any case, so ours serves what leaves them as they are."""
    made = plan(PRESETS[name], facts())
    assert made.environment["NARROWGATE_VLLM_KERNELS"] == "int8"
    assert made.environment["VLLM_DISABLED_KERNELS"] == "CPUInt8ScaledMMLinearKernel"
    [note] = [each for each in made.notes if "recipe w8a8 asks for it" in each]
    assert "but for those of a mixture's experts" in note
    assert dict(plan(PRESETS[name], gpu()).environment) == {}


def test_full_model() -> None:
    """The full model differs in nothing; should it be quantized already, our kernels are there."""
    assert plan(None, facts()) == VllmPlan()
    old = plan(None, facts(**OLD_CPU))
    assert (old.options, old.notes) == ({}, ())
    assert old.environment["NARROWGATE_VLLM_KERNELS"] == "int4,int8"


@pytest.mark.parametrize(
    ("scheme", "failing", "words"),
    [
        (Int8(), "CPUInt8ScaledMMLinearKernel", "off by 13% on this processor"),
        (Int4(), "CPUWNA16LinearKernel", "built without its int4 kernel"),
    ],
)
def test_kernels_that_fail_are_replaced(scheme: AnyWeight, failing: str, words: str) -> None:
    """Where vLLM's kernel gives wrong sums or is missing, ours stands in, and that is said."""
    made = plan(Recipe(name="one", weights=scheme), facts(**OLD_CPU))
    assert scheme.scheme in made.environment["NARROWGATE_VLLM_KERNELS"].split(",")
    assert failing in made.environment["VLLM_DISABLED_KERNELS"].split(",")
    assert [words in note for note in made.notes] == [True]


def test_what_could_not_be_checked_is_not_trusted() -> None:
    """Where vLLM's int8 product could not be measured, ours is taken."""
    made = plan(PRESETS["int8"], facts(int8_error=None))
    assert made.environment["NARROWGATE_VLLM_KERNELS"] == "int8"


def test_both_kernels() -> None:
    """A recipe with both schemes gets both kernels."""
    recipe = Recipe.model_validate(
        {
            "name": "mixed",
            "weights": {"scheme": "int4"},
            "rules": [{"targets": ["re:.*down_proj"], "weights": {"scheme": "int8"}}],
        }
    )
    made = plan(recipe, facts(**OLD_CPU))
    assert made.environment["NARROWGATE_VLLM_KERNELS"] == "int4,int8"


@pytest.mark.parametrize("where", [facts(), gpu(capability=(9, 0))])
def test_int5_has_no_kernel(where: VllmFacts) -> None:
    """No device's kernel takes five bits: refused, also by rule, with recipes that are served."""
    rule = {"targets": ["re:.*down_proj"], "weights": "int5"}
    mixed = Recipe.model_validate({"name": "mixed", "weights": "int4", "rules": [rule]})
    for recipe in (PRESETS["int5"], mixed):
        with pytest.raises(LoadRefused, match=r"no kernel .* 5 bits .*int4-gptq or int8"):
            plan(recipe, where)
    for name in ("int4-gptq", "int8"):
        plan(PRESETS[name], where)


def test_nf4_needs_the_plugin() -> None:
    """nf4 is refused with the way out, and served where the plugin is."""
    recipe = Recipe(name="nf4", weights=Nf4())
    with pytest.raises(LoadRefused, match=r"recipe 'nf4' .* vllm-bnb-plugin.*use recipe int4"):
        plan(recipe, facts())
    assert plan(recipe, facts(has_bitsandbytes_plugin=True)).options == {}


def test_fp8_weights_on_processors() -> None:
    """They are an option of vLLM; what this build cannot do is refused before the start."""
    can = facts(fp8_weights=["fp8_per_block"])
    for asked in ("fp8_per_block", "awq", None):
        require_fp8_weights(asked, can)
    with pytest.raises(LoadRefused, match=r"as 'fp8': .* use fp8_per_block with recipe full, or"):
        require_fp8_weights("fp8", can)
    with pytest.raises(LoadRefused, match="on this processor: use recipe int8"):
        require_fp8_weights("fp8_per_block", facts(fp8_weights=[]))
    require_fp8_weights("fp8", gpu())


def test_old_gpus() -> None:
    """A GPU that has no kernel is refused by its number."""
    with pytest.raises(LoadRefused, match=r"compute capability 7.5, this one has 7.0"):
        plan(PRESETS["int4"], gpu(capability=(7, 0)))


def _kv(key: AnyKv, value: AnyKv, **more: int) -> Recipe:
    cache = KvCache(key=key, value=value, **more)
    return Recipe(name="kv", weights=Int8(), kv_cache=cache)


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        (KvInt8(), "int8_per_token_head"),
        (KvInt4(), "int4_per_token_head"),
        (KvFp8(), "fp8_per_token_head"),
    ],
)
def test_cache_on_gpus(scheme: AnyKv, dtype: str) -> None:
    """Each scheme of the cache has its name there, if this vLLM has it."""
    assert plan(_kv(scheme, scheme), gpu()).options == {"--kv-cache-dtype": dtype}
    older = gpu(options={"--kv-cache-dtype": ("auto", "fp8")})
    with pytest.raises(LoadRefused, match=rf"vLLM 0.32.0 has no {dtype} cache"):
        plan(_kv(scheme, scheme), older)


def test_fp8_cache_on_old_gpus() -> None:
    """fp8 needs a GPU that has it."""
    with pytest.raises(LoadRefused, match="fp8 needs a GPU"):
        plan(_kv(KvFp8(), KvFp8()), gpu(capability=(8, 0)))


def test_cache_on_processors() -> None:
    """fp8 where the processor can, everything else is refused with the remedy."""
    assert plan(_kv(KvFp8(), KvFp8()), facts()).options == {"--kv-cache-dtype": "fp8"}
    with pytest.raises(LoadRefused, match="AVX-512 or AMX, and this one has neither"):
        plan(_kv(KvFp8(), KvFp8()), facts(**OLD_CPU))
    with pytest.raises(LoadRefused, match="not in int8 and int8: use kv_cache fp8 or none"):
        plan(PRESETS["w8-kv8"], facts())


def test_cache_that_differs_in_parts() -> None:
    """vLLM has one form of cache for keys and values; on GPUs the layers' was not tried."""
    with pytest.raises(LoadRefused, match="keeps keys and values alike"):
        plan(PRESETS["w4-k8v4"], gpu())
    with pytest.raises(LoadRefused, match=r"'keep_first' and 'keep_last' .* on a GPU"):
        plan(_kv(KvInt8(), KvInt8(), keep_first=1), gpu())


def test_layers_whose_cache_is_kept(tmp_path: Path) -> None:
    """On a processor vLLM is told their numbers, which the checkpoint's config must give."""
    kept = plan(_kv(KvFp8(), KvFp8(), keep_first=1, keep_last=2), facts())
    with pytest.raises(LoadRefused, match="has no 'num_hidden_layers': leave them out"):
        kept.options_for(_checkpoint(tmp_path, {}))
    checkpoint = _checkpoint(tmp_path, {"num_hidden_layers": 5})
    words = _words(_settings(), facts(), kept, checkpoint)
    assert words[words.index("--kv-cache-dtype-skip-layers") + 1 :] == ["0", "3", "4"]
    assert plan(_kv(KvFp8(), KvFp8()), facts()).kept is None
    without = {name: given for name, given in facts().options.items() if "skip" not in name}
    with pytest.raises(LoadRefused, match=r"lacks the option .* 0\.32 or newer, leave them out"):
        plan(_kv(KvFp8(), KvFp8(), keep_last=1), facts(options=without))


def _checkpoint(directory: Path, config: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_families_and_heads() -> None:
    """A family that vLLM does not know, and heads its attention does not take, are refused."""
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "head_dim": 64}
    require_servable_by(facts(), config, "m")
    with pytest.raises(LoadRefused, match="is a StrangeForCausalLM, which vLLM"):
        require_servable_by(facts(), config | {"architectures": ["StrangeForCausalLM"]}, "m")
    with pytest.raises(LoadRefused, match=r"heads of 16 values; .* takes 64, 128"):
        require_servable_by(facts(), config | {"head_dim": 16}, "m")
    by_width = {"architectures": ["LlamaForCausalLM"], "hidden_size": 576, "num_attention_heads": 9}
    require_servable_by(facts(), by_width, "m")
    require_servable_by(gpu(), config | {"head_dim": 16}, "m")


def _settings(**fields: Any) -> VariantSettings:
    return VariantSettings(model="m", engine="vllm", **fields)


def _words(
    settings: VariantSettings,
    found: VllmFacts,
    made: VllmPlan | None = None,
    directory: Path = Path("/store/a"),
) -> list[str]:
    start = VllmStart(Path("/env/bin/python"), found, made or VllmPlan())
    return command(
        start,
        directory,
        served_name="m@int8",
        port=1234,
        settings=settings,
        kv_cache_memory_bytes=2**30,
    )


def test_command_line() -> None:
    """Both forms of the command name the artifact, the port and what the recipe asks for."""
    settings = _settings(max_model_len=512, vllm_options={"enforce-eager": True})
    made = VllmPlan(options={"--kv-cache-dtype": "fp8"})
    words = _words(settings, facts(), made)
    assert words[:3] == ["/env/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    for word in (
        "--model=/store/a",
        "--served-model-name=m@int8",
        "--port=1234",
        "--max-model-len=512",
        "--kv-cache-memory-bytes=1073741824",
        "--kv-cache-dtype=fp8",
        "--enforce-eager",
    ):
        assert word in words
    newer = _words(settings, facts(has_command=True), made)
    assert newer[2:5] == ["vllm.entrypoints.cli.main", "serve", "/store/a"]


def test_options_that_this_vllm_lacks() -> None:
    """What the gateway would like but an older vLLM lacks is left out."""
    words = _words(_settings(), facts(options={"--model": None}))
    assert not any(word.startswith("--middleware") for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 1}, "'port', which the gateway sets itself"),
        ({"quick": True}, "'quick', an option that vLLM 0.32.0 does not have"),
        ({"dtype": "int3"}, "'dtype' as 'int3': use one of auto, float32"),
        ({"logprobs-mode": "raw_logits"}, "which the gateway sets itself"),
        ({"max-logprobs": 5}, "which the gateway sets itself: remove it"),
        ({"kv-cache-dtype": "fp8"}, "sets itself: say it in 'kv_cache' of a recipe"),
        ({"max-model-len": 5}, "which the gateway sets itself: set 'max_model_len' beside it"),
        ({"enforce-eager": 1}, "'enforce-eager' as 1: vLLM 0.32.0 takes true or false for it"),
        ({"seed": True}, "'seed' as True: vLLM 0.32.0 takes a value for it"),
        ({"seed": False}, "'seed' as False: vLLM 0.32.0 takes a value for it"),
    ],
)
def test_chosen_options_are_checked(options: dict[str, Any], words: str) -> None:
    """The operator's own options must exist in this vLLM and must not take the engine away."""
    with pytest.raises(LoadRefused, match=words):
        _words(_settings(vllm_options=options), facts())


def test_replicas_have_processors_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines of a variant are bound to one half of the processors each."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {2, 3, 4, 5})
    start = VllmStart(Path("python"), facts(), VllmPlan())
    bound = [
        environment(start, settings=_settings(replicas=2), replica=replica, kv_cache_memory_bytes=1)
        for replica in range(2)
    ]
    assert [each["VLLM_CPU_OMP_THREADS_BIND"] for each in bound] == ["2,3", "4,5"]
    alone = environment(start, settings=_settings(), replica=0, kv_cache_memory_bytes=1)
    assert (alone["VLLM_CPU_OMP_THREADS_BIND"], alone["OMP_NUM_THREADS"]) == ("nobind", "4")


def test_replicas_have_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each engine of a variant sees its part of the GPUs; too few are refused."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    start = VllmStart(Path("python"), gpu(num_devices=4), VllmPlan())
    settings = _settings(replicas=2, vllm_options={"tensor-parallel-size": 2})
    seen = [
        environment(start, settings=settings, replica=replica, kv_cache_memory_bytes=None)
        for replica in range(2)
    ]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in seen] == ["4,5", "6,7"]
    spread = _settings(replicas=2, vllm_options={"data-parallel-size": 2})
    second = environment(start, settings=spread, replica=1, kv_cache_memory_bytes=None)
    assert second["CUDA_VISIBLE_DEVICES"] == "6,7"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    few = VllmStart(Path("python"), gpu(num_devices=1), VllmPlan())
    with pytest.raises(LoadRefused, match="'replicas' is 2 at 1 GPUs each, and 1 are seen"):
        environment(few, settings=_settings(replicas=2), replica=1, kv_cache_memory_bytes=None)


def test_what_the_operator_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins, disabled kernels and paths of the operator stay beside ours."""
    monkeypatch.setenv("VLLM_PLUGINS", "theirs")
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "Slow")
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    start = VllmStart(Path("python"), facts(**OLD_CPU), plan(None, facts(**OLD_CPU)))
    found = environment(start, settings=_settings(), replica=0, kv_cache_memory_bytes=1)
    assert found["VLLM_PLUGINS"] == "theirs,narrowgate"
    assert found["VLLM_DISABLED_KERNELS"].startswith("Slow,CPU")
    assert found["PYTHONPATH"].endswith(":/theirs")
    monkeypatch.setenv("VLLM_PLUGINS", "")
    found = environment(start, settings=_settings(), replica=0, kv_cache_memory_bytes=1)
    assert found["VLLM_PLUGINS"] == "narrowgate"


def test_size_of_the_cache() -> None:
    """On a processor the cache has a size, so that vLLM does not take all memory."""
    assert kv_cache_bytes(facts(), None) == 4 * 2**30
    assert kv_cache_bytes(facts(), 7) == 7
    assert kv_cache_bytes(gpu(), None) is None


def test_the_middleware_reads_what_a_lone_engine_is_told() -> None:
    """The variable's name stands in both interpreters' code, which cannot import each other."""
    inside = Path(vllm_facts.__file__).parent / "inside_vllm/narrowgate_vllm/middleware.py"
    assert f'"{ARTIFACT_VARIABLE}"' in inside.read_text()


def test_a_lone_engine_is_told_what_it_serves(tmp_path: Path) -> None:
    """The full model is called so, which the gateway elsewhere could not know otherwise."""
    assert told_by_vllm(None, tmp_path) == {"recipe": "full"}


def test_an_artifact_is_not_told_as_the_full_model(tmp_path: Path) -> None:
    """Where its directory is named as the model, its own manifest says what it is."""
    (tmp_path / "compression_manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="build the artifact again"):
        told_by_vllm(None, tmp_path)


def test_a_lone_engine_listens_where_it_is_told() -> None:
    """In a container that is every address, otherwise loopback."""
    start = VllmStart(Path("/v"), facts(), VllmPlan({}, {}, ()))
    settings = VariantSettings(model="x", recipe="full", engine="vllm")
    for host in ("127.0.0.1", "0.0.0.0"):
        words = command(
            start,
            Path("/m"),
            served_name="x",
            port=1,
            settings=settings,
            kv_cache_memory_bytes=None,
            host=host,
        )
        assert f"--host={host}" in words
