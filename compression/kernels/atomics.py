"""What threads that run one program share: counters, a pause while waiting, a place to sleep."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_LONG = ir.IntType(64)


def _place(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _LONG.as_pointer())


@intrinsic
def load(typing_context: Any, address: Any) -> Any:
    """Return the int64 at an address, and everything written before it was stored."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_place(builder, arguments[0]), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def store(typing_context: Any, address: Any, value: Any) -> Any:
    """Store an int64 after everything that was written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _place(builder, arguments[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def add(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address and return what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _place(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def exchange(typing_context: Any, address: Any, expected: Any, value: Any) -> Any:
    """Store ``value`` where ``expected`` lies, and return whether it did."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(builder, arguments[0])
        result = builder.cmpxchg(place, arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


def _system_call(name: str, result: Any, *kinds: Any) -> Any:
    """Return a function of the C library as compiled code calls it."""
    return types.ExternalFunction(name, result(*kinds))


sched_yield = _system_call("sched_yield", types.int32)
sem_init = _system_call("sem_init", types.int32, types.int64, types.int32, types.int32)
sem_post = _system_call("sem_post", types.int32, types.int64)
sem_wait = _system_call("sem_wait", types.int32, types.int64)


@intrinsic
def pause(typing_context: Any) -> Any:
    """Let the other thread of this core run for a moment, where the processor has a word for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if str(builder.module.triple).startswith(("x86_64", "i686")):
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), generate
