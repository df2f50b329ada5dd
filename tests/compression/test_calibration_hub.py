"""Calibration on a data set of a hub, in child processes: the library reads its settings once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet as pyarrow_parquet

from compression import parquet_text
from compression.calibration_documents import documents_of
from compression.errors import CalibrationError
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
        ("data.arrow", "x", "org/tiny", "has no .txt, .jsonl or .parquet file"),
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


def parquet(path: Path, columns: dict[str, list[object]]) -> None:
    """Write a Parquet file."""
    pyarrow_parquet.write_table(pyarrow.table(columns), path)


def test_data_set_of_parquet_files(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """The file called train is read, its column ``text`` alone, and the artifact is built on it."""
    data = tmp_path / "data"
    (data / "data").mkdir(parents=True)
    parquet(data / "data" / "test-00000-of-00001.parquet", {"text": ["too short"]})
    rows: list[object] = [f"Document {number}: the fox. " * 20 for number in range(40)]
    table = {"id": list[object](range(40)), "text": rows}
    parquet(data / "data" / "train-00000-of-00001.parquet", table)
    ready = build(tiny_llama_dir, data, tmp_path)
    assert ready["event"] == "ready", ready


def test_documents_of_a_parquet_file(tmp_path: Path) -> None:
    """Rows without text are left out, long ones are cut as those of other files are."""
    path = tmp_path / "texts.parquet"
    parquet(path, {"text": ["one", None, "", "word " * 1000, "two"]})
    found = documents_of(path, name=str(path))
    assert found[0] == "one"
    assert found[-1] == "two"
    assert "".join(found) == "one" + "word " * 1000 + "two"
    assert len(found) == 4


def test_parquet_file_is_read_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more of a huge file is read than a calibration can use."""
    path = tmp_path / "texts.parquet"
    parquet(path, {"text": [f"{number:010}" for number in range(5000)]})
    monkeypatch.setattr(parquet_text, "_MOST_CHARACTERS", 20_000)
    found = parquet_text.parquet_documents(path, name="x")
    assert len(found) == 2000
    assert found[-1] == f"{1999:010}"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"body": ["x"], "size": [1]}, "no column 'text' of strings but body (string), size"),
        ({"text": [1, 2]}, "no column 'text' of strings but text (int64)"),
        (None, "cannot be read as Parquet"),
    ],
)
def test_parquet_file_that_cannot_be_used(
    tmp_path: Path, columns: dict[str, list[object]] | None, expected: str
) -> None:
    """One line that names the file and what is wrong with it."""
    path = tmp_path / "texts.parquet"
    if columns is None:
        path.write_bytes(b"PAR1 but no more")
    else:
        parquet(path, columns)
    with pytest.raises(CalibrationError) as raised:
        documents_of(path, name="mine")
    assert "calibration.text 'mine': 'texts.parquet'" in str(raised.value)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_parquet_without_its_library(tmp_path: Path) -> None:
    """The data set is refused before its file is fetched, and the remedy is named."""
    data = tmp_path / "data"
    data.mkdir()
    parquet(data / "train.parquet", {"text": ["x"]})
    without = "import sys; sys.modules['pyarrow'] = None\n" + READ
    (message,) = run(data, tmp_path, "-c", without, "hub:org/tiny").splitlines()
    assert "calibration.text 'hub:org/tiny' is a Parquet file" in message
    assert "pip install 'narrowgate[parquet]'" in message
    assert not list((tmp_path / "cache").rglob("*.parquet"))
