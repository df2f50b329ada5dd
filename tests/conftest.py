"""Checkpoints that many tests share."""

from pathlib import Path

import pytest

from compression.demo_model import ensure_demo_model
from tests.checkpoints import make_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny random Llama checkpoint: bf16, tied embeddings, grouped-query attention."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """Return the real demo model from the user's cache, made once; for ``real_model`` tests."""
    return ensure_demo_model()
