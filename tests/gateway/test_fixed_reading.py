"""The engine's reading of fixed texts behind a build: made once, and never in the way."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from compression.events import ignore
from compression.manifest import read_manifest
from compression.prepare import build_to
from gateway.errors import ChildFailed
from gateway.fixed_reading import with_reading


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


def test_another_version_reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it computes may differ from what the last one did."""
    asked: list[str] = []

    async def run(words: list[str], on_progress: Any, **limits: Any) -> dict[str, Any]:
        asked.extend(words)
        return {"manifest": {"read": "again"}}

    monkeypatch.setattr("gateway.fixed_reading.run_job", run)
    manifest = {"fixed_texts": {"reading": {"version": "0.0.0"}}}
    found = asyncio.run(with_reading(Path("/somewhere"), manifest, ignore))
    assert found == {"read": "again"}
    assert "--model=/somewhere" in asked


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
