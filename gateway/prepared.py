"""What an engine can serve, and how it must look once it is served."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from compression.schemes import Unquantized
from gateway.errors import SchemeMismatch
from gateway.protocol import EngineInfo

_UNQUANTIZED = Unquantized().label
_PLAIN_BITS = 16


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an engine can serve: a directory, and the manifest if it is an artifact.

    An engine that others run has neither.
    """

    directory: Path | None
    manifest: Mapping[str, Any] | None
    digest: str | None = None
    """Of all that the engine reads, where it was asked for."""

    @property
    def weights_bytes(self) -> int:
        """Return the bytes that the weights will take in an engine's memory."""
        if self.manifest is not None:
            return int(self.manifest["bytes_in_memory"])
        if self.directory is None:
            return 0
        return sum(file.stat().st_size for file in self.directory.glob("*.safetensors"))

    def complete(self, info: EngineInfo) -> EngineInfo:
        """Return an engine's description with what only the manifest tells added.

        An engine that is not ours knows what it runs, and not which recipe that came from.
        """
        manifest = self.manifest
        if manifest is None or info.recipe is not None:
            return info
        weights = sum(prod(record["shape"]) for record in manifest["tensors"])
        live = info.weights_bytes
        return info.model_copy(
            update={
                "recipe": manifest["recipe"]["name"],
                "recipe_digest": manifest["recipe_digest"],
                "weights_bytes_before": manifest["bytes_before"],
                "weight_bits": None if live is None else 8 * live / weights,
            }
        )

    def _require_cache(self, info: EngineInfo) -> None:
        recipe = (self.manifest or {}).get("recipe", {})
        if "kv_cache" in recipe and info.kv_bits == _PLAIN_BITS and _is_rounded(recipe["kv_cache"]):
            raise SchemeMismatch(
                f"the engine of {info.served_model_name} keeps keys and values in {info.kv_dtype}, "
                f"but recipe {recipe['name']!r} asks for less: use engine 'embedded'"
            )

    def require_applied(self, info: EngineInfo, *, rounds_at_load: bool) -> None:
        """Check that the live engine runs what the artifact records; a plain checkpoint passes.

        ``rounds_at_load``: the engine itself quantizes what the files keep in 16 bits for others.

        Raises:
            SchemeMismatch: names the schemes of both.
        """
        if self.manifest is None or info.schemes is None:
            return
        self._require_cache(info)
        matrices = [record for record in self.manifest["tensors"] if len(record["shape"]) == 2]
        recorded = {_recorded(record, rounds_at_load) for record in matrices}
        live = {label for label, count in info.schemes.items() if count}
        # Unquantized matrices may be recorded and yet not be layers, but never the other way.
        if live - recorded or recorded - live - {_UNQUANTIZED}:
            raise SchemeMismatch(
                f"the engine of {info.served_model_name} runs {_listed(live)}, but the artifact "
                f"{str(self.directory)!r} records {_listed(recorded)}: build it again"
            )


def _is_rounded(cache: Mapping[str, Any]) -> bool:
    return any(cache[part]["scheme"] != _UNQUANTIZED for part in ("key", "value"))


def _recorded(record: Mapping[str, Any], rounds_at_load: bool) -> str:
    is_rounded_later = record.get("bytes_stored") == record.get("bytes_before")
    if is_rounded_later and not rounds_at_load:
        return _UNQUANTIZED
    return str(record["applied"])


def _listed(labels: set[str]) -> str:
    return ", ".join(sorted(labels)) or "nothing"
