"""Checks of what is to be served: settings, models, port, traces."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from gateway.doctor.finding import Finding
from gateway.errors import PortInUse, SettingsError
from gateway.listening import listen
from gateway.settings import Settings, load_settings
from gateway.specs import make_specs
from gateway.telemetry import is_wanted

DEMO_MODEL = "smollm2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_YES = frozenset({"1", "on", "yes", "true"})
_PROBE_S = 1.0


def check_service(file: Path | None, port: int | None) -> list[Finding]:
    """Return what was found of the settings, and of the port that they or ``port`` name."""
    found: list[Finding] = []
    host, wanted = "127.0.0.1", port
    if file is None and not os.environ.get("NARROWGATE_MODELS"):
        found.append(Finding("settings", "ok", "no file given, none checked"))
    else:
        try:
            settings = load_settings(file, {"port": port})
            specs = make_specs(settings)
            is_wanted(settings.otlp_endpoint)
        except SettingsError as error:
            found.append(Finding("settings", "fail", str(error), "correct it"))
        else:
            variants = [variant for spec in specs for variant in spec.variants]
            names = ", ".join(variant.served_name for variant in variants)
            found.append(Finding("settings", "ok", f"models: {names}"))
            asked = {
                (each.alias, each.settings.model) for each in variants if not each.settings.urls
            }
            found += [_model(alias, model) for alias, model in sorted(asked)]
            found += [_engine(each.alias, url) for each in variants for url in each.settings.urls]
            host, wanted = settings.host, settings.port
    default: int = Settings.model_fields["port"].default
    return [*found, check_port(host, default if wanted is None else wanted)]


def check_port(host: str, port: int) -> Finding:
    """Return whether the port can be listened on; a gateway that runs there already is told."""
    try:
        with listen(host, port):
            return Finding("port", "ok", f"{port} on {host} is free")
    except PortInUse as error:
        version = _gateway_version(host, port)
        if version is None:
            return Finding("port", "fail", str(error).partition(":")[0], "pass another --port")
        message = f"narrowgate {version} runs on {host} port {port} already"
        return Finding("port", "warn", message, "stop it, or pass another --port")
    except SettingsError as error:
        return Finding("port", "fail", str(error), "change 'host' or pass another --port")


def _gateway_version(host: str, port: int) -> str | None:
    try:
        reply = httpx.get(f"http://{host}:{port}/version", timeout=_PROBE_S, trust_env=False)
        found: Any = reply.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
    version = found.get("version") if isinstance(found, dict) else None
    return version if isinstance(version, str) else None


def _engine(alias: str, url: str) -> Finding:
    """Return whether an engine elsewhere answers."""
    check = f"engine:{alias}"
    try:
        status = httpx.get(f"{url}/health", timeout=_PROBE_S, trust_env=False).status_code
    except httpx.HTTPError as error:
        message = f"{url} does not answer ({type(error).__name__})"
        return Finding(check, "fail", message, "start it, or correct 'urls'")
    if status == 200:
        return Finding(check, "ok", f"{url} is well")
    return Finding(check, "warn", f"{url} answers {status} to /health", "look at its log")


def _model(alias: str, name: str) -> Finding:
    """Return whether a model can be found; nothing is fetched, no hub is asked."""
    check = f"model:{alias}"
    if name == DEMO_MODEL:
        return Finding(check, "ok", "the demo model, fetched at the first start")
    path = Path(name).expanduser() if name.startswith("~/") else Path(name)
    if path.is_dir():
        if any(path.glob("*.safetensors")):
            return Finding(check, "ok", f"{name} is here")
        message = f"{name} has no *.safetensors file"
        return Finding(check, "fail", message, "give the directory of a Hugging Face checkpoint")
    if _HUB_ID.fullmatch(name) is None:
        remedy = "correct the path, or give a hub id org/name"
        return Finding(check, "fail", f"{name}: there is no such directory", remedy)
    if (_hub_cache(os.environ) / f"models--{name.replace('/', '--')}" / "snapshots").is_dir():
        return Finding(check, "ok", f"{name} is in the hub's cache")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _YES:
        message = f"{name} is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it"
        return Finding(check, "fail", message, "fetch it once without, or unset HF_HUB_OFFLINE")
    message = f"{name} is fetched from the hub at the first start"
    return Finding(check, "ok", message)


def _hub_cache(environment: Mapping[str, str]) -> Path:
    if found := environment.get("HF_HUB_CACHE"):
        return Path(found).expanduser()
    home = environment.get("HF_HOME", "~/.cache/huggingface")
    return Path(home).expanduser() / "hub"
