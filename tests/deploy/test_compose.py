"""The compose files: valid by the specification, in step with images, settings and metrics."""

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.admission.door import Door
from gateway.admission.keys import KeyRing
from gateway.cli.parser import make_parser
from gateway.errors import InvalidApiKey
from gateway.registry import Metrics
from gateway.settings import Settings, load_settings
from tests.deploy.image import ROOT, read_image

DEPLOY = ROOT / "deploy"
FILES = [DEPLOY / f"compose{name}.yaml" for name in ("", ".front", ".vllm")]
CHECK = Path(sys.executable).with_name("check-jsonschema")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILES[0].read_text())["services"]
PROVISIONED = sorted((ROOT / "grafana/provisioning").glob("*/*.yaml"))
DASHBOARDS = sorted((ROOT / "grafana/dashboards").glob("*.json"))
GRAFANA_HOME = "/etc/narrowgate/grafana"

each_service = pytest.mark.parametrize("name", SERVICES)


def seconds(duration: str) -> float:
    """Return what compose means by a duration such as ``45s``."""
    return float(duration.removesuffix("s"))


def check_schema(*files: Path) -> subprocess.CompletedProcess[str]:
    """Hold files against the schema of the compose specification."""
    command: list[str | Path] = [CHECK, "--builtin-schema", "vendor.compose-spec", *files]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_schema_accepts_them() -> None:
    """All files are valid by the compose specification's own schema."""
    found = check_schema(*FILES)
    assert found.returncode == 0, found.stdout


def test_schema_can_refuse(tmp_path: Path) -> None:
    """A misspelt key is found."""
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILES[0].read_text().replace("read_only:", "readonly:"))
    found = check_schema(wrong)
    assert found.returncode == 1
    assert "readonly" in found.stdout


@each_service
def test_mounts_exist(name: str) -> None:
    """What a service mounts is in the repository, read-only, or a named volume."""
    volumes = yaml.safe_load(FILES[0].read_text())["volumes"]
    for mount in SERVICES[name]["volumes"]:
        source, _, rest = mount.partition(":")
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
            assert rest.endswith(":ro")
        else:
            assert source in volumes


@each_service
def test_it_is_confined(name: str) -> None:
    """No service has capabilities, a writable root, unbounded memory, or a port for others."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    health = service["healthcheck"]
    assert health.get("disable") or health["test"][0] == "CMD"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    image, _, tag = service["image"].partition(":")
    assert tag not in {"", "latest"}, image


def test_images_are_ours_and_built() -> None:
    """The services that are built name Dockerfiles of the repository."""
    built: dict[str, str] = {}
    for file in FILES:
        for service in yaml.safe_load(file.read_text())["services"].values():
            if build := service.get("build"):
                assert (ROOT / build["dockerfile"]).is_file()
                built[service["image"]] = build["dockerfile"]
    assert {Path(each).name.partition(".")[0] for each in built.values()} == {
        "gateway",
        "embedded",
        "vllm",
    }
    ours = {each["image"] for each in SERVICES.values() if each["image"].startswith("narrowgate:")}
    assert ours <= set(built)


def test_gateway_may_drain() -> None:
    """The containers' end waits for longer than running requests may take."""
    drain_s = Settings.model_fields["drain_s"].default
    assert seconds(SERVICES["gateway"]["stop_grace_period"]) >= drain_s + 10


def filled(text: str, given: Mapping[str, str]) -> str:
    """Return a text of a compose file with its variables replaced."""

    def fill(found: re.Match[str]) -> str:
        name, _, default = found[1].partition(":")
        return given.get(name) or default.removeprefix("-")

    return re.sub(r"\$\{([^}]*)\}", fill, text)


def settings_of_gateway() -> Settings:
    """Return what the service makes of the mounted file and of its environment."""
    source = SERVICES["gateway"]["volumes"][0].split(":")[0]
    environment = {
        key: filled(value, {"ADMIN_KEY": "sk-chosen"})
        for key, value in SERVICES["gateway"]["environment"].items()
        if key.startswith("NARROWGATE_")
    }
    return load_settings(DEPLOY / source, {}, environment)


def test_gateway_has_settings() -> None:
    """The mounted file stands where the image looks, and loads with the service's environment."""
    settings = settings_of_gateway()
    assert SERVICES["gateway"]["volumes"][0].split(":")[1] == "/etc/narrowgate/settings.yaml"
    assert settings.shadow.rate > 0
    assert "gateway" in settings.allowed_hosts


def test_page_opens_to_the_chosen_key() -> None:
    """Whoever comes through the bridge is not on loopback: the key opens the page's figures."""
    settings = settings_of_gateway()
    ring = KeyRing(settings.api_keys, None, aliases=list(settings.models))
    door = Door(settings, ring, Metrics())
    host = {"host": "127.0.0.1:8000"}
    assert door.check("/dashboard", host, "172.18.0.1") is None
    assert door.check("/metrics", {"host": "gateway:8000"}, "172.18.0.3") is None
    key = door.check("/admin/live", host | {"authorization": "Bearer sk-chosen"}, "172.18.0.1")
    assert key is not None
    assert key.admin
    with pytest.raises(InvalidApiKey):
        door.check("/admin/live", host, "172.18.0.1")


