"""The command line of the search: what is refused before anything long begins."""

import json
from pathlib import Path

import pytest

from compression.search.__main__ import main
from tests.checkpoints import make_tiny_checkpoint


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out=mixed.txt"], "--out 'mixed.txt' must end in .yaml"),
        (["--out=a.yaml", "--tokens=100"], "--tokens is 100: Input should be greater than"),
        (["--out=a.yaml", "--calibration="], "--calibration is '': String should have at least"),
        (["--out=none/a.yaml"], "--out 'none/a.yaml': "),
    ],
)
def test_options_are_checked_first(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line with the option and its value, and exit code 2."""
    monkeypatch.chdir(tmp_path)
    assert main(["--model=none", "--budget=kld<=1", *words]) == 2
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert event["kind"] in {"SearchError", "ReportError"}
    assert expected in event["message"]


def test_text_that_is_too_short_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a layer is read; the event before the refusal is not one of progress."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))
    model = make_tiny_checkpoint(tmp_path / "model")
    (tmp_path / "short.txt").write_text("Too short.")
    words = [f"--model={model}", f"--calibration={tmp_path / 'short.txt'}", "--tokens=512"]
    assert main([*words, "--budget=kld<=1", f"--out={tmp_path / 'a.yaml'}"]) == 2
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["error"]
    assert "512 are asked for" in events[-1]["message"]
