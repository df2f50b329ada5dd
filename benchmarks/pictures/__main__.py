"""``python -m benchmarks.pictures``: serve the demo model, watch it, draw what was seen.

Starts what ``make stack`` starts, sends requests for some minutes, and writes into
``docs/pictures``: the page, as Chromium shows it, and every dashboard, drawn from its own JSON and
its own queries by :mod:`benchmarks.pictures.drawing`, since no Grafana is part of the project.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx
import yaml

from benchmarks.machine import describe
from benchmarks.pictures.asked import Prometheus, Span
from benchmarks.pictures.drawing import draw, shrink
from benchmarks.pictures.page import photograph
from benchmarks.pictures.traffic import traffic

REPOSITORY = Path(__file__).parents[2]
MODEL = "smollm2"
SETTINGS = {
    "models": {MODEL: {"model": MODEL, "ladder": ["int4-fast", "int8", "full"], "active": "int8"}},
    "shadow": {"rate": 1, "verdict": {"tolerance": {"all": 0.05}}, "ledger": {"path": False}},
}
"""A tolerance by hand: measuring one takes minutes that no picture shows."""

_TITLES: Mapping[str, str] = MappingProxyType(
    {
        "page-dark": "The page, dark",
        "page-light": "The page, light",
        "page-ask": "One question to the compressed and to the full model",
        "page-phone": "The page on a phone",
        "narrowgate-overview": "Overview",
        "narrowgate-compression": "Compression",
        "narrowgate-fidelity": "Fidelity",
        "narrowgate-shadow": "Shadow",
        "narrowgate-engines": "Engines",
        "narrowgate-gateway": "Gateway",
    }
)

_STEP_S = 5.0
_READY_S = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Make all pictures and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="of traffic; default: 8")
    parser.add_argument("--port", type=int, default=8700, help="and the two above it")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs/pictures")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with _stack(options.port) as (gateway, prometheus):
        start = time.time()
        with traffic(gateway, MODEL):
            time.sleep(options.minutes * 60)
            print("draws the page", flush=True)
            photograph(gateway, MODEL, options.out)
        end = time.time()
        asked = Prometheus(prometheus)
        for file in sorted((REPOSITORY / "grafana/dashboards").glob("*.json")):
            print(f"draws {file.stem}", flush=True)
            dashboard = json.loads(file.read_text(encoding="utf-8"))
            span = Span(start, end, _STEP_S)
            draw(dashboard, asked, span, options.out / f"{file.stem}.png")
    for file in options.out.glob("page-*.png"):
        shrink(file)
    _write_note(options.out, options.minutes)
    return 0


@contextmanager
def _stack(port: int) -> Iterator[tuple[str, str]]:
    """Run the stack; yield the addresses of the gateway and of Prometheus."""
    gateway, prometheus = (f"http://127.0.0.1:{port + place}" for place in range(2))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as settings:
        yaml.safe_dump(SETTINGS | {"port": port}, settings)
        settings.flush()
        ports = ("--port", port, "--prometheus-port", port + 1, "--alertmanager-port", port + 2)
        flags = ("--", "--config", settings.name)
        command = [sys.executable, "-m", "deploy.stack", *map(str, ports), *flags]
        with subprocess.Popen(command, cwd=REPOSITORY) as process:
            try:
                _wait(process, gateway)
                _wait(process, prometheus + "/-")
                yield gateway, prometheus
            finally:
                process.send_signal(signal.SIGINT)


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"the stack ended with code {process.returncode}; see above")
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"{url}/ready was not ready within {_READY_S:.0f} s")


def _write_note(out: Path, minutes: float) -> None:
    """Say beside the pictures where they come from."""
    machine = describe()
    words = (
        "# Pictures\n\n"
        f"Made by `make pictures`: {minutes:g} minutes of requests for the demo model on "
        f"{machine['cores']} cores of\n{machine['processor']}. The page is as Chromium shows it. "
        "The dashboards are drawn from their own\nJSON and their own queries, answered by the "
        "run's Prometheus, by `benchmarks/pictures/drawing.py`:\nno Grafana was at hand, which "
        "draws them with its own hand.\n"
    )
    for name, title in _TITLES.items():
        words += f"\n## {title}\n\n![{title}]({name}.png)\n"
    (out / "README.md").write_text(words, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
