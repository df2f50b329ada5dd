"""Settings: file, environment and flags merge; what is wrong is named in one line."""

from pathlib import Path
from typing import Any

import pytest

from gateway.errors import SettingsError
from gateway.settings import load_settings
from gateway.specs import default_alias, make_specs

MODELS = {"a": {"model": "x"}}


def test_later_sources_win(tmp_path: Path) -> None:
    """Flags beat the environment, which beats the file, which beats defaults."""
    file = tmp_path / "s.yaml"
    file.write_text("host: h1\nport: 1\ndrain_s: 1\nmodels:\n  a: {model: x, recipe: full}\n")
    environment = {"NARROWGATE_PORT": "2", "NARROWGATE_DRAIN_S": "2", "HOME": "/"}
    settings = load_settings(file, {"drain_s": 3, "host": None}, environment)
    assert (settings.host, settings.port, settings.drain_s) == ("h1", 2, 3)
    assert settings.models["a"].recipe == "full"
    assert settings.max_body_bytes == 8 * 1024 * 1024


def test_models_from_the_environment() -> None:
    """A whole mapping fits into one variable."""
    settings = load_settings(None, {}, {"NARROWGATE_MODELS": "{a: {model: x}}"})
    assert settings.models["a"].model == "x"


def test_what_kubernetes_injects_is_no_setting() -> None:
    """A Service called narrowgate does not break the process that it points to."""
    environment = {
        "NARROWGATE_PORT": "tcp://10.0.0.1:8000",
        "NARROWGATE_SERVICE_HOST": "10.0.0.1",
        "NARROWGATE_SERVICE_PORT_HTTP": "8000",
        "NARROWGATE_PORT_8000_TCP_ADDR": "10.0.0.1",
        "NARROWGATE_HOME": "/cache",
        "NARROWGATE_API_KEY": "of the chat",
    }
    assert load_settings(None, {"models": MODELS}, environment).port == 8000


WRONG: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({}, {}, "no model: pass --model NAME"),
    ({"models": MODELS, "prot": 1}, {}, "unknown setting 'prot' (command line)"),
    ({"models": MODELS}, {"NARROWGATE_PROT": "1"}, "unknown setting 'prot' (environment)"),
    ({"models": MODELS}, {"NARROWGATE_PORT": "x"}, "setting 'port' is 'x' (environment)"),
    ({"models": MODELS, "port": 70000}, {}, "setting 'port' is 70000 (command line)"),
    ({"models": MODELS, "unknown_parameters": "drop"}, {}, "'unknown_parameters' is 'drop'"),
    ({"models": {"a": {"model": "x", "extra_parameters": "top_a"}}}, {}, "is 'top_a'"),
    ({"models": {"a": {"mdel": "x"}}}, {}, "missing setting 'models.a.model'"),
    ({"models": {"a": {"model": "x", "y": 1}}}, {}, "unknown setting 'models.a.y'"),
    ({"models": {"a@b": {"model": "x"}}}, {}, "the alias 'a@b' must be"),
    ({"models": {"a": {"model": "x", "threads": 0}}}, {}, "setting 'models.a.threads' is 0"),
    (
        {"models": {"a": {"model": "a\0b"}}},
        {},
        "setting 'models.a.model' (command line): 'a\\x00b' has a NUL character",
    ),
    ({"models": MODELS, "host": "h\0"}, {}, "setting 'host' (command line): 'h\\x00' has a NUL"),
    (
        {"models": MODELS, "redis_url": "redis:x"},
        {},
        "setting 'redis_url' (command line): must begin",
    ),
    ({"models": MODELS, "protect_metrics": True}, {}, "'protect_metrics' needs 'api_keys'"),
    ({"models": MODELS, "allowed_hosts": ["a:1"]}, {}, "'a:1' must be a host's name or address"),
    ({"models": MODELS}, {"NARROWGATE_CORS_ORIGINS": "[a.b]"}, "'a.b' must be as https://host"),
    ({"models": MODELS, "request_timeout_s": 0}, {}, "setting 'request_timeout_s' is 0"),
    ({"models": {"a": {"model": "x", "max_queued": 3}}}, {}, "'max_queued' needs 'max_running'"),
    ({"models": MODELS, "log_level": "loud"}, {}, "setting 'log_level' is 'loud' (command line)"),
    ({"models": MODELS, "otlp_endpoint": "x:1"}, {}, "'x:1' is no address of a collector"),
    ({"models": MODELS, "shadow": {"rate": 2}}, {}, "setting 'shadow.rate' is 2 (command line)"),
    ({"models": MODELS, "shadow": {"rat": 1}}, {}, "did you mean 'rate'?"),
    ({"models": MODELS, "shadow": {"reference": {"mod": 1}}}, {}, "did you mean 'mode'?"),
    ({"models": MODELS, "shadow": {"ladder": {"cool_down": 1}}}, {}, "did you mean 'cool_down_s'?"),
    ({"models": MODELS, "shadow": {"verdict": {"floor": 1}}}, {}, "use floor <= ceiling"),
    ({"models": MODELS, "shadow": {"ladder": {"mode": "may"}}}, {}, "'shadow.ladder.mode' is"),
    (
        {"models": MODELS, "shadow": {"verdict": {"tolerance": {"all": 0}}}},
        {},
        "setting 'shadow.verdict.tolerance.all' is 0",
    ),
    ({"models": MODELS}, {"NARROWGATE_SHADOW": "{top_k: 65}"}, "setting 'shadow.top_k' is 65"),
    ({"models": MODELS, "shadow": {"max_tokens": 20000}}, {}, "'tokens_per_second' makes only"),
    ({"models": {"a": {"model": "x", "shadow": 1.5}}}, {}, "setting 'models.a.shadow' is 1.5"),
    (
        {"models": MODELS, "shadow": {"reference": {"urls": {"b": "http://x"}}}},
        {},
        "'shadow.reference.urls' names the model 'b': use one of a",
    ),
    (
        {"models": MODELS, "shadow": {"reference": {"urls": {"a": "x"}}}},
        {},
        "'x' is no address such as",
    ),
    (
        {"models": {"a": {"model": "x", "urls": ["http://x"]}}, "shadow": {"rate": 1}},
        {},
        "has engines elsewhere and no reference here",
    ),
    (
        {"models": MODELS, "shadow": {"rate": 1}, "memory_budget": "4GiB"},
        {},
        "in 'shadow.reference.memory'",
    ),
    (
        {
            "models": MODELS,
            "shadow": {"reference": {"memory": "4GiB"}},
            "memory_budget": "4GiB",
        },
        {},
        "leaves nothing of 'memory_budget'",
    ),
    ({}, {"NARROWGATE_MODELS": "{a"}, "NARROWGATE_MODELS is not YAML"),
    ({}, {"NARROWGATE_MODELS": "[" * 9000}, "NARROWGATE_MODELS is not YAML"),
    ({}, {"NARROWGATE_MODELS": "2026-99-99"}, "NARROWGATE_MODELS is not YAML"),
]


