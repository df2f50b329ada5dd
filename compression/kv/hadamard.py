"""The Hadamard matrix: a rotation whose every entry has the same size."""

import torch
from torch import Tensor


def hadamard(size: int) -> Tensor:
    """Return a symmetric orthogonal ``[size, size]`` matrix, f32: its own inverse.

    Sylvester's construction for a power of two. Another size is cut into blocks of the largest
    power of two that divides it, each rotated by itself.
    """
    block = size & -size
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return torch.kron(torch.eye(size // block), matrix / block**0.5)
