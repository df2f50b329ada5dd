"""Fetches a snapshot from a Hugging Face hub, in a child process that can be stopped at once."""

import os
import subprocess
import sys
from pathlib import Path

from compression.errors import ModelNotFound, SourceError
from compression.events import OnProgress, Progress, decode


def fetch_snapshot(repository: str, *, revision: str | None, on_progress: OnProgress) -> Path:
    """Return the directory of a hub snapshot: safetensors, JSON, tokenizer and template files.

    ``HF_HUB_OFFLINE``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_ENDPOINT`` mean what they always do.

    Raises:
        ModelNotFound: the hub has no such repository or revision.
        SourceError: the hub cannot be reached, or refuses.
    """
    command = [sys.executable, "-m", "compression.hub_download", repository]
    if revision is not None:
        command += ["--revision", revision]
    # A thread could not be stopped in the middle of a large file.
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    try:
        for line in child.stdout or ():
            fields = decode(line)
            match fields.pop("event"):
                case "progress":
                    on_progress(Progress(**fields))
                case "ready":
                    return Path(fields["directory"])
                case "error":
                    is_missing = fields["kind"] == ModelNotFound.__name__
                    raise (ModelNotFound if is_missing else SourceError)(fields["message"])
    finally:
        child.kill()
        child.communicate()
    raise SourceError(
        f"fetching {repository!r} ended unexpectedly: see the log above, then try again"
    )


def revision_of(directory: Path) -> str | None:
    """Return the commit of a snapshot in the hub's cache; None for any other directory."""
    is_snapshot = directory.parent.name == "snapshots" and len(directory.name) == 40
    return directory.name if is_snapshot else None
