"""vLLM's general plugin: called once in each of its processes, before any model is loaded."""

import ctypes
import os
import signal
from typing import Any

KERNELS = "NARROWGATE_VLLM_KERNELS"
"""The schemes, by commas, for which the gateway wants our kernels: vLLM's own fail here."""

WAIT = "NARROWGATE_VLLM_WAIT"
"""How vLLM's processes are to wait for each other: ``asleep``, or as vLLM does it."""

_PR_SET_PDEATHSIG = 1
_LOOK_AGAIN_MS = 100
"""A sleeper that was not woken looks by itself after this."""


def register() -> None:
    """Tie this process to its parent, and offer the kernels that were asked for."""
    die_with_parent()
    if os.environ.get(WAIT) == "asleep":
        wait_asleep()
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


def wait_asleep() -> None:
    """Have a reader of vLLM's queues sleep until the writer wakes it.

    By itself it looks again and again for a second after each message, and gives way in between.
    Where an engine has one processor, that takes turns with what computes the next message.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    condition: Any = getattr(shm_broadcast, "SpinCondition", None)
    if condition is None:
        return  # a version that waits in another way
    plain = condition.wait

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        self.busy_loop_s = 0
        bound = _LOOK_AGAIN_MS if timeout_ms is None else min(timeout_ms, _LOOK_AGAIN_MS)
        plain(self, timeout_ms=bound)

    condition.wait = wait
