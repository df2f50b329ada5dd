"""A decoder's products and attention on the CPU, compiled for this processor (numba, LLVM).

Inputs of integer weights are rounded to int16 a row; their products are summed as integers.
"""
