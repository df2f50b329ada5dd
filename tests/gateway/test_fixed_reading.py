"""The engine's reading of fixed texts behind a build: made once, and never in the way."""

import asyncio
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from compression.events import ignore
from compression.manifest import read_manifest
from compression.prepare import build_to
from compression.processor import instruction_sets
from gateway.errors import ChildFailed
from gateway.fixed_reading import with_reading
from gateway.launch import Launcher
from gateway.prepared import Prepared
from gateway.program import program
from gateway.settings import load_settings
from gateway.specs import make_specs


def told(nats: float, **fields: Any) -> dict[str, Any]:
    """Return a reading as a manifest has it, made here unless the fields say otherwise."""
    made = {"version": program(), "numerics": "W8A16", "processors": [instruction_sets()]}
    return made | {"distances": {"all": nats}} | fields


def test_a_build_is_read_once(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process of its own, which leaves it in the manifest; the next time nothing is run."""
    place = tmp_path / "int8"
    build_to(str(tiny_llama_dir), "int8-fast", None, place, ignore, is_measured=True)
    manifest = read_manifest(place)
    assert manifest is not None
    found = asyncio.run(with_reading(place, manifest.model_dump(mode="json"), ignore))
    assert found is not None
    kept = read_manifest(place)
    assert kept is not None
    assert found == kept.model_dump(mode="json")
    assert found["fixed_texts"]["reading"]["distances"]["all"] > 0
    monkeypatch.setattr("gateway.fixed_reading.run_job", None)
    assert asyncio.run(with_reading(place, found, ignore)) == found


def test_another_version_or_processor_reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it computes may differ from what the last one did; what was read stays."""
    asked: list[str] = []

    async def run(words: list[str], on_progress: Any, **limits: Any) -> dict[str, Any]:
        asked.extend(words)
        return {"manifest": {"fixed_texts": {"reading": told(0.005)}}}

    monkeypatch.setattr("gateway.fixed_reading.run_job", run)
    for made_by, processor in ((program(), "z80"), ("0.0.0", instruction_sets())):
        asked.clear()
        reading = told(0.005, version=made_by, processors=[processor])
        kept = {"fixed_texts": {"reading": reading}}
        found = asyncio.run(with_reading(Path("/somewhere"), kept, ignore))
        assert found == {"fixed_texts": {"reading": told(0.005)}}
        assert "--model=/somewhere" in asked
    assert asyncio.run(with_reading(Path("/somewhere"), found, ignore)) is found


def test_the_program_is_told_with_what_computes_for_it() -> None:
    """An upgrade of torch alone is another program: new roundings must not be drift."""
    assert f"torch {version('torch')}" in program()
    assert f"numba {version('numba')}" in program()
    assert program().startswith(f"narrowgate {version('narrowgate')}, ")


@pytest.mark.parametrize(
    ("nats", "numerics", "is_told"),
    [(0.0056, "W8A16", True), (0.0053, "W8A16", False), (0.0056, "W4A16", False)],
)
def test_an_upgrade_that_puts_engines_further_off_is_told(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    nats: float,
    numerics: str,
    is_told: bool,
) -> None:
    """What the new versions compute is taken for usual afterwards: nothing else would show it."""

    async def run(words: list[str], on_progress: Any, **limits: Any) -> dict[str, Any]:
        return {"manifest": {"fixed_texts": {"reading": told(nats, numerics=numerics)}}}

    monkeypatch.setattr("gateway.fixed_reading.run_job", run)
    kept = {"fixed_texts": {"reading": told(0.005, version="torch 2.0")}}
    asyncio.run(with_reading(Path("/somewhere"), kept, ignore))
    assert ("than those of torch 2.0 were" in caplog.text) is is_told
    assert ("all 0.0056 nats (before 0.005)" in caplog.text) is is_told


@pytest.mark.parametrize(
    ("fields", "directory", "is_asked"),
    [
        ({}, "/somewhere", True),
        ({"recipe": "full"}, "/somewhere", False),
        ({"engine": "vllm"}, "/somewhere", False),
        ({"urls": ["http://127.0.0.1:9"]}, None, False),
    ],
)
def test_engines_that_read_no_texts_are_not_asked(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], directory: str | None, is_asked: bool
) -> None:
    """The texts need not be scored, only kept; all else of what was prepared stays."""
    asked: list[float] = []
    after = {"fixed_texts": {"reading": told(0.005)}}

    async def run(words: list[str], on_progress: Any, **limits: Any) -> dict[str, Any]:
        asked.append(limits["stall_s"])
        return {"manifest": after}

    monkeypatch.setattr("gateway.fixed_reading.run_job", run)
    models = {"models": {"a": {"model": "x", **fields}}, "prepare_timeout_s": 7}
    settings = load_settings(None, models, {})
    spec = make_specs(settings)[0].variants[0]
    place = None if directory is None else Path(directory)
    prepared = Prepared(place, {"fixed_texts": {"reading": None}}, digest="d")
    found = asyncio.run(Launcher(settings).read(spec, prepared, ignore))
    assert asked == ([7] if is_asked else [])
    assert found == (replace(prepared, manifest=after) if is_asked else prepared)


def test_what_cannot_be_read_is_served_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so; artifacts that keep no texts are not asked."""

    async def run(words: list[str], on_progress: Any, **limits: Any) -> dict[str, Any]:
        raise ChildFailed("it crashed")

    monkeypatch.setattr("gateway.fixed_reading.run_job", run)
    for manifest in (None, {}, {"fixed_texts": None}):
        assert asyncio.run(with_reading(Path("/nowhere"), manifest, ignore)) == manifest
    assert not caplog.records
    unread = {"fixed_texts": {"reading": None}}
    assert asyncio.run(with_reading(Path("/nowhere"), unread, ignore)) == unread
    assert "it crashed" in caplog.text
