"""What a verdict is about: a variant as it is loaded now, and what was measured of it before."""

from dataclasses import dataclass
from typing import Self

from compression.fidelity_record import SliceFidelity
from gateway.pool.state import Snapshot
from gateway.shadow_settings import Estimator


@dataclass(frozen=True, slots=True)
class Subject:
    """A loaded variant; evidence for one says nothing of another."""

    recipe_digest: str
    source_digest: str
    """Both are empty where the engine is not ours and does not tell."""
    fidelity: tuple[SliceFidelity, ...] | None
    """Measured when it was made, if it was."""
    estimator: Estimator = "topk"
    """How its divergences are found; those of one kind say nothing of the other."""

    @classmethod
    def of(cls, shot: Snapshot, estimator: Estimator = "topk") -> Self | None:
        """Return what is served there; None: it is not loaded."""
        if shot.info is None:
            return None
        manifest = (shot.prepared.manifest if shot.prepared else None) or {}
        measured = manifest.get("fidelity")
        known = tuple(map(SliceFidelity.model_validate, measured)) if measured else None
        source = manifest.get("source", {}).get("digest", "")
        return cls(
            recipe_digest=shot.info.recipe_digest or "",
            # Only an engine that was not started here tells these itself.
            source_digest=source or shot.info.source_digest or "",
            fidelity=known or shot.info.fidelity,
            estimator=estimator,
        )

    def digest(self, reference: str) -> str:
        """Return what stands for it and for the full model that it is held against."""
        of_scores = () if self.estimator == "topk" else (self.estimator,)
        # The reference is last: a digest of its weights may follow later.
        return " ".join((*of_scores, self.recipe_digest, self.source_digest, reference))
