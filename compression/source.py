"""Finds the checkpoint directory behind the model name that a user gives."""

import re
from pathlib import Path

from compression.demo_model import DEMO_MODEL, ensure_demo_model
from compression.errors import ModelNotFound, SourceError
from compression.events import OnProgress, ignore
from compression.hub import fetch_snapshot

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATH_START = ("/", "./", "../", "~")


def resolve_source(
    model: str, *, revision: str | None = None, on_progress: OnProgress = ignore
) -> Path:
    """Return the directory of the checkpoint that ``model`` names, fetched now if it must be.

    ``model`` is the demo model's name, else a directory, else a hub id ``org/name``;
    ``revision`` (branch, tag or commit) is for hub ids only.

    Raises:
        ModelNotFound: nothing exists under that name.
        SourceError: what exists cannot be used or fetched.
        BuildError: the cache cannot be written.
    """
    try:
        path = _expanded(model)
        is_hub_id = (
            model != DEMO_MODEL and not path.exists() and _HUB_ID.fullmatch(model) is not None
        )
        if revision is not None and not is_hub_id:
            raise SourceError(
                f"revision {revision!r} cannot be used with model {model!r}: it is for hub ids "
                "'org/name' only; leave it out"
            )
        if model == DEMO_MODEL:
            directory = ensure_demo_model(on_progress=on_progress)
        elif is_hub_id:
            directory = fetch_snapshot(model, revision=revision, on_progress=on_progress)
        else:
            directory = _local_directory(model, path)
        _require_safetensors(directory)
        return directory
    except OSError as error:
        raise SourceError(
            f"cannot read model {model!r} ({error.strerror or error}): check path and permissions"
        ) from error


def _expanded(model: str) -> Path:
    try:
        return Path(model).expanduser()
    except RuntimeError:  # the home directory of somebody unknown
        return Path(model)


def _local_directory(model: str, path: Path) -> Path:
    is_named = bool(model.strip())  # an empty path would be the current directory
    if is_named and path.is_dir():
        return path.absolute()
    if is_named and path.exists():
        raise SourceError(
            f"model {model!r} is a file: give the directory of a Hugging Face checkpoint"
            + (" (GGUF files cannot be read)" if path.suffix == ".gguf" else "")
        )
    if model.startswith(_PATH_START) or model.count("/") > 1:
        raise ModelNotFound(f"model {model!r}: there is no such directory; check the path")
    raise ModelNotFound(
        f"model {model!r} is unknown: give '{DEMO_MODEL}', an existing directory or a hub id "
        "'org/name'"
    )


def _require_safetensors(directory: Path) -> None:
    names = {path.name for path in directory.iterdir()}
    if not any(name.endswith(".safetensors") for name in names):
        raise SourceError(f"{str(directory)!r} has no *.safetensors file: {_remedy(names)}")


def _remedy(names: set[str]) -> str:
    if any(name.endswith(".gguf") for name in names):
        return "GGUF files cannot be read; fetch the model's original safetensors checkpoint"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return (
            "pickled weights are not read; convert them with transformers' "
            "from_pretrained(...) and save_pretrained(...)"
        )
    return "give a Hugging Face checkpoint directory (config.json and *.safetensors)"
