"""Where the stack's servers keep their files, laid out as in the containers of the compose file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Layout:
    """One directory for all that a stack writes."""

    home: Path

    @property
    def prometheus_config(self) -> Path:
        """Return the repository's own file, seen from where its relative paths hold."""
        return self.home / "etc/deploy/prometheus/prometheus.yml"

    @property
    def alertmanager_config(self) -> Path:
        """Return the repository's own file."""
        return REPOSITORY / "deploy/alertmanager/alertmanager.yml"

    def data(self, name: str) -> Path:
        """Return where a server keeps its data."""
        return self.home / name

    def log(self, name: str) -> Path:
        """Return the file that takes a server's log."""
        return self.home / "logs" / f"{name}.log"

    def write(self, targets: Mapping[str, int]) -> None:
        """Make the directory; ``targets`` are the ports of the servers to scrape, by job."""
        config = self.prometheus_config
        found_at = config.parent / "targets"
        for directory in (found_at, self.home / "logs", self.home / "etc/grafana"):
            directory.mkdir(parents=True, exist_ok=True)
        _link(config, REPOSITORY / "deploy/prometheus/prometheus.yml")
        _link(self.home / "etc/grafana/rules", REPOSITORY / "grafana/rules")
        for job, port in targets.items():
            group = [{"targets": [f"127.0.0.1:{port}"]}]
            (found_at / f"{job}.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)
