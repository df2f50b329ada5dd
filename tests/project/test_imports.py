"""What importing costs: the gateway stays free of torch, the compression package of everything."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "transformers", "safetensors", "bitsandbytes", "matplotlib")


def imported_by(statement: str) -> set[str]:
    """Return the names of all modules loaded after ``statement`` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


@pytest.mark.parametrize("module", ["gateway.cli", "gateway.app", "compression.__main__"])
def test_serving_side_never_loads_torch(module: str) -> None:
    """Neither the command line, nor the gateway, nor a hit in the store pulls in torch."""
    assert not imported_by(f"import {module}") & set(HEAVY)


def test_the_engine_does_without_transformers() -> None:
    """Importing the engine's server and its grammars leaves out a library that takes a second."""
    statement = "import gateway.engine.server, gateway.engine.runner, gateway.engine.tokenizer"

    assert not imported_by(statement) & {"transformers", "bitsandbytes", "matplotlib"}


def test_package_itself_is_free() -> None:
    """`import compression` loads nothing: others probe the name for the standard library's."""
    assert imported_by("import compression") - imported_by("pass") <= {"compression"}
