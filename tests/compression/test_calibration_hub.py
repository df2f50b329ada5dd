"""Calibration on a data set of a hub, in child processes: the library reads its settings once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compression.events import decode
from tests.compression.fake_hub import serve_hub

READ = """
import sys
from compression.calibration_documents import read_calibration_text
from compression.errors import CalibrationError
try:
    read_calibration_text(sys.argv[1])
except CalibrationError as error:
    print(error)
"""


def run(data: Path, tmp_path: Path, *words: str) -> str:
    """Run Python beside a hub that has the files of ``data``; return what it prints."""
    with serve_hub(data) as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "NARROWGATE_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(
            [sys.executable, *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    return done.stdout


def build(model: Path, data: Path, tmp_path: Path) -> dict[str, object]:
    """Build with the data set; return the last event."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "weights: {scheme: int4, method: imatrix}\n"
        "calibration: {text: 'hub:org/tiny', tokens: 512}\n"
    )
    words = ["build", f"--model={model}", f"--recipe={recipe}", f"--out={tmp_path / 'out'}"]
    return decode(run(data, tmp_path, "-m", "compression", *words).splitlines()[-1])


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
        ("data.txt", "x", "org/none", "cannot be fetched"),
    ],
)
def test_data_set_that_cannot_be_used(
    tmp_path: Path, file: str, content: str, name: str, expected: str
) -> None:
    """One line that names the data set."""
    data = tmp_path / "data"
    data.mkdir()
    (data / file).write_text(content)
    (message,) = run(data, tmp_path, "-c", READ, f"hub:{name}").splitlines()
    assert f"calibration.text 'hub:{name}'" in message
    assert expected in message


def test_data_set_that_is_too_short(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """The build is refused in one line that names the data set, and nothing is half-written."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "data.txt").write_text("too short")
    error = build(tiny_llama_dir, data, tmp_path)
    assert error["event"] == "error"
    assert "calibration.text 'hub:org/tiny'" in str(error["message"])
    assert "512 are asked for" in str(error["message"])
    assert "\n" not in str(error["message"])
    assert not (tmp_path / "out").exists()
