"""What the pool hands out: the right to use an engine, and a look at one that is ready."""

from dataclasses import dataclass

from gateway.pool.replica import Replica
from gateway.protocol import EngineInfo
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use one engine of a variant while the block is open."""

    spec: VariantSpec
    client: EngineClient
    replica: Replica


@dataclass(frozen=True, slots=True)
class ReadyEngine:
    """An engine that takes requests, for who only looks at it."""

    spec: VariantSpec
    name: str
    client: EngineClient
    index: int = 0
    info: EngineInfo | None = None

    @property
    def is_ours(self) -> bool:
        """Return whether it was started here, or elsewhere by `narrowgate engine`."""
        describes_layers = self.info is not None and self.info.schemes is not None
        return describes_layers or not self.spec.settings.urls
