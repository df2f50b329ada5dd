"""A Dockerfile as its instructions."""

import io
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))


class Instruction(NamedTuple):
    """One instruction, such as RUN, and what it is given."""

    name: str
    value: str


@dataclass(frozen=True)
class Image:
    """The instructions of one file, in order."""

    instructions: tuple[Instruction, ...]

    def values(self, name: str) -> list[str]:
        """Return what all instructions of that name are given."""
        return [each.value for each in self.instructions if each.name == name]

    def words(self, name: str) -> list[str]:
        """Return the last instruction of that name, which must be in exec form."""
        words: list[str] = json.loads(self.values(name)[-1])
        return words

    @property
    def environment(self) -> dict[str, str]:
        """Return what its containers have in their environment."""
        pairs = (pair for value in self.values("ENV") for pair in shlex.split(value))
        return dict(pair.split("=", 1) for pair in pairs)

    @property
    def copied(self) -> list[str]:
        """Return what is copied out of the repository."""
        found: list[str] = []
        for value in self.values("COPY"):
            if "--from=" not in value:
                found += value.split()[:-1]
        return found

    @property
    def pip_installs(self) -> list[list[str]]:
        """Return the words after each ``pip install``."""
        commands = (part for run in self.values("RUN") for part in re.split(r"&&|;", run))
        return [
            shlex.split(part.partition("pip install ")[2]) for part in commands if "pip in" in part
        ]


def read_image(path: Path) -> Image:
    """Parse a Dockerfile."""
    parsed = DockerfileParser(fileobj=io.StringIO(path.read_text())).structure
    found = [Instruction(each["instruction"], each["value"]) for each in parsed]
    return Image(tuple(each for each in found if each.name != "COMMENT"))
