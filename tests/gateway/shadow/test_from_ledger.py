"""``narrowgate compare --from-ledger``: what live requests said, without the service."""

import json
import time
from pathlib import Path

import pytest

from gateway.cli.program import main
from gateway.shadow.ledger_file import LedgerFile
from tests.gateway.shadow.test_ledger import entry


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Return a file with requests of now, and one of two hours ago."""
    path = tmp_path / "ledger.sqlite"
    file = LedgerFile(path)
    now = time.time()
    file.write([entry([0.01, 0.03], at=now - 7200), entry([0.02], at=now), entry([0.04], at=now)])
    file.close()
    return path


def test_tables_and_json(ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every slice has requests, tokens and its mean; the JSON has all figures."""
    words = ["compare", "--from-ledger", str(ledger), "--json", str(tmp_path / "out.json")]
    assert main(words) == 0
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert "chat@int4" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("all "))
    assert row[1:4] == ["3", "4", "0.0267"]
    found = json.loads((tmp_path / "out.json").read_text())
    assert {each["slice"] for each in found} >= {"all", "position:0-63"}


def test_a_window_and_a_name(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the last hour, or only one model."""
    assert main(["compare", "--from-ledger", str(ledger), "--hours", "1"]) == 0
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert next(line.split() for line in text.splitlines() if line.startswith("all "))[1] == "2"
    assert main(["compare", "--from-ledger", str(ledger), "--model", "other"]) == 0
    assert "has no scored request of this kind" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from-ledger", "/no/ledger"], "no ledger '/no/ledger'"),
        (["--from-ledger", "/no/ledger", "--html", "x"], "--html describes a new measurement"),
        (["--hours", "2"], "--hours needs --from-ledger"),
        (["--model", "x"], "compare needs --model and --recipe, or --from-ledger"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be meant is one line and exit code 2."""
    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err
