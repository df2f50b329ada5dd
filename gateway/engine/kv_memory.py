"""How much memory the cache may take, and how many tokens that is."""

import logging
from dataclasses import replace

import psutil

from gateway.engine.pages import PAGE_TOKENS, PageSizes
from gateway.engine.runner import Runner
from gateway.errors import StartupError

MOST_BYTES = 4 * 1024**3
"""What is taken where the user does not say, unless half of the free memory is less."""

logger = logging.getLogger(__name__)


def free_bytes() -> int:
    """Return the memory of the cache where the user does not say."""
    return min(MOST_BYTES, int(psutil.virtual_memory().available) // 2)


def page_sizes(runner: Runner, num_bytes: int) -> PageSizes:
    """Return how many pages of the model's cache fit into ``num_bytes``."""
    cache = runner.new_cache(1)
    page_bytes = PAGE_TOKENS * cache.bytes_per_token
    return PageSizes(
        total=num_bytes // page_bytes, per_sequence=-(-cache.rounding_bytes // page_bytes)
    )


def fit(runner: Runner, sizes: PageSizes, *, asked: int | None) -> Runner:
    """Return the model with a context that the cache can hold.

    Args:
        runner: the model.
        sizes: of its cache.
        asked: the context that the user asked for, in tokens, if any.

    Raises:
        StartupError: the cache holds less than was asked for, or not a single page.
    """
    if runner.max_model_len <= sizes.longest:
        return runner
    wanted = runner.max_model_len if asked else PAGE_TOKENS
    if sizes.longest < wanted:
        page_bytes = PAGE_TOKENS * runner.new_cache(1).bytes_per_token
        needed = page_bytes * sizes.needed(wanted)
        raise StartupError(
            f"the cache's memory holds {sizes.longest} tokens of one sequence, but {wanted} are "
            f"asked for: give at least --kv-cache-memory-bytes {needed}, or lower --max-model-len"
        )
    logger.info("the cache holds %d tokens: the context is cut to that", sizes.longest)
    return replace(runner, max_model_len=sizes.longest)
