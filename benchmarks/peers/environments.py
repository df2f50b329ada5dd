"""Each peer in a virtual environment of its own, so that their pins do not meet ours."""

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from compression.paths import cache_home

WORK = cache_home() / "peers"
"""Where environments, tools and results of peers are kept."""
_HERE = Path(__file__).parent
_VARIABLES = MappingProxyType({"GPTQMODEL_CPU_WORKERS": "2"})
"""GPTQModel refuses to start with one worker, which it takes by itself on two processors."""
_UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""Built for one torch only; transformers imports them where they are installed."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The interpreter that runs ``benchmarks.peers.<name>``."""

    name: str
    work: Path
    pins: Path = _HERE
    """The folder of its ``requirements-<name>.txt``."""

    @property
    def python(self) -> Path:
        """Return the path of its interpreter."""
        return self.work / "environments" / self.name / "bin" / "python"

    def ensure(self) -> None:
        """Make the environment from ``requirements-<name>.txt`` unless it was made before.

        Raises:
            subprocess.CalledProcessError: pip failed.
        """
        requirements = self.pins / f"requirements-{self.name}.txt"
        marker = self.python.parent.parent / requirements.name
        pins = requirements.read_text(encoding="utf-8")
        if marker.is_file() and marker.read_text(encoding="utf-8") == pins:
            return
        venv.create(self.python.parent.parent, with_pip=True)
        self._run("pip", "install", "--quiet", "--requirement", str(requirements))
        self._run("pip", "uninstall", "--quiet", "--yes", *_UNWANTED)
        marker.write_text(pins, encoding="utf-8")

    def quantize(self, checkpoint: Path) -> None:
        """Let the peer write its results.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        self._run(f"benchmarks.peers.{self.name}", str(checkpoint), str(self.work))

    def _run(self, module: str, *words: str) -> None:
        command = [str(self.python), "-m", module, *words]
        variables = {**os.environ, **_VARIABLES, "PYTHONPATH": str(_HERE.parent.parent)}
        # Some write logs to where they are.
        subprocess.run(command, check=True, cwd=self.work, env=variables)


def run_here(module: str, *words: str) -> None:
    """Run a module in our own environment.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run([sys.executable, "-m", module, *words], check=True)
