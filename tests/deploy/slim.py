"""The command line of the slim image: as if nothing of the embedded extra were installed."""

import re
import sys
import tomllib
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", each)[0].replace("-", "_").lower() for each in requirements}


ABSENT = _names(PROJECT["optional-dependencies"]["embedded"]) - {"packaging"}
"""What only the embedded extra brings; `limits` needs packaging, too."""


class Installed(PathFinder):
    """Finds what is installed, but for the embedded extra."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return None for what the slim image lacks."""
        if fullname.partition(".")[0] in ABSENT:
            return None
        return super().find_spec(fullname, path, target)


def hide() -> None:
    """Make what only the embedded extra brings impossible to import."""
    sys.meta_path[sys.meta_path.index(PathFinder)] = Installed


if __name__ == "__main__":
    hide()
    from gateway.cli import main

    sys.exit(main())
