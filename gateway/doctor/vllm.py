"""What the vLLM that would be used can do here; quiet where there is none and nobody asks."""

import asyncio

from gateway.backends.vllm_facts import find_python, probe
from gateway.backends.vllm_weights import own_kernels
from gateway.doctor.finding import Finding
from gateway.errors import LoadRefused


def check_vllm() -> list[Finding]:
    """Return what an engine ``vllm`` without further settings would be."""
    try:
        python = find_python(None)
    except LoadRefused:
        return [Finding("vllm", "ok", "none here; `make vllm-env` makes one")]
    try:
        facts = asyncio.run(probe(python))
    except LoadRefused as error:
        return [Finding("vllm", "warn", str(error), "make vllm-env")]
    found = [Finding("vllm", "ok", f"{facts.version} on {facts.device}, {python}")]
    found += [
        Finding(
            "vllm kernels",
            "warn",
            f"{kernel.scheme}: {kernel.reason}",
            "nothing: the gateway puts a kernel of its own in the place",
        )
        for kernel in own_kernels(facts)
    ]
    return found
