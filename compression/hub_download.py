"""The child process that downloads a hub snapshot and reports it as event lines."""

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from compression.demo_package import tree_bytes
from compression.errors import ModelNotFound, SourceError
from compression.events import Progress, encode, encode_progress

_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
# Other formats of the same weights lie in folders, or in files named like this.
_UNWANTED = ["*/*", "consolidated*.safetensors"]
_POLL_S = 0.2


def main() -> int:
    """Download one snapshot and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m compression.hub_download")
    parser.add_argument("repository")
    parser.add_argument("--revision")
    options = parser.parse_args()
    try:
        directory = download(options.repository, options.revision)
    except SourceError as error:
        print(encode("error", {"kind": type(error).__name__, "message": str(error)}), flush=True)
        return 2
    print(encode("ready", {"directory": str(directory)}), flush=True)
    return 0


def download(repository: str, revision: str | None) -> Path:
    """Return the snapshot's directory; each foreign error becomes one line with a remedy."""
    name = repository if revision is None else f"{repository}@{revision}"
    try:
        with _reported(repository, _missing_bytes(repository, revision)):
            return Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=_WANTED,
                    ignore_patterns=_UNWANTED,
                )
            )
    except GatedRepoError:
        raise SourceError(
            f"{name!r} is gated: accept its terms on its hub page, then set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise ModelNotFound(
            f"{repository!r} has no revision {revision!r}: give a branch, tag or commit of it"
        ) from None
    except RepositoryNotFoundError:
        raise ModelNotFound(
            f"there is no directory {repository!r}, and the hub has no such model or it is "
            "private: check the name, or set HF_TOKEN"
        ) from None
    except HFValidationError:
        raise ModelNotFound(f"{repository!r} is no valid hub id: give 'org/name'") from None
    except LocalEntryNotFoundError:
        reason = (
            "HF_HUB_OFFLINE is set and it is not whole in the local hub cache: unset it"
            if constants.HF_HUB_OFFLINE
            else "the hub cannot be reached: check the network (HF_ENDPOINT, proxy)"
        )
        raise SourceError(
            f"cannot fetch {name!r}: {reason}, or give an existing directory"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise SourceError(
            f"cannot fetch {name!r} ({first_line}): check network, disk space and HF_TOKEN, "
            "then try again"
        ) from None


def _missing_bytes(repository: str, revision: str | None) -> int:
    """Return how many bytes are not in the local cache yet; 0 where the hub does not say."""
    try:
        files = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
            dry_run=True,
        )
    except DryRunError:
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)


@contextmanager
def _reported(repository: str, total: int) -> Iterator[None]:
    """Print progress from a thread while the body runs, by watching the cache grow."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    before = tree_bytes(folder)
    is_done = threading.Event()

    def report() -> None:
        while not is_done.wait(_POLL_S):
            done = min(max(tree_bytes(folder) - before, 0), total)
            print(encode_progress(Progress("fetch", done, total, "bytes", repository)), flush=True)

    thread = threading.Thread(target=report)
    if total:
        thread.start()
    try:
        yield
    finally:
        is_done.set()
        if total:
            thread.join()
    if total:
        print(encode_progress(Progress("fetch", total, total, "bytes", repository)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
