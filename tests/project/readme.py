"""What the README says: its code blocks, and how one of its shell examples is run."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1:8000"
"""Where its examples expect the demo."""
NUM_EXAMPLES = 15
"""How many of its shell lines are run; the others install, serve or test."""
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NOT_RUN = ("make ", "narrowgate serve")


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in that language."""
    found = _FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    return [body for name, body in found if name == language]


def shell_examples() -> list[str]:
    """Return its shell lines in their order, but for those that install, serve or test."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", "").splitlines()]
    return [line for line in lines if not line.startswith(_NOT_RUN)]


def run(command: str, cwd: Path) -> str:
    """Run one shell example with the environment's own commands in front; return its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],  # noqa: S607
        cwd=cwd,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