def test_engines_are_reached_from_inside_only() -> None:
    """They have no port and no way out; the gateway alone stands in both networks."""
    found = yaml.safe_load(FILES[0].read_text())
    assert found["networks"]["engines"] == {"internal": True}
    assert SERVICES["gateway"]["networks"] == ["default", "engines"]
    for name, service in SERVICES.items():
        is_engine = name in {"engine", "reference"}
        assert (service.get("networks") == ["engines"]) is is_engine
        assert not (is_engine and service.get("ports"))


def engine_flags(file: Path, name: str) -> argparse.Namespace:
    """Return what the command of an engine's service asks for, parsed as the image does."""
    command = yaml.safe_load(file.read_text())["services"][name]["command"]
    return make_parser().parse_args(command)


@pytest.mark.parametrize(
    ("file", "settings"), [(FILES[0], "engine-beside"), (FILES[2], "vllm-beside")]
)
def test_engine_is_what_the_settings_say(file: Path, settings: str) -> None:
    """Name, kind and recipe of the service are those of the gateway's file, at its port."""
    (model,) = load_settings(DEPLOY / f"examples/{settings}.yaml", {}, {}).models.values()
    asked = engine_flags(file, "engine")
    assert (asked.name or asked.model, asked.recipe) == (model.model, model.recipe)
    assert (asked.engine or "embedded") == model.engine
    assert model.urls == (f"http://engine:{asked.port}",)
    prepared = yaml.safe_load(file.read_text())["services"]["prepare"]["command"]
    assert {f"--model={asked.model}", f"--recipe={asked.recipe}"} <= set(prepared)
    assert asked.fidelity is ("--fidelity" in prepared)
    # The gateway would wait for a year for an image that listens on its own loopback alone.
    image = file.read_text().partition("  engine:")[2]
    dockerfile = "vllm" if "narrowgate:vllm" in image else "embedded"
    environment = read_image(ROOT / f"deploy/docker/{dockerfile}.Dockerfile").environment
    assert environment["NARROWGATE_HOST"] == "0.0.0.0"


def test_reference_is_the_full_model() -> None:
    """What scores is the same model, whole, where the settings look for it."""
    shadow = settings_of_gateway().shadow
    asked, served = engine_flags(FILES[0], "reference"), engine_flags(FILES[0], "engine")
    assert (asked.model, asked.recipe) == (served.model, "full")
    assert shadow.reference.urls == {"smollm2": f"http://reference:{asked.port}"}


def test_front_starts_no_engine() -> None:
    """In front of engines elsewhere the services of this machine's own are left out."""
    overlay = yaml.safe_load(FILES[1].read_text())["services"]
    assert all(overlay[name]["profiles"] for name in ("prepare", "engine", "reference"))


def test_front_takes_its_engine_from_the_environment() -> None:
    """With a URL and a name the second file makes settings for an engine elsewhere."""
    service = yaml.safe_load(FILES[1].read_text())["services"]["gateway"]
    given = {"ENGINE_URL": "http://10.0.0.5:8000", "ENGINE_MODEL": "far"}
    models = filled(service["environment"]["NARROWGATE_MODELS"], given)
    settings = load_settings(None, {}, {"NARROWGATE_MODELS": models})
    assert settings.models["assistant"].urls == ("http://10.0.0.5:8000",)
    assert settings.models["assistant"].model == "far"
    assert service["command"] == ["serve"]


@pytest.mark.parametrize(
    ("job", "target"),
    [("narrowgate", "gateway"), ("prometheus", "prometheus"), ("alertmanager", "alertmanager")],
)
def test_targets_are_services(job: str, target: str) -> None:
    """Prometheus finds each server under its service's name and port."""
    (group,) = yaml.safe_load((DEPLOY / f"prometheus/targets/{job}.yaml").read_text())
    (published,) = SERVICES[target]["ports"]
    assert group["targets"] == [f"{target}:{published.rpartition(':')[2]}"]


def test_prometheus_finds_its_rules() -> None:
    """Relative paths of the configuration hold inside the container."""
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["prometheus"]["volumes"][:2])
    (pattern,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["rule_files"]
    inside = Path(mounts["./prometheus"], pattern).parent
    assert Path(*Path("/").joinpath(inside).parts).resolve() == Path(mounts["../grafana/rules"])
    flags = SERVICES["prometheus"]["command"]
    assert f"--config.file={mounts['./prometheus']}/prometheus.yml" in flags


@pytest.mark.parametrize("file", PROVISIONED, ids=lambda file: file.name)
def test_grafana_finds_what_it_is_given(file: Path) -> None:
    """Provisioned data sources and directories of dashboards exist in Grafana's container."""
    found = yaml.safe_load(file.read_text())
    for source in found.get("datasources", ()):
        assert source["url"] in {"http://prometheus:9090", "$PROMETHEUS_URL", "${PROMETHEUS_URL}"}
    for provider in found.get("providers", ()):
        path = provider["options"]["path"]
        assert path.startswith(f"{GRAFANA_HOME}/")
        assert (ROOT / "grafana" / path.removeprefix(f"{GRAFANA_HOME}/")).is_dir()


def test_grafana_opens_with_a_dashboard() -> None:
    """The first page is one of the dashboards."""
    first = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert ROOT / "grafana" / first.removeprefix(f"{GRAFANA_HOME}/") in DASHBOARDS
