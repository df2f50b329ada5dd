"""What tests need to know of the processor they run on."""

import torch

from compression.crossover import fast_dense_dtype

ROUNDS_SUMS = fast_dense_dtype() is torch.bfloat16
"""Whether many rows of bf16 and nf4 weights are multiplied in bf16, whose sums are rounded."""
