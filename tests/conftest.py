"""Checkpoints that many tests share, and which files come first.

What loads torch is imported where it is used: most tests of the gateway never need it.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from compression.paths import kernels_dir

# Processes with a home of their own share the compiled kernels.
os.environ["NUMBA_CACHE_DIR"] = str(kernels_dir())


FIRST = (
    "tests/compression/test_int8_real.py",
    "tests/project/test_readme.py",
    "tests/vllm/test_replicas.py",
    "tests/vllm/test_ladder.py",
    "tests/vllm/test_limits.py",
    "tests/contracts/test_engine_contract.py",
)
"""The files that take longest, in the order in which workers that share them end together."""
LAST = (
    "tests/project/test_readme_commands.py",
    "tests/engine/test_fixed_texts.py",
    "tests/benchmarks/test_shadow_damage.py",
)
"""Files that need the artifact of int8: the first file makes it, and nobody has to wait for it."""
PLACES = {
    "alone": (
        "tests/gateway/test_measured_times.py",
        "tests/gateway/test_random_leaves.py",
        "tests/grafana/test_live.py",
    ),
    "vllm": ("tests/vllm/", "tests/contracts/"),
}
"""Where `make test` looks for tests with a mark of their own part; the Makefile has them, too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and let no mark keep a test from being run at all.

    Were they last, one worker would be left with them and the others would have nothing to do.
    """
    ranks = {name: rank - len(FIRST) for rank, name in enumerate(FIRST)}
    ranks |= {name: rank + 1 for rank, name in enumerate(LAST)}
    items.sort(key=lambda item: ranks.get(item.nodeid.partition("::")[0], 0))
    for item in items:
        for mark, places in PLACES.items():
            if item.get_closest_marker(mark) and not item.nodeid.startswith(places):
                raise pytest.UsageError(
                    f"{item.nodeid} is marked {mark!r}, and `make test` looks for such tests in "
                    f"{' and '.join(places)} alone: move it, or add its place to the Makefile and "
                    "to PLACES in tests/conftest.py"
                )


@pytest.fixture(scope="session", autouse=True)
def one_tls_context() -> Iterator[None]:
    """Let all clients of httpx share a TLS context: reading the certificates takes each 20 ms."""
    import httpx

    with pytest.MonkeyPatch.context() as patch:
        shared = cache(httpx.create_ssl_context)
        patch.setattr("httpx._transports.default.create_ssl_context", shared, raising=False)
        yield


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
