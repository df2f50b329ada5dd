"""What an engine can serve, and how it must look once it is served."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from compression.kv.layers import layer_schemes
from compression.recipe import FULL, KvCache
from compression.schemes import Unquantized
from gateway.errors import SchemeMismatch
from gateway.protocol import EngineInfo

_UNQUANTIZED = Unquantized().label
_PLAIN_DTYPES = frozenset({"bfloat16", "float16", "float32"})


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an engine can serve: a directory, and the manifest if it is an artifact.

    An engine that others run has neither, only ``called``: the recipe that the settings say of it.
    """

    directory: Path | None
    manifest: Mapping[str, Any] | None
    digest: str | None = None
    """Of all that the engine reads, where it was asked for."""
    called: str | None = None
    called_digest: str | None = None
    """Of that recipe; None for the full model, which has none."""

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
        weights = num_weights(manifest)
        live = info.weights_bytes
        return info.model_copy(
            update={
                "recipe": manifest["recipe"]["name"],
                "recipe_digest": manifest["recipe_digest"],
                "weights_bytes_before": manifest["bytes_before"],
                "weight_bits": None if live is None else 8 * live / weights,
            }
        )

    def require_applied(self, info: EngineInfo, *, rounds_at_load: bool) -> None:
        """Check that the live engine runs what the artifact records; a plain checkpoint passes.

        ``rounds_at_load``: the engine itself quantizes what the files keep in 16 bits for others.

        Raises:
            SchemeMismatch: names the schemes of both.
        """
        self._require_called(info)
        if self.manifest is None:
            _require_schemes(info, set(info.recorded_schemes or ()), "its artifact")
        elif info.schemes is not None:
            _require_cache(info, self.manifest["recipe"])
            recorded = recorded_schemes(self.manifest, rounds_at_load=rounds_at_load)
            _require_schemes(info, recorded, f"the artifact {str(self.directory)!r}")

    def _require_called(self, info: EngineInfo) -> None:
        here, there = self.called_digest, info.recipe_digest
        if self.called is None or (here is not None and here == there):
            return  # the same under another name is the same
        engine = f"the engine of {info.served_model_name}"
        told = info.recipe
        if told is None and _live(info) == {_UNQUANTIZED}:
            told = FULL  # a recipe that changes no layer would have been told
        if told not in {None, self.called}:
            raise SchemeMismatch(
                f"{engine} runs recipe {told!r}, and the settings call it {self.called!r}: "
                f"say 'recipe': {told}, or another URL"
            )
        if here is not None and there is not None:
            raise SchemeMismatch(
                f"{engine} runs another recipe of the name {self.called!r} than this gateway has: "
                f"its digest is {there[:12]}, here {here[:12]}: "
                "use the same recipe file and version of Narrowgate on both sides"
            )


def recorded_schemes(manifest: Mapping[str, Any], *, rounds_at_load: bool) -> set[str]:
    """Return the schemes that the layers of an artifact must have in a live engine."""
    matrices = [record for record in manifest["tensors"] if len(record["shape"]) == 2]
    return {_recorded(record, rounds_at_load) for record in matrices}


def told_of(manifest: Mapping[str, Any], *, rounds_at_load: bool) -> dict[str, Any]:
    """Return what an engine tells of its artifact to a gateway that does not have it.

    The keys are those of ``EngineInfo``.
    """
    return {
        "recipe": manifest["recipe"]["name"],
        "recipe_digest": manifest["recipe_digest"],
        "source_digest": manifest["source"]["digest"],
        "recorded_schemes": sorted(recorded_schemes(manifest, rounds_at_load=rounds_at_load)),
        "fidelity": manifest.get("fidelity"),
    }


def num_weights(manifest: Mapping[str, Any]) -> int:
    """Return how many weights an artifact stands for."""
    return sum(prod(record["shape"]) for record in manifest["tensors"])


def _require_schemes(info: EngineInfo, recorded: set[str], whose: str) -> None:
    if info.schemes is None or not recorded:
        return
    live = _live(info)
    # Unquantized matrices may be recorded and yet not be layers, but never the other way.
    if live - recorded or recorded - live - {_UNQUANTIZED}:
        raise SchemeMismatch(
            f"the engine of {info.served_model_name} runs {_listed(live)}, but {whose} "
            f"records {_listed(recorded)}: build it again"
        )


def _require_cache(info: EngineInfo, recipe: Mapping[str, Any]) -> None:
    layers, kv_cache = info.kv_layers, KvCache.model_validate(recipe.get("kv_cache", {}))
    if layers is None or not kv_cache.is_quantized:
        return
    asked = layer_schemes(kv_cache, len(layers)) if layers else ()
    wrong = [
        f"layer {index} in {held}"
        for index, (held, scheme) in enumerate(zip(layers, asked, strict=True))
        if (held in _PLAIN_DTYPES) == scheme.is_quantized
    ]
    if wrong or not layers:
        named = ", ".join(wrong[:3]) or "no layer that it could name"
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise SchemeMismatch(
            f"the engine of {info.served_model_name} keeps keys and values of {named}{more}, "
            f"and 'kv_cache' of recipe {recipe['name']!r} asks for something else: "
            "use engine 'embedded'"
        )


def _live(info: EngineInfo) -> set[str]:
    return {label for label, count in (info.schemes or {}).items() if count}


def _recorded(record: Mapping[str, Any], rounds_at_load: bool) -> str:
    is_rounded_later = record.get("bytes_stored") == record.get("bytes_before")
    if is_rounded_later and not rounds_at_load:
        return _UNQUANTIZED
    return str(record["applied"])


def _listed(labels: set[str]) -> str:
    return ", ".join(sorted(labels)) or "nothing"
