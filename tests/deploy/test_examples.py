"""The settings files for common cases: complete, loaded by the gateway's own code, listed."""

from pathlib import Path

import pytest
import yaml

from gateway.api_key import KeyList, check_models
from gateway.settings import Settings, load_settings
from gateway.specs import make_specs
from tests.deploy.image import ROOT

DIRECTORY = ROOT / "deploy/examples"
EXAMPLES = sorted(set(DIRECTORY.glob("*.yaml")) - {DIRECTORY / "keys.yaml"})


def load(name: str) -> Settings:
    """Return the settings of one example."""
    return load_settings(DIRECTORY / f"{name}.yaml", {}, {})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_loads_as_it_is(path: Path) -> None:
    """Each file is a whole service: its settings are valid, its variants have specifications."""
    settings = load(path.stem)
    assert {spec.alias for spec in make_specs(settings)} == set(settings.models)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_readme_lists_it(path: Path) -> None:
    """Who looks for a case finds it in the README's table."""
    assert f"`{path.name}`" in (ROOT / "README.md").read_text()


def test_ladder_is_watched_and_kept() -> None:
    """Three rungs, scored, and a keeper that steps by itself."""
    settings = load("ladder")
    (spec,) = make_specs(settings)
    assert [variant.variant for variant in spec.variants] == ["int4", "int8", "full"]
    assert settings.shadow_rate("assistant") > 0
    assert settings.shadow.ladder.mode == "on"


def test_two_models_share_a_budget() -> None:
    """There is a budget, one model that stays and one that gives way."""
    settings = load("two-models")
    assert settings.memory_budget
    assert {model.pin for model in settings.models.values()} == {True, False}


def test_engines_elsewhere_need_no_torch() -> None:
    """Every variant has URLs, so nothing is compressed or started here."""
    specs = make_specs(load("engines-elsewhere"))
    assert all(variant.settings.urls for spec in specs for variant in spec.variants)


def test_keys_fit_the_proxy_example() -> None:
    """The example of keys is valid, its models are served, one is an administrator's."""
    settings = load("behind-a-proxy")
    keys = KeyList.model_validate(yaml.safe_load((DIRECTORY / "keys.yaml").read_text())).keys
    check_models(keys, list(settings.models))
    assert settings.api_keys_file is not None
    assert settings.api_keys_file.name == "keys.yaml"
    assert [key.name for key in keys if key.admin] == ["operator"]
