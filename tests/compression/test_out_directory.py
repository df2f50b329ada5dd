"""The directory that ``build --out`` names."""

import os
from pathlib import Path

import pytest

from compression.errors import BuildError
from compression.out_directory import out_directory, require_new


def test_link_to_an_empty_directory_is_followed(tmp_path: Path) -> None:
    """The result lies where the link leads, and the link stays."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with out_directory(require_new(tmp_path / "link")) as temporary:
        (temporary / "file").write_text("done")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "done"


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("x" * 300, r"cannot write --out .*File name too long.*name another directory"),
        ("file/out", r"cannot write --out .*Not a directory"),
        ("loop", r"cannot write --out .*"),
        ("full", r"exists and is not empty"),
        ("/proc", r"--out '/proc' (is a mount point|exists and is not empty)"),
    ],
)
def test_place_that_cannot_be_used(tmp_path: Path, out: str, expected: str) -> None:
    """One line, before anything is built."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("precious")
    with pytest.raises(BuildError, match=expected) as caught:
        require_new(tmp_path / out)
    assert "\n" not in str(caught.value)


def test_mount_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be replaced by another directory."""
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(BuildError, match=r"is a mount point.*directory inside it"):
        require_new(tmp_path / "disk")


def test_failure_leaves_no_directory(tmp_path: Path) -> None:
    """Neither the place itself nor the parents that were made for it."""
    (tmp_path / "a").mkdir()

    def fail() -> None:
        with out_directory(tmp_path / "a" / "b" / "c") as temporary:
            (temporary / "file").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list((tmp_path / "a").iterdir()) == []


def test_longest_name_that_a_directory_can_have(tmp_path: Path) -> None:
    """What is made aside has a short name of its own."""
    with out_directory(require_new(tmp_path / ("x" * 255))):
        pass
    assert (tmp_path / ("x" * 255)).is_dir()


def test_remains_of_a_killed_build_are_swept(tmp_path: Path) -> None:
    """What nobody holds goes with the next build there; what somebody holds stays."""
    with out_directory(tmp_path / "out") as alive:
        pruned = tmp_path / f"{alive.name}-pruned-x"
        pruned.mkdir()
        dead = tmp_path / f"{alive.name[:-8]}dead"
        for each in (dead, tmp_path / f"{dead.name}-pruned-x"):
            each.mkdir()
            (each / "file").write_text("half")
        with pytest.raises(KeyError), out_directory(tmp_path / "out"):
            raise KeyError
        assert sorted(tmp_path.iterdir()) == [alive, pruned]
        pruned.rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
