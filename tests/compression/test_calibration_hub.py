"""Calibration on a data set of a hub, through the child process that builds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compression.events import decode
from tests.compression.fake_hub import serve_hub


def build(model: Path, data: Path, tmp_path: Path, name: str = "org/tiny") -> dict[str, object]:
    """Build with the files of ``data`` as the data set; return the last event."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "weights: {scheme: int4, method: imatrix}\n"
        f"calibration: {{text: 'hub:{name}', tokens: 512}}\n"
    )
    with serve_hub(data) as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "NARROWGATE_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        words = ["build", f"--model={model}", f"--recipe={recipe}", f"--out={tmp_path / 'out'}"]
        done = subprocess.run(
            [sys.executable, "-m", "compression", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    return decode(done.stdout.splitlines()[-1])


def test_data_set_of_json_lines(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Documents come from the field ``text``; the artifact is built on them."""
    data = tmp_path / "data"
    data.mkdir()
    lines = [json.dumps({"text": f"Document {number}: the fox. " * 20}) for number in range(40)]
    (data / "train.jsonl").write_text("\n".join(lines))
    (data / "README.md").write_text("not this")
    ready = build(tiny_llama_dir, data, tmp_path)
    assert ready["event"] == "ready", ready
    assert (tmp_path / "out" / "compression_manifest.json").exists()


@pytest.mark.parametrize(
    ("file", "content", "name", "expected"),
    [
        ("data.parquet", "x", "org/tiny", "has no .txt or .jsonl file"),
        ("data.jsonl", '{"body": "x"}', "org/tiny", "no JSON object with the key 'text'"),
        ("data.txt", "too short", "org/tiny", "512 are asked for"),
        ("data.txt", "x", "org/none", "cannot be fetched"),
    ],
)
def test_data_set_that_cannot_be_used(
    tiny_llama_dir: Path, tmp_path: Path, file: str, content: str, name: str, expected: str
) -> None:
    """One line that names the data set, and nothing half-written."""
    data = tmp_path / "data"
    data.mkdir()
    (data / file).write_text(content)
    error = build(tiny_llama_dir, data, tmp_path, name)
    assert error["event"] == "error"
    assert f"calibration.text 'hub:{name}'" in str(error["message"])
    assert expected in str(error["message"])
    assert "\n" not in str(error["message"])
    assert not (tmp_path / "out").exists()
