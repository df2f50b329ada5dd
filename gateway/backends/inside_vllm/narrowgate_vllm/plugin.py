"""vLLM's general plugin: called once in each of its processes, before any model is loaded."""

import ctypes
import os
import signal

KERNELS = "NARROWGATE_VLLM_KERNELS"
"""The schemes, by commas, for which the gateway wants our kernels: vLLM's own fail here."""

_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Tie this process to its parent, and offer the kernels that were asked for."""
    die_with_parent()
    wanted = set(filter(None, os.environ.get(KERNELS, "").split(",")))
    if not wanted:
        return
    from vllm.model_executor.kernels.linear import register_linear_kernel
    from vllm.platforms import PlatformEnum

    if "int8" in wanted:
        from .int8_kernel import WeightOnlyInt8Kernel

        register_linear_kernel(WeightOnlyInt8Kernel, PlatformEnum.CPU, "int8")
    if "int4" in wanted:
        from .int4_kernel import WeightOnlyInt4Kernel

        register_linear_kernel(WeightOnlyInt4Kernel, PlatformEnum.CPU, "mp")


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it has ended.

    vLLM's workers outlive an API server that was killed; Linux ends them with this.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
