"""The generated files: up to date, the same each time, and what is said where they are not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from grafana import files


def test_files_are_up_to_date() -> None:
    """What is in the repository is what the package makes."""
    assert files.differences() == ()


def test_command_says_so() -> None:
    """``python -m grafana --check`` succeeds in silence."""
    command = [sys.executable, "-m", "grafana", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_server_fails_the_check(tmp_path: Path) -> None:
    """``make dashboards-check`` would skip what needs it, so it names the package instead."""
    make = shutil.which("make")
    assert make is not None
    command = [make, "--directory", str(Path(__file__).parents[2]), "dashboards-tools"]
    for name in ("promtool", "prometheus", "amtool", "prometheus-alertmanager"):
        done = subprocess.run(
            command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert f"dashboards-check needs {name}: apt-get install prometheus" in done.stderr
        (tmp_path / name).touch(mode=0o755)
    subprocess.run(command, env={"PATH": str(tmp_path)}, check=True)


def test_generation_repeats_itself() -> None:
    """Two generations are equal, end in a line break, and have sorted keys."""
    made = files.generated()
    assert made == files.generated()
    for name, text in made.items():
        assert text.endswith("\n")
        if name.endswith(".json"):
            content = json.loads(text)
            again = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
            assert again + "\n" == text
            assert name == f"grafana/dashboards/{content['uid']}.json"


def test_differences_are_found_and_mended(tmp_path: Path) -> None:
    """Files that are missing, changed or too many are named; writing mends all of them."""
    files.write(tmp_path)
    assert files.differences(tmp_path) == ()
    missing = tmp_path / "grafana/dashboards/narrowgate-shadow.json"
    changed = tmp_path / "grafana/provisioning/datasources/narrowgate.yaml"
    too_many = tmp_path / "grafana/dashboards/old.json"
    missing.unlink()
    changed.write_text(changed.read_text().replace("proxy", "direct"))
    too_many.write_text("{}")
    wanted = sorted(p.relative_to(tmp_path).as_posix() for p in (missing, changed, too_many))
    assert list(files.differences(tmp_path)) == wanted
    files.write(tmp_path)
    assert files.differences(tmp_path) == ()


def read(name: str) -> Any:
    """Return the content of a provisioning file."""
    return yaml.safe_load((files.ROOT / "grafana/provisioning" / name).read_text())


def test_data_source_comes_from_the_environment() -> None:
    """One Prometheus, with a fixed uid, at the address that the environment gives."""
    (source,) = read("datasources/narrowgate.yaml")["datasources"]
    wanted = {"type": "prometheus", "uid": files.DATASOURCE_UID, "url": "$PROMETHEUS_URL"}
    assert wanted.items() <= source.items()
    assert source["jsonData"]["timeInterval"] == files.SCRAPE_INTERVAL


def test_dashboards_are_read_from_where_they_lie() -> None:
    """The provider reads the directory of the generated dashboards and lets nobody change them."""
    (provider,) = read("dashboards/narrowgate.yaml")["providers"]
    path = Path(provider["options"]["path"]).relative_to(files.DEPLOYED_AT)
    assert list((files.ROOT / "grafana" / path).glob("*.json"))
    assert provider["allowUiUpdates"] is False