@pytest.mark.parametrize(("flags", "environment", "message"), WRONG)
def test_wrong_settings(flags: dict[str, Any], environment: dict[str, str], message: str) -> None:
    """Each mistake is one line that names key, value and origin."""
    with pytest.raises(SettingsError) as caught:
        load_settings(None, flags, environment)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_have_shadows_of_their_own(tmp_path: Path) -> None:
    """A model's rate wins over that of all; YAML's bare `off` is none of its requests."""
    file = tmp_path / "s.yaml"
    file.write_text(
        "shadow: {rate: 0.5}\n"
        "models:\n  a: {model: x}\n  b: {model: x, shadow: off}\n  c: {model: x, shadow: 0.1}\n"
        "  d: {model: x, shadow: 'off'}\n"
    )
    settings = load_settings(file, {}, {})
    assert [settings.shadow_rate(alias) for alias in "abcd"] == [0.5, 0, 0.1, 0]
    assert load_settings(None, {"models": MODELS}, {}).shadow_rate("a") == 0


@pytest.mark.parametrize("content", ["[1]", "{", "\xff"])
def test_wrong_file(tmp_path: Path, content: str) -> None:
    """A file that is no mapping is refused by its name."""
    file = tmp_path / "s.yaml"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"s\.yaml"):
        load_settings(file, {}, {})
    with pytest.raises(SettingsError, match="cannot read"):
        load_settings(tmp_path / "none.yaml", {}, {})


@pytest.mark.parametrize(
    ("model", "alias"),
    [
        ("smollm2", "smollm2"),
        ("Org/Some-Model_1.5B", "some-model_1.5b"),
        ("/models/Llama/", "llama"),
    ],
)
def test_default_alias(model: str, alias: str) -> None:
    """The last part of the model's name, in lower case, is what clients send."""
    assert default_alias(model) == alias


def test_no_default_alias() -> None:
    """A name that cannot be an alias asks for --name."""
    with pytest.raises(SettingsError, match="--name"):
        default_alias("/models/ä b")


