"""The exponential function in a form that LLVM turns into vectors."""

import numpy as np

from compression.kernels.compiling import compiled
from compression.kernels.memory import bits_of_float, float_of_bits


@compiled
def exponential(x: float) -> float:
    """Return eˣ of a float32 within 2 units of the last place, 0 below -87, NaN of NaN and ±∞.

    Cephes' polynomial (Moshier, expf) after the argument is reduced by powers of two.
    """
    bounded = min(max(np.float32(x), np.float32(-87.3)), np.float32(88.0))
    power = np.floor(bounded * np.float32(1.44269504088896341) + np.float32(0.5))
    rest = bounded - power * np.float32(0.693359375)
    rest = rest - power * np.float32(-2.12194440e-4)
    value = np.float32(1.9875691500e-4)
    value = value * rest + np.float32(1.3981999507e-3)
    value = value * rest + np.float32(8.3334519073e-3)
    value = value * rest + np.float32(4.1665795894e-2)
    value = value * rest + np.float32(1.6666665459e-1)
    value = value * rest + np.float32(5.0000001201e-1)
    value = value * rest * rest + rest + np.float32(1.0)
    scale = float_of_bits((np.int32(power) + np.int32(127)) << np.int32(23))
    if x < np.float32(-87.3):
        value = np.float32(0.0)
    is_number = (bits_of_float(np.float32(x)) & np.int32(0x7FFFFFFF)) < np.int32(0x7F800000)
    return value * scale if is_number else np.float32(np.nan)
