"""A launcher of fake engines, real child processes, for tests of everything above it."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from compression.events import OnProgress, Progress
from compression.recipe import FULL
from gateway.backends.base import Engine
from gateway.backends.process import EngineProcess
from gateway.backends.url import RemoteEngine
from gateway.errors import LoadRefused
from gateway.prepared import Prepared
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient
from tests.ports import free_port


class FakeLaunch:
    """Prepares nothing and starts ``fake_engine.py``; ``model: refuse`` is refused."""

    def __init__(
        self,
        *,
        prepare_s: float = 0.0,
        tidy_s: float = 0.0,
        read_timeout_s: float = 10.0,
        num_failures: int = 0,
        notebook: Path | None = None,
        nll: Mapping[str, float] | None = None,
        score_faults: Mapping[str, str] | None = None,
        applied: tuple[str, ...] = ("int4-g32-asym", "none"),
    ) -> None:
        matrices = [{"shape": [8, 8], "applied": label} for label in applied]
        norm = {"shape": [8], "applied": "none"}
        self.manifest = {
            "source": {"digest": "f" * 64},
            "recipe": {"name": "fake"},
            "tensors": [*matrices, norm],
        }
        self.prepare_s = prepare_s
        self.tidy_s = tidy_s
        self.nll = dict(nll or {})  # by variant: what its engines find recorded tokens to cost
        self.score_faults = dict(score_faults or {})  # by model: of its reference
        self.notebook = notebook
        self.read_timeout_s = read_timeout_s
        self.num_failures_after_first = num_failures
        self.engines: list[EngineProcess] = []
        self.num_prepared = 0

    async def prepare(self, spec: VariantSpec, on_progress: OnProgress) -> Prepared:
        """Pretend to compress for ``prepare_s`` seconds, and to tidy up where that is cancelled."""
        self.num_prepared += 1
        if spec.settings.urls:
            return Prepared(None, None)
        is_absent = spec.variant == "reference" and self.score_faults.get(spec.alias) == "absent"
        if spec.settings.model == "refuse" or is_absent:
            raise LoadRefused("no model 'refuse': name one that exists")
        on_progress(Progress("quantize", 1, 2, "tensors", "layer 0"))
        try:
            await asyncio.sleep(self.prepare_s)
        except asyncio.CancelledError:
            await asyncio.sleep(self.tidy_s)
            raise
        on_progress(Progress("quantize", 2, 2, "tensors", "layer 1"))
        if spec.variant == FULL:
            return Prepared(Path("/nowhere"), None)
        return Prepared(Path("/nowhere"), self.manifest)

    async def read(
        self, spec: VariantSpec, prepared: Prepared, on_progress: OnProgress
    ) -> Prepared:
        """Read nothing."""
        return prepared

    def memory_bytes(self, spec: VariantSpec, prepared: Prepared) -> int:
        """Return what the settings say, or 100 bytes an engine."""
        return int(spec.settings.memory or 100 * spec.num_replicas)

    async def start(self, spec: VariantSpec, prepared: Prepared, replica: int) -> Engine:
        """Start a fake engine, or one that ends at once, as often as told."""
        if spec.settings.urls:
            url, name = spec.settings.urls[replica], spec.settings.model
            there = EngineClient(url, served_name=name, read_timeout_s=self.read_timeout_s)
            return await RemoteEngine.connect(there, timeout_s=60)
        port = free_port()
        client = EngineClient(
            f"http://127.0.0.1:{port}",
            served_name=spec.served_name,
            read_timeout_s=self.read_timeout_s,
        )
        command = [sys.executable, "-m", "tests.gateway.fake_engine"]
        command += ["--served-model-name", spec.served_name, "--port", str(port)]
        command += ["--nll", str(self.nll.get(spec.variant, 0.5))]
        command += ["--score-fault", self.score_faults.get(spec.alias, "")]
        starts = [each.client.served_name for each in self.engines].count(spec.served_name)
        if starts >= spec.num_replicas and self.num_failures_after_first:
            self.num_failures_after_first -= 1
            command = [sys.executable, "-c", "import sys; sys.exit('cannot start')"]
        engine = await EngineProcess.start(
            command, client, backend="fake", timeout_s=60, niceness=spec.niceness
        )
        self.engines.append(engine)
        if self.notebook is not None:
            with self.notebook.open("a") as notes:
                notes.write(f"{client.base_url} {engine.pid} {spec.served_name}\n")
        return engine