def test_alias_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.` is called after the directory it is."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert default_alias(".") == "mine"


def test_variants_are_named_by_recipes(tmp_path: Path) -> None:
    """A preset, `full` and a file each give the variant its name; unknown ones are refused."""
    (tmp_path / "mine.yaml").write_text("name: w8\nweights: {scheme: int8}\n")
    recipes = {"a": "int8", "b": "full", "c": str(tmp_path / "mine.yaml")}
    models = {alias: {"model": "x", "recipe": recipe} for alias, recipe in recipes.items()}
    specs = make_specs(load_settings(None, {"models": models}, {}))
    assert [spec.variants[0].served_name for spec in specs] == ["a@int8", "b@full", "c@w8"]
    wrong = load_settings(None, {"models": {"a": {"model": "x", "recipe": "int6"}}}, {})
    with pytest.raises(SettingsError, match="unknown recipe 'int6'"):
        make_specs(wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"drian_s": 3}, "unknown setting 'drian_s' (command line): did you mean 'drain_s'?"),
        ({"models": {"a": {"model": "x", "recipes": "int4"}}}, "did you mean 'recipe'?"),
        (
            {"models": {"a": {"model": "x", "ladder": [{"recipy": "int4"}]}}},
            "unknown setting 'models.a.ladder.0.recipy' (command line): did you mean 'recipe'?",
        ),
        ({"qqq": 3}, "unknown setting 'qqq' (command line): remove it"),
    ],
)
def test_unknown_keys_get_a_suggestion(fields: dict[str, Any], message: str) -> None:
    """A key that is not known is named with its place and what it was probably meant to be."""
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {"models": {"a": {"model": "x"}}} | fields, {})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"ladder": ["int4", "int4"]}, "two rungs of 'ladder' are called 'int4'"),
        ({"ladder": ["int4"], "active": "int8"}, "'active' is 'int8': use one of int4"),
        ({"ladder": ["int4"], "recipe": "int8"}, "'recipe' and 'ladder' exclude each other"),
        ({"fallback": ["b"]}, "'fallback' names 'b': use "),
        ({"urls": ["ftp://x"]}, "is no address such as http://10.0.0.5:8000"),
        ({"urls": ["http://x:abc"]}, "is no address such as"),
        ({"urls": ["http://x:99999"]}, "is no address such as"),
        ({"urls": ["http://a..b"]}, "is no address such as"),
        ({"urls": ["http://x/y?z=1"]}, "is no address such as"),
        ({"urls": "http://x"}, "must be a list: write [http://x]"),
        ({"urls": ["http://u:hunter2@x"]}, "'http://...@x' must not hold a password"),
        ({"urls": ["http://x"], "replicas": 2}, "'replicas' and 'urls' exclude each other"),
        ({"url_api_key_env": "KEY"}, "'url_api_key_env' needs 'urls'"),
        ({"ladder": [{"recipe": "int9"}]}, "unknown recipe 'int9'"),
        ({"replicas": 0}, "greater than or equal to 1"),
        ({"keep_alive_s": 0}, "greater than 0"),
        ({"memory": "-1"}, "models.a.memory"),
    ],
)
def test_models_that_contradict_themselves(model: dict[str, Any], message: str) -> None:
    """Each is refused in one line that names the key and the value."""
    with pytest.raises(SettingsError) as caught:
        make_specs(load_settings(None, {"models": {"a": {"model": "x"} | model}}, {}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rungs_inherit_from_their_model() -> None:
    """A rung has what the model says, except for what it says itself."""
    model = {
        "model": "x",
        "threads": 3,
        "max_num_seqs": 4,
        "replicas": 2,
        "ladder": [
            "int4",
            {"recipe": "int8", "threads": 1, "name": "safer"},
            {"urls": ["http://10.0.0.5:8000/v1/"], "model": "big"},
        ],
        "active": "safer",
    }
    (spec,) = make_specs(load_settings(None, {"models": {"a": model}}, {}))
    assert [each.served_name for each in spec.variants] == ["a@int4", "a@safer", "a@full"]
    assert spec.active == "safer"
    small, safer, remote = (each.settings for each in spec.variants)
    assert (small.recipe, small.threads, small.max_num_seqs, small.replicas) == ("int4", 3, 4, 2)
    assert (safer.recipe, safer.threads, safer.max_num_seqs) == ("int8", 1, 4)
    assert (remote.model, remote.urls) == ("big", ("http://10.0.0.5:8000",))
    assert [each.num_replicas for each in spec.variants] == [2, 2, 1]
