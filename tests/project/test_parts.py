"""The parts of `make test`: the Makefile and the tests' configuration name the same files."""

import re
from pathlib import Path

from tests.conftest import PLACES

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def test_files_alone_are_the_same_in_both_places() -> None:
    """A file that the Makefile alone does not name has tests that nothing would run."""
    found = re.search(r"^ALONE := (.+)$", MAKEFILE.read_text(), re.MULTILINE)
    assert found is not None
    assert sorted(found[1].split()) == sorted(PLACES["alone"])
