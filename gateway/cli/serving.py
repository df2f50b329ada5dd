"""``narrowgate serve``."""

import argparse
import gc
from typing import Any

import uvloop

from gateway.collector import collector_paused
from gateway.errors import SettingsError
from gateway.launch import Launcher
from gateway.model_settings import ModelSettings
from gateway.settings import Settings, load_settings
from gateway.specs import default_alias
from gateway.terminal import Terminal


def run_serve(options: argparse.Namespace, terminal: Terminal) -> int:
    """Serve until a signal comes."""
    flags: dict[str, Any] = {"host": options.host, "port": options.port}
    if options.model is not None:
        alias = options.name or default_alias(options.model)
        flags["models"] = {alias: model_fields(options)}
    elif alone := [
        field for field in ("name", *model_fields(options)) if getattr(options, field) is not None
    ]:
        raise SettingsError(
            f"--{alone[0].replace('_', '-')} needs --model: it describes that model"
        )
    settings = load_settings(options.config, flags)
    terminal.log_as(settings.log_format, settings.log_level, shows_prompts=settings.log_prompts)
    return uvloop.run(_serve(settings, terminal))


async def _serve(settings: Settings, terminal: Terminal) -> int:
    launcher = Launcher(settings, terminal.on_progress)
    try:
        await launcher.begin()
        # The larger part of the gateway is imported while that engine imports what it needs.
        with collector_paused():
            from gateway.serve import serve

            gc.freeze()  # modules stay; the walk through the heap at readiness need not see them
        return await serve(settings, terminal, launch=launcher)
    finally:
        await launcher.close()


def model_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags say of a model, by the names of its settings."""
    found = {field: getattr(options, field, None) for field in ModelSettings.model_fields}
    if found["vllm_options"] is not None:
        found["vllm_options"] = dict(found["vllm_options"])
    return {field: value for field, value in found.items() if value is not None}
