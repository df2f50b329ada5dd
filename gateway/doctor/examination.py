"""All checks, and the report that they make."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compression.paths import cache_home
from gateway.doctor.finding import Finding, Level
from gateway.doctor.host import Host
from gateway.doctor.machine import check_machine
from gateway.doctor.service import check_service
from gateway.doctor.software import check_software
from gateway.doctor.storage import check_storage
from gateway.doctor.vllm import check_vllm


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found, in the order of the checks, and what the libraries said of themselves."""

    findings: tuple[Finding, ...]
    libraries: dict[str, Any] | None

    @property
    def level(self) -> Level:
        """Return the worst level."""
        found = {finding.level for finding in self.findings}
        return "fail" if "fail" in found else "warn" if "warn" in found else "ok"

    def fields(self) -> dict[str, Any]:
        """Return the JSON report."""
        return {
            "narrowgate": version("narrowgate"),
            "level": self.level,
            "checks": [finding.fields() for finding in self.findings],
            "libraries": self.libraries,
        }


def examine(file: Path | None, port: int | None) -> Examination:
    """Run all checks; ``file`` has settings, ``port`` is the one that shall be free."""
    host = Host()
    software, libraries = check_software(host)
    findings = (
        *check_machine(host),
        check_storage(cache_home()),
        *software,
        *check_vllm(),
        *check_service(file, port),
    )
    return Examination(findings, libraries)
