"""Checkpoints that many tests share, and which tests want the machine for themselves.

What loads torch is imported where it is used: most tests of the gateway never need it.
"""

import os
from pathlib import Path

import pytest

from compression.paths import kernels_dir

# Processes with a home of their own share the compiled kernels.
os.environ["NUMBA_CACHE_DIR"] = str(kernels_dir())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is about vLLM, which takes every core, as ``alone``; put the longest file first.

    Were it last, one worker would be left with it and the others would have nothing to do.
    """
    items.sort(key=lambda item: "test_readme" not in item.nodeid)
    for item in items:
        if "vllm" in item.nodeid:
            item.add_marker("alone")


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny random Llama checkpoint: bf16, tied embeddings, grouped-query attention."""
    from tests.checkpoints import make_tiny_checkpoint

    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """Return the real demo model from the user's cache, made once; for ``real_model`` tests."""
    from compression.demo_model import ensure_demo_model

    return ensure_demo_model()
