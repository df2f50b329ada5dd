"""Where models, artifacts and caches live on this machine."""

import os
from pathlib import Path


def cache_home() -> Path:
    """Return the project's cache directory (not created here).

    ``NARROWGATE_HOME`` wins, then ``XDG_CACHE_HOME/narrowgate``, then ``~/.cache/narrowgate``.
    """
    if override := os.environ.get("NARROWGATE_HOME"):
        return Path(override).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base).expanduser() if base else Path.home() / ".cache"
    return root.absolute() / "narrowgate"


def models_dir() -> Path:
    """Return the directory of models converted or fetched by this project."""
    return cache_home() / "models"


def store_dir() -> Path:
    """Return the directory of the content-addressed artifact store."""
    return cache_home() / "store"


def kernels_dir() -> Path:
    """Return the directory of compiled kernels; ``NUMBA_CACHE_DIR`` wins."""
    if override := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(override).expanduser().absolute()
    return cache_home() / "kernels"
