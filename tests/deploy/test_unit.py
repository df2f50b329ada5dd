"""The systemd unit, held by systemd's own checks; it is not run here."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.settings import Settings
from tests.deploy.image import ROOT

UNIT = ROOT / "deploy/systemd/narrowgate.service"
MAX_EXPOSURE = 20
"""Tenths; systemd calls up to 2.0 safe where the scale ends at 10."""


def systemd_analyze(*words: str) -> subprocess.CompletedProcess[str]:
    """Run systemd's checker."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    command = [program, "--no-pager", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def with_program_here(directory: Path) -> Path:
    """Return the unit with the program of this environment, for the checker looks for it."""
    text = UNIT.read_text()
    assert "/opt/narrowgate/bin/narrowgate " in text
    here = Path(sys.executable).with_name("narrowgate")
    unit = directory / UNIT.name
    unit.write_text(text.replace("/opt/narrowgate/bin/narrowgate ", f"{here} "))
    return unit


def test_systemd_accepts_it(tmp_path: Path) -> None:
    """No unknown key, no bad value, and a program that can be run."""
    found = systemd_analyze("verify", "--man=no", str(with_program_here(tmp_path)))
    assert (found.returncode, found.stderr) == (0, "")


def test_systemd_can_refuse(tmp_path: Path) -> None:
    """A misspelt key is found."""
    unit = with_program_here(tmp_path)
    unit.write_text(unit.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert "NoNewPrivilege" in systemd_analyze("verify", "--man=no", str(unit)).stderr


def test_systemd_accepts_it_with_gpus(tmp_path: Path) -> None:
    """The addition for GPUs is read, and opens the devices."""
    unit = with_program_here(tmp_path)
    addition = tmp_path / f"{UNIT.name}.d" / "gpu.conf"
    addition.parent.mkdir()
    addition.write_text((UNIT.parent / "gpu.conf").read_text())
    found = systemd_analyze("verify", "--man=no", str(unit))
    assert (found.returncode, found.stderr) == (0, "")
    addition.write_text(addition.read_text().replace("DeviceAllow=", "DeviceAllows="))
    assert "DeviceAllows" in systemd_analyze("verify", "--man=no", str(unit)).stderr


def test_its_user_can_be_made(tmp_path: Path) -> None:
    """Systemd makes the user that the unit runs as."""
    program = shutil.which("systemd-sysusers")
    if program is None:
        pytest.skip("systemd-sysusers is not installed (Debian: systemd)")
    (tmp_path / "etc").mkdir()
    users = UNIT.with_suffix(".sysusers").read_bytes()
    command = [program, f"--root={tmp_path}", "-"]
    subprocess.run(command, input=users, capture_output=True, check=True)
    made = (tmp_path / "etc/passwd").read_text()
    assert made.startswith("narrowgate:")
    assert ":/var/lib/narrowgate:/usr/sbin/nologin" in made
    assert "\nUser=narrowgate\nGroup=narrowgate\n" in UNIT.read_text()


def test_it_is_hardened() -> None:
    """Systemd's own measure of exposure is at most 2.0 of 10 (it was 1.5)."""
    found = systemd_analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", str(UNIT))
    assert found.returncode == 0, found.stdout[-300:]


def test_it_may_drain() -> None:
    """The end waits for longer than running requests may take, and only the gateway is told."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    drain_s = Settings.model_fields["drain_s"].default
    assert float(unit["Service"]["TimeoutStopSec"]) >= drain_s + 10
    assert unit["Service"]["KillMode"] == "mixed"
