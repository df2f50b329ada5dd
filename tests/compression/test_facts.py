"""Headers and configs: what is read, and what is refused before any weight is."""

import json
import reprlib
from pathlib import Path

import pytest

from compression.errors import CorruptCheckpoint, SourceError, UnsupportedArchitecture
from compression.facts import read_facts
from tests.checkpoints import make_tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a fresh tiny checkpoint that a test may damage."""
    return make_tiny_checkpoint(tmp_path / "model")


def edit_config(checkpoint: Path, **changes: object) -> None:
    """Overwrite keys of config.json."""
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_facts_of_a_whole_checkpoint(checkpoint: Path) -> None:
    """Every tensor is found with its size, without a weight being loaded."""
    facts = read_facts(checkpoint)
    assert facts.architecture.name == "LlamaForCausalLM"
    assert facts.tensors["model.layers.1.mlp.down_proj.weight"].shape == (64, 128)
    payload = (checkpoint / "model.safetensors").stat().st_size
    assert 0 < payload - facts.num_bytes < 4096


def test_shards_are_followed(tmp_path: Path) -> None:
    """An index with several files gives the same tensors as one file."""
    whole = read_facts(make_tiny_checkpoint(tmp_path / "whole"))
    sharded = read_facts(make_tiny_checkpoint(tmp_path / "sharded", max_shard_size="50KB"))
    assert len(sharded.files) > 2
    assert {n: t.shape for n, t in sharded.tensors.items()} == {
        n: t.shape for n, t in whole.tensors.items()
    }


def test_truncated_file_is_refused(checkpoint: Path) -> None:
    """A file shorter than its header promises is named, with both lengths."""
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptCheckpoint, match=r"model\.safetensors.*header promises"):
        read_facts(checkpoint)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0" + b"{not json!!!!!!}"])
def test_damaged_header_is_refused(checkpoint: Path, damage: bytes) -> None:
    """Empty, absurd or unparsable headers are refused by file name."""
    (checkpoint / "model.safetensors").write_bytes(damage)
    with pytest.raises(CorruptCheckpoint, match=r"model\.safetensors"):
        read_facts(checkpoint)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    """An index that names a file which is not there is refused."""
    checkpoint = make_tiny_checkpoint(tmp_path / "sharded", max_shard_size="50KB")
    victim = sorted(checkpoint.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CorruptCheckpoint, match=rf"{victim.name}.* is missing"):
        read_facts(checkpoint)


def test_config_and_weights_must_agree(checkpoint: Path) -> None:
    """A config of another model is noticed by shape, and by a missing tensor."""
    edit_config(checkpoint, intermediate_size=256)
    with pytest.raises(CorruptCheckpoint, match=r"has shape \[128, 64\].*asks for \[256, 64\]"):
        read_facts(checkpoint)
    edit_config(checkpoint, intermediate_size=128, num_hidden_layers=3)
    with pytest.raises(CorruptCheckpoint, match=r"lacks the tensor 'model\.layers\.2"):
        read_facts(checkpoint)


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, UnsupportedArchitecture, "'GPT2LMHeadModel'"),
        ({"hidden_act": "gelu"}, UnsupportedArchitecture, "hidden_act 'gelu'"),
        ({"sliding_window": 128}, UnsupportedArchitecture, "sliding_window 128"),
        (
            {"rope_parameters": {"rope_type": "axial", "rope_theta": 1e4}},
            UnsupportedArchitecture,
            "rope_type 'axial'",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            UnsupportedArchitecture,
            r"differ by layer \(full_attention\)",
        ),
        ({"partial_rotary_factor": 0.5}, UnsupportedArchitecture, "partial_rotary_factor 0.5"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4}},
            CorruptCheckpoint,
            "low_freq_factor = None",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": "4"}},
            CorruptCheckpoint,
            "factor = '4', not a number",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}},
            CorruptCheckpoint,
            r"short_factor = \[1.0\], not a list of 8 numbers",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, SourceError, "already quantized"),
        ({"hidden_size": "64"}, CorruptCheckpoint, "hidden_size = '64'"),
        ({"num_key_value_heads": 3}, CorruptCheckpoint, "no multiple of num_key_value_heads 3"),
    ],
)
def test_what_the_config_rules_out(
    checkpoint: Path, changes: dict[str, object], kind: type[Exception], expected: str
) -> None:
    """Each unsupported or senseless entry is refused by name."""
    edit_config(checkpoint, **changes)
    with pytest.raises(kind, match=expected):
        read_facts(checkpoint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", None),
        ("architectures", []),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [3]),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1e9),
        ("num_hidden_layers", True),
        ("hidden_size", 2**31 + 1),
        ("hidden_size", None),
        ("vocab_size", -1),
        ("num_key_value_heads", "2"),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", -1),
        ("num_key_value_heads", [2]),
        ("head_dim", "16"),
        ("head_dim", 0),
        ("head_dim", 16.0),
        ("rms_norm_eps", "abc"),
        ("rms_norm_eps", None),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", 10**400),
        ("rope_parameters", "x"),
        ("rope_parameters", ["default"]),
        ("rope_parameters", {"rope_type": ["default"]}),
        ("rope_parameters", {"rope_theta": "1e4"}),
        ("rope_scaling", "linear"),
        ("sliding_window", "x"),
        ("sliding_window", -1),
        ("sliding_window", 1.5),
        ("use_sliding_window", "false"),
        ("max_position_embeddings", "512"),
        ("hidden_act", ["silu"]),
        ("tie_word_embeddings", "false"),
        ("attention_bias", 1),
        ("mlp_bias", {}),
    ],
)
def test_malformed_value_is_named(checkpoint: Path, key: str, value: object) -> None:
    """A value of the wrong type or size is refused in one line with its key and the value."""
    edit_config(checkpoint, rope_parameters=None)
    edit_config(checkpoint, **{key: value})
    if isinstance(value, dict) and value:
        [(key, value)] = value.items()
    with pytest.raises(CorruptCheckpoint) as caught:
        read_facts(checkpoint)
    message = str(caught.value)
    assert f"{key} = {reprlib.repr(value)}, not " in message
    assert "\n" not in message


def test_more_heads_than_columns(checkpoint: Path) -> None:
    """Heads that would have no column each are refused by both numbers."""
    edit_config(checkpoint, num_attention_heads=128, num_key_value_heads=None, head_dim=None)
    with pytest.raises(CorruptCheckpoint, match="num_attention_heads 128 is more than hidden_size"):
        read_facts(checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": None, "sliding_window": None, "attention_bias": None, "rope_scaling": {}},
        {"sliding_window": 16, "use_sliding_window": False},
        {"sliding_window": 16, "use_sliding_window": None},
        {"sliding_window": 10**6},
    ],
)
def test_harmless_values_are_taken(checkpoint: Path, changes: dict[str, object]) -> None:
    """Null means the default, and a window that is off or wider than the context is none."""
    whole = read_facts(checkpoint).architecture
    edit_config(checkpoint, **changes)
    assert read_facts(checkpoint).architecture == whole


def test_endless_nesting_is_no_json(checkpoint: Path) -> None:
    """A config nested beyond reason is refused like any other that cannot be parsed."""
    (checkpoint / "config.json").write_text("[" * 100_000)
    with pytest.raises(CorruptCheckpoint, match=r"config\.json' is not JSON"):
        read_facts(checkpoint)


def test_directory_without_config(tmp_path: Path) -> None:
    """A directory that is no checkpoint says what is missing."""
    with pytest.raises(SourceError, match=r"no config\.json"):
        read_facts(tmp_path)
