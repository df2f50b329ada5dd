"""What the check of fixed texts finds of an artifact's engine, a process of its own, at load."""

from pathlib import Path

from compression.manifest import read_manifest
from gateway.backends import embedded
from gateway.backends.process import EngineProcess
from gateway.model_settings import VariantSettings
from gateway.pool.lease import ReadyEngine
from gateway.prepared import Prepared
from gateway.registry import Metrics
from gateway.shadow.fixed_texts import FixedTextsCheck
from gateway.shadow.fixed_texts_finding import Finding
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient

START_S = 300.0


async def check_at_load(directory: Path, *, threads: int | None = None) -> Finding:
    """Start the engine of an artifact, have it read the fixed texts, and end it.

    Raises:
        ChildFailed: the engine did not start.
        FileNotFoundError: the directory is no artifact.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise FileNotFoundError(f"{directory} is no artifact")
    prepared = Prepared(directory, manifest.model_dump(mode="json"))
    settings = VariantSettings(model=str(directory), recipe=manifest.recipe.name, threads=threads)
    spec = VariantSpec("model", "variant", settings)
    port = embedded.free_port()
    client = EngineClient(
        f"http://{embedded.HOST}:{port}", served_name=spec.served_name, read_timeout_s=START_S
    )
    words = embedded.command(
        directory,
        served_name=spec.served_name,
        port=port,
        settings=settings,
        kv_cache_memory_bytes=None,
    )
    engine = await EngineProcess.start(words, client, backend=embedded.BACKEND, timeout_s=START_S)
    try:
        ready = ReadyEngine(spec, spec.served_name, client, info=await client.info())
        check = FixedTextsCheck(
            Metrics(),
            lambda: [ready],
            lambda alias, variant: prepared,
            publish=lambda kind, fields: None,
            tell=lambda alias, variant, finding: None,
            every_s=0,
        )
        await check.look()
        found = check.finding(spec.alias, spec.variant)
    finally:
        await engine.stop(5.0)
    if found is None:
        raise RuntimeError(f"the engine of {directory} was not looked at")
    return found
