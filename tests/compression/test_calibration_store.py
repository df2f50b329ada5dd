"""What an artifact is remembered by: its calibration text and its budget, as far as they count."""

from pathlib import Path

import pytest

from compression.calibration_documents import read_calibration_text
from compression.errors import BuildError, CalibrationError
from compression.events import ignore
from compression.prepare import Prepared, build_to, prepare
from tests.checkpoints import make_tiny_checkpoint

SENTENCE = "The quick brown fox jumps over the lazy dog. "


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a tiny model beside an empty store."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))
    return str(make_tiny_checkpoint(tmp_path / "model"))


def prepared(model: str, directory: Path, fields: str) -> Prepared:
    """Prepare a recipe of some YAML."""
    path = directory / "mine.yaml"
    path.write_text(fields)
    return prepare(model, str(path), None, ignore)


def test_changed_calibration_text_is_another_artifact(model: str, tmp_path: Path) -> None:
    """The content of the text counts where something calibrates, and it is in the manifest."""
    text = tmp_path / "text.txt"
    fields = f"calibration: {{text: {text}, tokens: 512}}\nweights: {{scheme: int4, method: %s}}\n"
    digests = []
    for body in (SENTENCE * 200, SENTENCE[::-1] * 200):
        text.write_text(body)
        made = prepared(model, tmp_path, fields % "imatrix")
        assert not made.cached
        assert made.manifest is not None
        assert made.manifest.calibration_digest == read_calibration_text(str(text)).digest
        digests.append(made.manifest.calibration_digest)
        assert prepared(model, tmp_path, fields % "imatrix").cached
    assert len(set(digests)) == 2


def test_text_that_nothing_reads_does_not_count(model: str, tmp_path: Path) -> None:
    """Neither its path nor its content, nor whether it exists."""
    fields = "weights: {scheme: int4, method: rtn}\ncalibration: {text: %s}\n"
    first = prepared(model, tmp_path, fields % "built-in")
    again = prepared(model, tmp_path, fields % (tmp_path / "none.txt"))
    assert (first.cached, again.cached) == (False, True)
    assert first.manifest is not None
    assert first.manifest.calibration_digest is None


def test_another_budget_is_no_other_artifact(model: str, tmp_path: Path) -> None:
    """It is measured where it was not yet, held to the new budget, and stays for the old one."""
    fields = "weights: {scheme: int4, method: rtn}\n"
    first = prepared(model, tmp_path, fields)
    assert first.manifest is not None
    assert first.manifest.fidelity is None
    held = prepared(model, tmp_path, fields + "budget: {kld: 50}\n")
    assert held.cached
    assert held.manifest is not None
    assert held.manifest.fidelity
    with pytest.raises(BuildError, match=r"'mine' breaks its budget \(kld .* > 1e-06\)"):
        prepared(model, tmp_path, fields + "budget: {kld: 0.000001}\n")
    assert prepared(model, tmp_path, fields).directory == first.directory


def test_pruned_artifact_is_measured_later(model: str, tmp_path: Path) -> None:
    """As it would have been at the end of its build."""
    fields = "weights: {scheme: int8}\nprune: {query_heads: 1, compensate: false}\n"
    fields += "calibration: {tokens: 512}\n"
    assert prepared(model, tmp_path, fields).manifest is not None
    later = prepared(model, tmp_path, fields + "budget: {kld: 100}\n")
    at_once = build_to(model, str(tmp_path / "mine.yaml"), None, tmp_path / "out", ignore)
    assert later.cached
    assert later.manifest is not None
    assert at_once.manifest is not None
    assert later.manifest.fidelity == at_once.manifest.fidelity


def test_documents_come_alike_from_every_kind_of_file(tmp_path: Path) -> None:
    """Text with separators, JSON lines, and long documents in pieces, of which none is lost."""
    (tmp_path / "a.txt").write_text("one\n\n---\n\ntwo\n\n---\n\n ")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n\n{"text": "four"}\n')
    long = "\n\n".join(SENTENCE * 20 for _ in range(10))
    (tmp_path / "c.txt").write_text(long)
    (tmp_path / "d.txt").write_text("x" * 10_000)
    first, second, third, fourth = read_calibration_text(str(tmp_path)).files
    assert (first, second) == (("one", "two"), ("three", "four"))
    assert len(third) > 2
    assert "".join(third) == long
    assert all(len(piece) <= 4096 for piece in (*third, *fourth))
    assert "".join(fourth) == "x" * 10_000


def test_text_that_is_no_file(tmp_path: Path) -> None:
    """A device is not taken for a directory, and a bad line names its file."""
    with pytest.raises(CalibrationError, match=r"'/dev/null' is neither a file nor a directory"):
        read_calibration_text("/dev/null")
    (tmp_path / "bad.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(CalibrationError, match=r"'bad\.jsonl' is no JSON object with the key"):
        read_calibration_text(str(tmp_path / "bad.jsonl"))
